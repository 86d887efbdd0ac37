"""What was sampled of a run, kept so that the rules of another day can judge it without training again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from bert_toolkit.errors import InputError
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.health.settings import RunSettings


def store(history: HealthHistory, path: Path) -> None:
    """Write everything that the rules look at.

    Args:
        history: Of a run that has ended.
        path: An npz file; what it has no place for goes to a JSON file beside it.
    """
    history.save(path)
    beside = {
        "last_step": history.last_step,
        "evaluations": history.evaluations,
        "evaluated_in_training_mode": history.evaluated_in_training_mode,
    }
    path.with_suffix(".json").write_text(json.dumps(beside), encoding="utf-8")


def rejudge(history: HealthHistory, path: Path) -> HealthJudge:
    """What today's rules find in stored samples, looked at one after another as in training.

    Args:
        history: Of the same program, whose names and roles count; its samples are replaced.
        path: What `store` wrote.

    Returns:
        The judge with all cases; the history shows all samples again.

    Raises:
        InputError: The file is missing, damaged or of another model.
    """
    if not history.load(path, sys.maxsize):
        raise InputError(f"{path} holds samples of another model; run the program again")
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
    beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    history.settings = RunSettings.from_json(about["settings"])
    history.places = {name: tuple(places) for name, places in about["places"].items()}
    history.last_step = beside["last_step"]
    evaluations = [(step, metrics) for step, metrics in beside["evaluations"]]
    judge, full = HealthJudge(), len(history)
    history.shorten(0)
    history.evaluations, history.evaluated_in_training_mode = [], False
    judge.judge_start(history)
    for length in range(1, full + 1):
        history.shorten(length)
        history.evaluations = [entry for entry in evaluations if entry[0] < history.now]
        history.evaluated_in_training_mode = bool(history.evaluations) and beside["evaluated_in_training_mode"]
        judge.judge(history)
    return judge
