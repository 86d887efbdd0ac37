"""The file `monitoring/run.json`: the settings of a run, its command, its versions and what it has logged so far."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.files import replaced_at_once
from bert_toolkit.provenance import command_line, package_versions

if TYPE_CHECKING:
    from transformers.training_args import TrainingArguments

FILE = Path("monitoring") / "run.json"


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says.

    Args:
        command: What started the run.
        versions: Package to version.
        settings: Trainer's arguments by name; empty for a loop without Trainer.
        log_history: What was logged, each entry with its `step`.
    """

    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    log_history: Sequence[Mapping[str, float]] = ()


def write_run_record(
    output_dir: Path, arguments: TrainingArguments | None, log_history: Sequence[Mapping[str, Any]]
) -> None:
    """Write the record whole or not at all.

    Args:
        output_dir: Output directory of the run.
        arguments: Trainer's arguments, whose tokens are left out; None without Trainer.
        log_history: What was logged so far, each entry with its `step`.

    Raises:
        OSError: The file cannot be written.
    """
    record = {
        "command": command_line(),
        "versions": package_versions(),
        "settings": {} if arguments is None else arguments.to_dict(),
        "log_history": list(log_history),
    }
    with replaced_at_once(output_dir / FILE) as partial:
        partial.write_text(json.dumps(record, default=str), encoding="utf-8")


def read_run_record(path: Path) -> RunRecord:
    """Read a record.

    Args:
        path: The file.

    Returns:
        The record.

    Raises:
        InputError: No such file, or no such record.
    """
    content = read_json(path)
    command, versions, settings = (content.get(key) for key in ("command", "versions", "settings"))
    if not isinstance(command, str) or not isinstance(versions, dict) or not isinstance(settings, dict):
        raise InputError(f"{path} is damaged: it lacks the command, versions or settings of a run")
    return RunRecord(command, versions, settings, numbers_logged(content.get("log_history")))


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        InputError: No such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, it holds no JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def numbers_logged(log_history: object) -> list[dict[str, float]]:
    """Return the numbers of a log history, whatever else it holds.

    Args:
        log_history: Of a file; anything.

    Returns:
        The entries that have a step, each with its finite or infinite numbers; NaN where a number was NaN.
    """
    entries = log_history if isinstance(log_history, list) else []
    return [
        {name: float(value) for name, value in entry.items() if _is_number(value)}
        for entry in entries
        if isinstance(entry, dict) and _is_number(entry.get("step")) and math.isfinite(entry["step"])
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
