"""Everything that a run leaves in its output directory, read with nothing unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from bert_toolkit.errors import InputError
from bert_toolkit.health.findings_file import Case, FindingsFile
from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord, gradient_flow_scalars
from bert_toolkit.monitoring.parameter_roles import ParameterInfo, Role
from bert_toolkit.monitoring.record_file import load_records, read_arrays
from bert_toolkit.monitoring.update_ratios import UpdateRatioRecord, update_ratio_scalars
from bert_toolkit.run_page.predictions import Predictions, read_predictions
from bert_toolkit.run_page.run_record import RunRecord, numbers_logged, read_json, read_run_record

Read = TypeVar("Read")
Series = list[tuple[float, float]]
"""(step, value) of a number, the earliest first."""

GRADIENTS, UPDATES = "gradient_flow/mean/", "update_ratio/"


@dataclass
class RunFiles:
    """What the files of a run say.

    Args:
        folder: Output directory of the run.
        record: Command, versions, settings and log; empty where nobody wrote them.
        seen: What training health saw of optimizer and model, by name; empty where it was not watched.
        results: `results.json` of a recipe, empty for other runs.
        findings: Of training health; None where it was not watched.
        logged: Numbers that were logged, by name: `loss`, `learning_rate`, `eval_…`, ….
        gradients: Block to mean |gradient| of its weights, after clipping.
        updates: Block to the update ratio of its weights.
        predictions: Of the test rows, None where there are none.
        unread: What could not be read and why, a line for each file.
    """

    folder: Path
    record: RunRecord = field(default_factory=RunRecord)
    seen: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    findings: FindingsFile | None = None
    logged: Mapping[str, Series] = field(default_factory=dict)
    gradients: Mapping[str, Series] = field(default_factory=dict)
    updates: Mapping[str, Series] = field(default_factory=dict)
    predictions: Predictions | None = None
    unread: list[str] = field(default_factory=list)

    @property
    def cases(self) -> Sequence[Case]:
        """The errors and warnings that nothing else explains, then the notes."""
        own = [case for case in self.all_cases if case.symptom_of is None]
        return sorted(own, key=lambda case: case.finding.severity == "note")

    @property
    def all_cases(self) -> Sequence[Case]:
        """The cases of everything that was found, symptoms and notes included."""
        return [] if self.findings is None else list(self.findings.cases.values())

    @property
    def command(self) -> str:
        """The command that started the run; empty where it is not known."""
        return self.record.command or str(self.results.get("command", ""))

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of packages, by name; empty where they are not known."""
        versions = self.record.versions or self.results.get("versions")
        return versions if isinstance(versions, dict) else {}


