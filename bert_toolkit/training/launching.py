"""How a recipe starts and stops: number of processes, threads, output directory, one-line errors, clean exit."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainingArguments, set_seed

from bert_toolkit.errors import InputError, one_line, reason_of
from bert_toolkit.processes import is_distributed
from bert_toolkit.training.arguments import RECIPE_DEFAULTS, RunArguments, TrainerRunArguments, parse_arguments
from bert_toolkit.training.full_disk import full_disk_reason
from bert_toolkit.training.trainer_flags import check_early_stopping, check_trainer_flags

OwnArguments = TypeVar("OwnArguments")
SharedArguments = TypeVar("SharedArguments", bound=TrainerRunArguments)

# What a run writes at the top of its output directory. Only these are removed by --overwrite_output_dir.
RUN_FILES = (
    "checkpoint-*",
    "runs",
    "figures",
    "monitoring",
    "results.json",
    "hyperparameter_search.json",
    "report.html",
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


def start_recipe(
    own_arguments: type[OwnArguments],
    defaults: Mapping[str, Any],
    run_arguments: type[SharedArguments] = TrainerRunArguments,  # type: ignore[assignment]
) -> tuple[OwnArguments, SharedArguments, TrainingArguments]:
    """Read the command line and make everything ready for a training with Trainer.

    Args:
        own_arguments: The recipe's dataclass.
        defaults: Where the recipe departs from the defaults of `TrainingArguments` and from `RECIPE_DEFAULTS`.
        run_arguments: What recipes of this kind share.

    Returns:
        The recipe's arguments, those of every recipe, and Trainer's.

    Raises:
        InputError: As `parse_arguments`, `check_trainer_flags`, `check_early_stopping`, `prepare_processes` and
            `open_run`.
    """
    prepare_processes()
    types = [own_arguments, run_arguments, TrainingArguments]
    own, run, arguments = parse_arguments(types, {**RECIPE_DEFAULTS, **defaults})
    check_trainer_flags(arguments)
    if run.early_stopping_patience is not None:
        check_early_stopping(arguments)
    open_run(
        run,
        arguments.output_dir,
        device=arguments.device,
        world_size=arguments.world_size,
        is_main_process=arguments.process_index == 0,
        seed=arguments.seed,
        resume=arguments.resume_from_checkpoint is not None,
    )
    return own, run, arguments


def open_run(
    run: RunArguments,
    output_dir: str | Path,
    device: torch.device,
    world_size: int,
    is_main_process: bool,
    seed: int,
    resume: bool = False,
) -> None:
    """Check processes and output directory, choose the number of threads, and seed every random number generator.

    Args:
        run: Flags of every recipe.
        output_dir: Where the run writes.
        device: Where the model trains.
        world_size: Processes that take part.
        is_main_process: Whether this process may remove an earlier run.
        seed: Of Python, NumPy and PyTorch.
        resume: The run continues what is in `output_dir`.

    Raises:
        InputError: As `check_world_size` and `prepare_output_dir`.
    """
    use_cpu_threads(run.cpu_threads, device)
    check_world_size(world_size)
    prepare_output_dir(output_dir, run.overwrite_output_dir, resume, is_main_process)
    set_seed(seed)


def prepare_processes() -> None:
    """Choose CPU or accelerator before `TrainingArguments` starts the process group. A recipe calls it first.

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
        # Told to use the CPU, Accelerate would put DistributedDataParallel in DeepSpeed's place without a word.
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
            os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read once, at the first large allocation


def use_cpu_threads(threads: int | None, device: torch.device) -> None:
    """Share the cores among the processes of this machine when they train on the CPU.

    `accelerate launch` gives each process one thread unless `--cpu` or OMP_NUM_THREADS says otherwise, which halves
    the speed of a two-core machine. So one thread is taken for that default; a larger OMP_NUM_THREADS is kept.

    Args:
        threads: Threads of this process; None decides as described.
        device: Where the model trains.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif device.type == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def check_world_size(world_size: int) -> None:
    """Refuse a run whose processes do not know of each other.

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


def prepare_output_dir(output_dir: str | Path, overwrite: bool, resume: bool, is_main_process: bool = True) -> None:
    """Make sure that the run may write to `output_dir` and that nothing in it is lost.

    Args:
        output_dir: Created if absent.
        overwrite: Remove what an earlier run wrote there (`RUN_FILES`, nothing else).
        resume: The run continues what is there.
        is_main_process: Only the main process removes files.

    Raises:
        InputError: Not a writable directory, or it holds files and neither `overwrite` nor `resume` is set.
    """
    path = Path(output_dir)
    if not str(path).isprintable():
        raise InputError(f"`output_dir` must be text in UTF-8 without control characters, got {str(path)!r}")
    if path.exists() and not path.is_dir():
        raise InputError(f"`output_dir` must be a directory, {path} is a file; choose another with --output_dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"`output_dir` {path} is not writable ({reason_of(error)}); choose another with --output_dir"
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
    """Run a recipe's `main` and exit.

    Status 0; 2 with one line for input that was refused or a disk that is full; 143 where SIGTERM stopped the training
    after a checkpoint (`StopOnSigtermCallback`).

    `main` must keep trainer and model in its own frame: they are collected before the process group is
    destroyed, because a process that destroys the group while a DistributedDataParallel object is alive can
    abort after a correct run (about a third of runs with gloo on CPU, in plain PyTorch too).

    Args:
        main: The whole program; it takes its arguments from `sys.argv`.

    Raises:
        SystemExit: Always, with that status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal or file that lacks a character shows another instead
            stream.reconfigure(errors="replace")
    status: str | int | None = 0
    threading.excepthook = _quiet_about_full_disks
    try:
        main()
    except InputError as error:
        _refuse(str(error))
    except HfHubHTTPError as error:
        _refuse(f"the hub refused: {reason_of(error)}")
    except Exception as error:
        reason = full_disk_reason(error)
        if reason is None:
            raise
        print(file=sys.stderr)  # a progress bar has left its line open
        _refuse(
            f"a file could not be written ({reason}); whole checkpoints are as they were. Free some space, then "
            "continue the training with the same command and --resume_from_checkpoint last"
        )
    except SystemExit as stop:
        status = stop.code
    gc.collect()
    if is_distributed():
        torch.distributed.destroy_process_group()
    sys.exit(status)


def _refuse(message: str) -> NoReturn:
    """End the process with one line.

    No word to the other processes: they may be in the same error or wait for this one; the launcher sees this status
    and stops them.
    """
    sys.stdout.flush()
    print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    os._exit(2)


def _quiet_about_full_disks(failure: threading.ExceptHookArgs) -> None:
    """The thread that writes TensorBoard's events hands its error to the next event: once told is enough."""
    if failure.exc_value is None or full_disk_reason(failure.exc_value) is None:
        threading.__excepthook__(failure)
