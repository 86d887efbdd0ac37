"""A recipe's command line: its own flags, those of every recipe, Trainer's, files of settings, and `--help`."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import sys
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
from transformers import HfArgumentParser, TrainingArguments

from bert_toolkit.errors import InputError, reason_of

RECIPE_DEFAULTS: dict[str, Any] = {
    "seed": 42,
    "train_sampling_strategy": "sequential",  # datasets of the toolkit shuffle themselves
    "logging_steps": 10,
    "save_total_limit": 2,
    "report_to": "tensorboard",
    "use_cpu": not torch.accelerator.is_available(),
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
"""Where every recipe departs from the defaults of `TrainingArguments`; each adds its own."""

HELP_WIDTH, HELP_INDENT = 100, 34


@dataclass
class RunArguments:
    """How the run is watched, and where it may write."""

    monitor_every: int = field(default=50, metadata={"help": "observe gradients and updates every N steps; 0: never"})
    training_health: bool = field(default=True, metadata={"help": "name faults of the training as they appear"})
    max_train_samples: int | None = field(default=None, metadata={"help": "train on N rows, chosen by the seed"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace an earlier run in output_dir"})
    cpu_threads: int | None = field(default=None, metadata={"help": "threads per process; default: all cores"})

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant.

        Raises:
            InputError: `monitor_every` is negative, or `max_train_samples` or `cpu_threads` is not positive.
        """
        for name, least in (("monitor_every", 0), ("max_train_samples", 1), ("cpu_threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}")


@dataclass
class TrainerRunArguments(RunArguments):
    """How the run is watched, when it ends, and where it may write."""

    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "end after N evaluations without a better score"}
    )

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant.

        Raises:
            InputError: As `RunArguments`, or `early_stopping_patience` is not positive.
        """
        super().__post_init__()
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise InputError(f"`early_stopping_patience` must be at least 1, got {self.early_stopping_patience}")


@dataclass
class ClassifierRunArguments(TrainerRunArguments):
    """How the run is watched, when it ends, what counts, and where it may write."""

    class_weights: str = field(default="none", metadata={"help": "balanced: rare classes count more in the loss"})
    hyperparameter_search: int = field(
        default=0, metadata={"help": "try N settings with Optuna first, then train with the best"}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant or done.

        Raises:
            InputError: As `TrainerRunArguments`, or a search of fewer than 0 trials, or one without Optuna.
        """
        super().__post_init__()
        if self.hyperparameter_search < 0:
            raise InputError(f"`hyperparameter_search` must be at least 0, got {self.hyperparameter_search}")
        if self.hyperparameter_search and find_spec("optuna") is None:
            raise InputError(
                '`hyperparameter_search` needs Optuna: `pip install "bert_toolkit[search]"`, or leave the flag out'
            )


class _RecipeArgumentParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line, without the usage of two hundred Trainer flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; run with --help for the flags")


def parse_arguments(
    dataclass_types: Sequence[Any], defaults: Mapping[str, Any], arguments: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Read a recipe's command line.

    A first argument that ends in `.yaml`, `.yml` or `.json` is a file of `flag: value` pairs. The order of
    precedence is command line, then file, then `defaults`, then the dataclasses' own defaults. `--help` and
    `--help-all` print the flags and end the program.

    Args:
        dataclass_types: The recipe's dataclasses and `TrainingArguments`, in the order of the result.
        defaults: Values by which the recipe departs from the dataclasses' defaults.
        arguments: Command line without the program; `sys.argv[1:]` if None.

    Returns:
        One instance of each dataclass type.

    Raises:
        InputError: Unknown flag or key (with the nearest known one), unreadable file, or a refused value.
        SystemExit: Help was asked for.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    wanted = {argument for argument in arguments if argument in ("-h", "--help", "--help-all", "--help_all")}
    if wanted:
        print(help_text(dataclass_types, defaults, in_full=any("all" in argument for argument in wanted)))
        sys.exit(0)
    parser = _RecipeArgumentParser(dataclass_types, allow_abbrev=False, add_help=False)
    parser.set_defaults(**defaults)
    known = {item.name for dataclass_type in dataclass_types for item in fields(dataclass_type) if item.init}
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        parser.set_defaults(**_checked_settings(_read_settings(Path(arguments.pop(0))), dataclass_types, defaults))
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0]
        raise InputError(f"unknown argument `{flag}`{_nearest(flag.lstrip('-').split('=')[0], known, prefix='--')}")
    try:
        return tuple(_instance(dataclass_type, namespace) for dataclass_type in dataclass_types)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        raise InputError(str(error)) from error