def read_run(folder: Path) -> RunFiles:
    """Read what a run has left so far.

    Args:
        folder: Output directory of the run.

    Returns:
        What its files say; damaged ones are named in `unread`.

    Raises:
        InputError: No such folder, or one without any file of a run.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; pass the output directory of a run")
    run, monitoring = RunFiles(folder), folder / "monitoring"

    def part(path: Path, read: Callable[[Path], Read], otherwise: Read) -> Read:
        try:
            return read(path) if path.exists() else otherwise
        except InputError as error:
            run.unread.append(str(error))
            return otherwise

    run.record = part(monitoring / "run.json", read_run_record, RunRecord())
    nothing: Series = []
    no_health: tuple[dict[str, Any], Series] = {}, nothing
    run.seen, sampled_loss = part(monitoring / "training_health.npz", _health, no_health)
    run.results = part(folder / "results.json", read_json, {})
    run.findings = part(monitoring / "training_health.jsonl", FindingsFile.read, None)
    run.gradients = part(monitoring / "gradient_flow.npz", _gradients, {})
    no_updates: tuple[dict[str, Series], Series] = {}, nothing
    run.updates, rates = part(monitoring / "update_ratio.npz", _updates, no_updates)
    run.predictions = part(folder / "predictions.tsv", read_predictions, None)
    run.logged = _series(_log_history(run, part))
    if sampled_loss and "loss" not in run.logged:
        run.logged = {"loss": sampled_loss, **run.logged}
    if len(rates) > len(run.logged.get("learning_rate", [])):
        run.logged["learning_rate"] = rates
    if not any((run.record.command, run.results, run.findings, run.logged, run.gradients, run.updates)):
        damaged = f"; {'; '.join(run.unread)}" if run.unread else ""
        raise InputError(
            f"{folder} holds no file of a run: a run leaves monitoring/, results.json or checkpoints with "
            f"trainer_state.json; pass its output directory{damaged}"
        )
    return run


def _log_history(run: RunFiles, part: Callable[..., Any]) -> Sequence[Mapping[str, float]]:
    """The longest log among those of the callbacks, the recipe, Trainer and its newest checkpoint."""
    places = [run.folder / "trainer_state.json", *_checkpoint_states(run.folder)]
    states = [part(path, read_json, {}) for path in places]
    logs = [numbers_logged(content.get("log_history")) for content in (run.results, *states)]
    return max([run.record.log_history, *logs], key=len)


def _checkpoint_states(folder: Path) -> list[Path]:
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*")]
    newest = max(((int(match[1]), path) for match, path in found if match), default=None)
    return [] if newest is None else [newest[1] / "trainer_state.json"]


def _series(log_history: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name not in ("step", "epoch") and not name.startswith(("gradient_flow/", "update_ratio/")):
                series.setdefault(name, []).append((entry["step"], value))
    return series


def _gradients(path: Path) -> dict[str, Series]:
    parameters = _parameters(path)
    records = load_records(path, GradientFlowRecord)
    return _by_block(
        ((record.step, gradient_flow_scalars(record, parameters)) for record in records), GRADIENTS, parameters
    )


def _updates(path: Path) -> tuple[dict[str, Series], Series]:
    """The ratios by block, without steps of rate 0, and the learning rate of each sampled step; short runs log few."""
    parameters = _parameters(path)
    records = load_records(path, UpdateRatioRecord)
    rates: Series = [(record.step, record.learning_rate) for record in records if np.isfinite(record.learning_rate)]
    scalars = ((of.step, update_ratio_scalars(of, parameters)) for of in records if not of.nothing_can_move)
    return _by_block(scalars, UPDATES, parameters), rates


def _by_block(
    scalars: Iterator[tuple[int, Mapping[str, float]]], prefix: str, parameters: Mapping[str, ParameterInfo]
) -> dict[str, Series]:
    series: dict[str, Series] = {info.block: [] for info in parameters.values()}
    for step, values in scalars:
        for block, points in series.items():
            points.append((step, values.get(f"{prefix}{block}", float("nan"))))
    return {block: points for block, points in series.items() if not np.isnan([value for _, value in points]).all()}


def _parameters(path: Path) -> dict[str, ParameterInfo]:
    """Parameters as the record file describes them."""
    arrays = read_arrays(path)
    names, roles, blocks = (arrays.get(key, np.zeros(0)) for key in ("names", "roles", "blocks"))
    if not len(names) == len(roles) == len(blocks) or names.ndim != 1:
        raise InputError(f"{path} is damaged: it does not describe each of its parameters")
    return {
        str(name): ParameterInfo(str(name), cast(Role, str(role)), str(block), str(name), True)
        for name, role, block in zip(names, roles, blocks, strict=True)
    }


def _health(path: Path) -> tuple[dict[str, Any], Series]:
    """What was seen of optimizer and model, and the loss of each sampled step; empty where none was seen."""
    arrays = read_arrays(path)
    try:
        seen = json.loads(str(arrays.get("about", np.array("{}")))).get("settings", {})
        seen = {name: value for name, value in seen.items() if name != "planned_rates"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged, it does not tell of optimizer and model: {error}") from error
    steps, losses = (arrays.get(key, np.zeros(0)) for key in ("step", "loss"))
    if steps.ndim != 1 or steps.shape != losses.shape or losses.dtype.kind != "f":
        raise InputError(f"{path} is damaged: it does not hold a loss for each step")
    return seen, list(zip(steps.tolist(), losses.tolist(), strict=True)) if np.isfinite(losses).any() else []
