"""How a recipe starts and stops: arguments, number of processes, output directory, one-line errors, clean exit."""

from __future__ import annotations

import difflib
import gc
import json
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
from transformers import HfArgumentParser

from bert_toolkit.errors import InputError

# What a run writes at the top of its output directory. Only these are removed by --overwrite_output_dir.
RUN_FILES = (
    "checkpoint-*",
    "runs",
    "figures",
    "monitoring",
    "results.json",
    "predictions.tsv",
    "all_results.json",
    "trainer_state.json",
    "training_args.bin",
    "README.md",
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "*_toolkit_bert.py",
)


class _RecipeArgumentParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line, without the usage of two hundred Trainer flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; run with --help for every flag")


def parse_arguments(
    dataclass_types: Sequence[Any], defaults: dict[str, Any], arguments: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Reads a recipe's command line.

    A first argument that ends in `.yaml`, `.yml` or `.json` is a file of `flag: value` pairs. The order of
    precedence is command line, then file, then `defaults`, then the dataclasses' own defaults.

    Args:
        dataclass_types: The recipe's dataclass and `TrainingArguments`, in the order of the result.
        defaults: Values by which the recipe departs from the dataclasses' defaults.
        arguments: Command line without the program; `sys.argv[1:]` if None.

    Returns:
        One instance of each dataclass type.

    Raises:
        InputError: Unknown flag or key (with the nearest known one), unreadable file, or a refused value.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _RecipeArgumentParser(dataclass_types, allow_abbrev=False)
    known = {field.name for dataclass_type in dataclass_types for field in fields(dataclass_type) if field.init}
    parser.set_defaults(**defaults)
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        settings = _read_settings(Path(arguments.pop(0)))
        hints: dict[str, Any] = {}
        for dataclass_type in dataclass_types:
            hints |= get_type_hints(dataclass_type)
        for key, value in settings.items():
            if key not in known:
                raise InputError(f"unknown setting `{key}`{_nearest(str(key), known)}")
            may_be_none = value is None and key in defaults and defaults[key] is None
            # argparse converts strings as it does those of the command line, and leaves other values as they are
            if not (may_be_none or isinstance(value, str) or _fits(value, hints[key])):
                wanted = hints[key].__name__ if isinstance(hints[key], type) else hints[key]
                came = "a list of other things" if isinstance(value, list) else type(value).__name__
                raise InputError(f"setting `{key}` must be {wanted}, got {came}")
            if isinstance(value, str) and str not in _alternatives(hints[key]) and _fits([value], hints[key]):
                settings[key] = [value]
        parser.set_defaults(**settings)

    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0]
        raise InputError(f"unknown argument `{flag}`{_nearest(flag.lstrip('-').split('=')[0], known, prefix='--')}")
    try:
        return tuple(_instance(dataclass_type, namespace) for dataclass_type in dataclass_types)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that is no string may be given to a field of a dataclass with this type."""
    kinds = [get_origin(alternative) or alternative for alternative in _alternatives(hint)]
    if isinstance(value, list):
        return list in kinds and all(isinstance(item, str) for item in value)
    return type(value) in kinds or type(value) is int and float in kinds


def _instance(dataclass_type: type, namespace: Namespace) -> Any:
    names = {field.name for field in fields(dataclass_type) if field.init}
    return dataclass_type(**{name: value for name, value in vars(namespace).items() if name in names})


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"the settings file {path} is not valid YAML or JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"the settings file {path} must hold `flag: value` pairs, got {type(settings).__name__}")
    return settings


def _nearest(name: str, known: set[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    suggestion = f"did you mean `{prefix}{nearest[0]}`? " if nearest else ""
    return f"; {suggestion}run with --help for every flag"


def prepare_processes() -> None:
    """Chooses CPU or accelerator before `TrainingArguments` starts the process group. A recipe calls it first.

    Several processes without an accelerator form a group only when they are told to use the CPU; otherwise each
    would train alone. On CPU, PyTorch is told to take large tensors from huge pages (Linux, its own switch
    THP_MEM_ALLOC_ENABLE): gradients are freed and allocated anew at every step, and the page faults of a word
    embedding's gradient alone cost a fifth of a small model's step.

    Raises:
        InputError: One process was started although the launcher was asked for several.
    """
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "several processes were asked for but the launcher started one (`accelerate launch --cpu "
            "--num_processes 2` does this); use a file of recipes/accelerate_configs, such as "
            "`accelerate launch --config_file recipes/accelerate_configs/cpu_2_processes.yaml`, "
            "or unset MASTER_ADDR to train in one process"
        )
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read once, at the first large allocation


def use_cpu_threads(threads: int | None, device: torch.device) -> None:
    """Shares the cores among the processes of this machine when they train on the CPU.

    `accelerate launch` gives each process one thread unless `--cpu` or OMP_NUM_THREADS says otherwise, which halves
    the speed of a two-core machine. So one thread is taken for that default; a larger OMP_NUM_THREADS is kept.

    Args:
        threads: Threads of this process; None decides as described.
        device: Where the model trains.
    """
    if threads is not None:
        if threads < 1:
            raise InputError(f"`cpu_threads` must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    elif device.type == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def check_world_size(world_size: int) -> None:
    """Refuses a run whose processes do not know of each other.

    Args:
        world_size: `TrainingArguments.world_size`.

    Raises:
        InputError: The launcher started another number of processes than take part in the training.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != launched:
        raise InputError(
            f"{launched} processes were launched but {world_size} take part in this training, so each would train "
            "alone; launch with a file of recipes/accelerate_configs or pass --use_cpu for processes on CPU"
        )


def claim_output_dir(output_dir: str | Path, overwrite: bool, resume: bool, is_main_process: bool = True) -> None:
    """Makes sure that the run may write to `output_dir` and that nothing in it is lost.

    Args:
        output_dir: Created if absent.
        overwrite: Remove what an earlier run wrote there (`RUN_FILES`, nothing else).
        resume: The run continues what is there.
        is_main_process: Only the main process removes files.

    Raises:
        InputError: Not a writable directory, or it holds files and neither `overwrite` nor `resume` is set.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise InputError(f"`output_dir` must be a directory, {path} is a file; choose another with --output_dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"`output_dir` {path} is not writable ({error.strerror}); choose another with --output_dir"
        ) from error
    if overwrite and resume:
        raise InputError("--overwrite_output_dir and --resume_from_checkpoint exclude each other; pass one of them")
    if resume or not is_main_process:
        return
    present = sorted({found for pattern in RUN_FILES for found in path.glob(pattern)})
    if not present:
        return
    if not overwrite:
        state = "a finished run" if (path / "results.json").exists() else "an unfinished run"
        raise InputError(
            f"`output_dir` {path} holds {state} ({present[0].name}, …); continue it with --resume_from_checkpoint "
            "last, replace it with --overwrite_output_dir, or choose another with --output_dir"
        )
    for found in present:
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink()


def run_recipe(main: Callable[[], None]) -> NoReturn:
    """Runs a recipe's `main` and exits.

    Status 0; 2 with one line for input that was refused; 143 where SIGTERM stopped the training after a checkpoint
    (`StopOnSigtermCallback`).

    `main` must keep trainer and model in its own frame: they are collected before the process group is
    destroyed, because a process that destroys the group while a DistributedDataParallel object is alive can
    abort after a correct run (about a third of runs with gloo on CPU, in plain PyTorch too).
    """
    status: str | int | None = 0
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # No farewell to the other processes: they may be in the same error or wait for this one; the launcher
        # sees this status and stops them.
        os._exit(2)
    except SystemExit as stop:
        status = stop.code
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