def help_text(
    dataclass_types: Sequence[Any], defaults: Mapping[str, Any], in_full: bool = False, width: int | None = None
) -> str:
    """Return what `--help` prints: what the recipe is, then its flags under the first sentence of their dataclass.

    Args:
        dataclass_types: As for `parse_arguments`.
        defaults: Likewise.
        in_full: List every flag of `TrainingArguments`, not only those in `defaults`.
        width: Characters of a line; those of the terminal if None, and 100 at most.

    Returns:
        The text. Commands keep their lines, however narrow the terminal is.
    """
    width = max(40, min(width or shutil.get_terminal_size((HELP_WIDTH, 24)).columns, HELP_WIDTH))
    program = Path(sys.argv[0]).name
    purpose = (getattr(sys.modules.get(dataclass_types[0].__module__), "__doc__", None) or "").strip()
    usage = f"usage: {program} [settings.yaml] [--flag value ...]" if purpose else f"usage: {program}"
    parts = [usage, *(_wrapped(paragraph, width) for paragraph in purpose.split("\n\n") if paragraph)]
    for dataclass_type in dataclass_types:
        shown = [item for item in fields(dataclass_type) if item.init]
        heading = (dataclass_type.__doc__ or dataclass_type.__name__).strip().splitlines()[0].rstrip(".")
        if dataclass_type is TrainingArguments:
            heading = "Flags of Trainer"
            if not in_full:
                heading += f" that have a default of this recipe; --help-all lists all {len(shown)}"
                shown = [item for item in shown if item.name in defaults]
        hints = get_type_hints(dataclass_type)
        flags = (_help_of(item, hints[item.name], defaults, width) for item in shown)
        parts.append("\n".join([*_lines(f"{heading}:", width), *flags]))
    return "\n\n".join(parts)


def _wrapped(paragraph: str, width: int) -> str:
    """A paragraph in lines of this width; commands, which are indented, as they are."""
    return paragraph if paragraph.startswith(" ") else "\n".join(_lines(paragraph, width))


def _lines(text: str, width: int) -> list[str]:
    """Lines of this width; names of flags and files are not broken at their hyphens."""
    return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False) or [""]


def _help_of(item: Field[Any], hint: Any, defaults: Mapping[str, Any], width: int) -> str:
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    default = defaults.get(item.name, default)
    kinds = [kind for kind in _alternatives(hint) if kind is not NoneType]
    several = [kind for kind in kinds if get_origin(kind) is list]
    kinds = several or kinds  # several values may be one
    value = "|".join(sorted({"true|false" if kind is bool else _name_of(kind) for kind in kinds}))
    text = " ".join(str(item.metadata.get("help", "")).split())
    if item.name in defaults:  # transformers' sentences name the defaults of Trainer
        text = re.sub(r" Defaults to [^.]*\.| \(default\)", "", text)
    if default is MISSING:
        text += " (required)"
    elif item.name == "learning_rate" and default is None:
        text += " (default: by the size of the model)"
    elif default not in (None, []):
        told = " ".join(map(str, default)) if isinstance(default, list) else default
        text += f" (default: {str(told).lower() if isinstance(told, bool) else told})"
    # in a narrow terminal a column beside the flags would be too narrow for a sentence
    indent = HELP_INDENT if width >= 2 * HELP_INDENT else 6
    lines = _lines(text, width - indent)
    flag = f"  --{item.name} {value}"
    lead = [flag] if len(flag) >= indent else []
    first = lines.pop(0) if not lead else None
    out = lead or [f"{flag:<{indent}}{first}"]
    return "\n".join(out + [" " * indent + line for line in lines])


def _name_of(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"{_name_of(get_args(kind)[0])} ..."
    return {str: "text", int: "n", float: "x", dict: "json"}.get(get_origin(kind) or kind, "text")


def _checked_settings(
    settings: dict[Any, Any], dataclass_types: Sequence[Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a file whose names are known and whose values have the types of their fields."""
    hints: dict[str, Any] = {}
    known = {item.name for dataclass_type in dataclass_types for item in fields(dataclass_type) if item.init}
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
    return settings


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that is no string may be given to a field of a dataclass with this type."""
    kinds = [get_origin(alternative) or alternative for alternative in _alternatives(hint)]
    if isinstance(value, list):
        return list in kinds and all(isinstance(item, str) for item in value)
    return type(value) in kinds or type(value) is int and float in kinds


def _instance(dataclass_type: type, namespace: Namespace) -> Any:
    names = {item.name for item in fields(dataclass_type) if item.init}
    return dataclass_type(**{name: value for name, value in vars(namespace).items() if name in names})


def _read_settings(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"cannot read the settings file {path}: {reason_of(error)}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"the settings file {path} is not valid YAML or JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"the settings file {path} must hold `flag: value` pairs, got {type(settings).__name__}")
    return settings


def _nearest(name: str, known: set[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    suggestion = f"did you mean `{prefix}{nearest[0]}`? " if nearest else ""
    return f"; {suggestion}run with --help for the flags"
