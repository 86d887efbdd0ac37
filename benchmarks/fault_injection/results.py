"""One job is one training: run it, or judge its stored history again, and give a row of the results file."""

from __future__ import annotations

import gc
import json
import math
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import set_seed

from benchmarks.fault_injection.controls import CONTROLS
from benchmarks.fault_injection.faults import FAULTS
from benchmarks.fault_injection.smdebug import other_thresholds
from benchmarks.fault_injection.stored_samples import rejudge, store
from benchmarks.fault_injection.trainings import MODELS, Run, train
from bert_toolkit import TrainingHealthCallback
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.judge import HealthJudge

TUNING_SEEDS, REPORTED_SEEDS = (0, 1, 2), (3, 7)


def build(kind: str, name: str, seed: int) -> Run:
    """The run of a job, broken where the job is a fault: `kind` is a model's name, or `control`."""
    set_seed(1000 + seed)
    if kind == "control":
        return CONTROLS[name][0](seed)
    run = MODELS[kind](seed)
    run.settings["model"] = kind
    FAULTS[name].inject(run)
    return run


def run_job(kind: str, name: str, seed: int, histories: str | None) -> dict[str, Any]:
    """Train one job and say what was found."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    run = build(kind, name, seed)
    gc.freeze()  # Trainer collects garbage several times; what is there by now stays
    health = TrainingHealthCallback(every_n_steps=run.every_n_steps)
    error = None
    try:
        seconds = train(run, seed, health)
    except Exception:
        seconds, error = math.nan, traceback.format_exc(limit=-3)
    if histories is not None and health.history is not None:
        store(health.history, Path(histories) / f"{kind}.{name}.{seed}.npz")
    return {
        "kind": kind,
        "name": name,
        "seed": seed,
        "place": list(run.place),
        "found": short(health.judge),
        "seconds": None if error else round(seconds, 1),
        "other": [] if health.history is None else other_thresholds(health.history),
        "samples": 0 if health.history is None else len(health.history),
        "error": error,
    }


def short(judge: HealthJudge) -> list[dict[str, Any]]:
    """What is scored of each finding; the words are left out."""
    kept = ("rule", "severity", "step", "samples", "symptom_of", "value", "parameters")
    return [{name: entry[name] for name in kept} for entry in judge.report()]


def all_jobs(seeds: list[int]) -> list[tuple[str, str, int]]:
    """Every (kind, name, seed)."""
    cells = [(model, name) for name, fault in FAULTS.items() for model in fault.models]
    cells += [("control", name) for name in CONTROLS]
    return [(*cell, seed) for seed in seeds for cell in cells]


def read_results(path: Path) -> dict[tuple[str, str, int], dict]:
    """The latest row of each job of a results file; none where there is no file yet."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["kind"], row["name"], row["seed"]): row for row in rows}


def replay_job(kind: str, name: str, seed: int, histories: str) -> dict[str, Any]:
    """Judge a stored history again, sample by sample, as the callback does."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    run = build(kind, name, seed)
    history = HealthHistory(run.model, run.settings["max_steps"])
    judge = rejudge(history, Path(histories) / f"{kind}.{name}.{seed}.npz")
    return {
        "kind": kind,
        "name": name,
        "seed": seed,
        "place": list(run.place),
        "found": short(judge),
        "other": other_thresholds(history),
        "seconds": None,
        "samples": len(history),
        "error": None,
    }
