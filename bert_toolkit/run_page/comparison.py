"""Two runs side by side: which settings differ, and from which step their numbers part."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from bert_toolkit.run_page.run_files import RunFiles, Series

CLEARLY = 0.01
"""Relative difference from which two numbers part clearly."""

LONGEST_VALUE = 200

# These name a run or a moment; they differ between any two runs and explain nothing.
OF_EVERY_RUN = ("output_dir", "run_name", "logging_dir", "resume_from_checkpoint", "overwrite_output_dir")
OUTCOMES = ("training seconds", "tokens per second", "training health", "versions", "command", "log_history")
# What the fields of `RunSettings` are called; of several values the name of each follows.
NAMES = {
    "accumulation": "batches per optimizer step",
    "activations": "activation of",
    "adapter_scaling": "scaling of adapter",
    "both_ways": "attends to later tokens",
    "config": "model config:",
    "default_dropouts": "usual dropouts of the model class",
    "dropouts": "dropout of",
    "model_class": "model class",
    "name_or_path": "model config from",
    "norm_eps": "epsilon of",
    "special_tokens": "id of token",
    "tied": "output layer tied to the embeddings",
    "unheld": "parameters that the optimizer does not hold",
}
SPEED = ("runtime", "per_second", "train_loss", "total_flos", "mfu", "tokens")


@dataclass(frozen=True)
class Parting:
    """Where a number of two runs parts.

    Args:
        name: Of the number.
        compared: Steps that both runs have.
        first: First of them at which the numbers differ at all, None where they never do.
        clearly: First at which they differ by more than `CLEARLY`, None likewise.
        values: The two numbers at `clearly`, else at `first`; None where they never differ.
    """

    name: str
    compared: int
    first: float | None
    clearly: float | None
    values: tuple[float, float] | None


def differing_settings(one: RunFiles, other: RunFiles) -> dict[str, tuple[str, str]]:
    """Return settings, facts and versions that differ.

    Args:
        one: A run.
        other: Another.

    Returns:
        Name to the value in each run; `—` where a run does not tell it.
    """
    left, right = _settings(one), _settings(other)
    names = list(dict.fromkeys((*left, *right)))
    values = {name: (left.get(name, "—"), right.get(name, "—")) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def partings(one: RunFiles, other: RunFiles) -> list[Parting]:
    """Return where two runs part in each number that both have, the earliest parting first.

    Args:
        one: A run.
        other: Another.

    Returns:
        One for each number with a step in common; measures of speed are left out.
    """
    pairs: dict[str, tuple[Series, Series]] = {
        name: (points, other.logged[name])
        for name, points in one.logged.items()
        if name in other.logged and not any(word in name for word in SPEED)
    }
    for meaning, left, right in (
        ("gradient", one.gradients, other.gradients),
        ("update ratio", one.updates, other.updates),
    ):
        pairs |= {f"{meaning} {block}": (left[block], right[block]) for block in left if block in right}
    found = [parting(name, *pair) for name, pair in pairs.items()]
    return sorted(
        (item for item in found if item.compared), key=lambda item: (_order(item.clearly), _order(item.first))
    )


def parting(name: str, left: Series, right: Series) -> Parting:
    """Return where two series part.

    Args:
        name: Of the number.
        left: Of a run.
        right: Of another.

    Returns:
        The steps; a step that only one of them has is left out. Two NaN are equal.
    """
    by_step = dict(right)
    common = [(step, value, by_step[step]) for step, value in left if step in by_step]
    first = next((at for at in common if not _same(at[1], at[2], 0.0)), None)
    clearly = next((at for at in common if not _same(at[1], at[2], CLEARLY)), None)
    shown = clearly or first
    return Parting(
        name,
        len(common),
        first[0] if first else None,
        clearly[0] if clearly else None,
        (shown[1], shown[2]) if shown else None,
    )


def _same(left: float, right: float, tolerance: float) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return left == right or abs(left - right) <= tolerance * max(abs(left), abs(right))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"


def _order(step: float | None) -> float:
    return math.inf if step is None else step


def _settings(run: RunFiles) -> dict[str, str]:
    facts = {name: value for name, value in run.results.items() if isinstance(value, str) and name not in OUTCOMES}
    versions = {f"version of {package}": version for package, version in run.versions.items()}
    arguments = _flat(run.record.settings)
    # A recipe's own flags are no arguments of Trainer's; the command has those that were given.
    flags = {name: value for name, value in _flags(run.record.command).items() if name not in arguments}
    given = {**facts, **arguments, **flags}
    told = {**given, **_seen(run.seen), **given, **versions}  # given first, and as it was given
    return {name: _short(str(value)) for name, value in told.items()}


def _seen(settings: Mapping[str, object]) -> dict[str, object]:
    """What training health saw of optimizer and model, by names for people."""
    named = {}
    for key, value in _flat(settings).items():
        group = re.fullmatch(r"groups\.(\d{1,9})\.(?:values\.)?(.+)", key)
        kind, _, of = key.partition(".")
        name = f"parameter group {int(group[1]) + 1}: {group[2]}" if group else f"{NAMES.get(kind, kind)} {of}".strip()
        named[name] = value
    return named


def _flags(command: str) -> dict[str, str]:
    """The flags of a command line with their values, an empty one where a flag stands alone."""
    try:
        words = shlex.split(command)
    except ValueError:  # cut or edited
        return {}
    flags: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            flags[name] = value
        elif name:
            flags[name] = f"{flags[name]} {word}".strip()
    return {flag: value for flag, value in flags.items() if flag not in OF_EVERY_RUN}


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name not in OF_EVERY_RUN:
            flat[f"{prefix}{name}"] = value
    return flat
