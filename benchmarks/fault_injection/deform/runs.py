"""One run is one training: clean or with a mutant, watched, scored, and judged again from what was stored."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments, set_seed

from benchmarks.fault_injection.deform.mutants import CLEAN, Mutant
from benchmarks.fault_injection.deform.predictor import Predictor
from benchmarks.fault_injection.deform.subjects import SUBJECTS, Subject, is_held_out
from benchmarks.fault_injection.deform.texts import TASKS, Sources, Task, collate
from benchmarks.fault_injection.smdebug import other_thresholds
from bert_toolkit import TrainingHealthCallback
from bert_toolkit.errors import InputError
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.health.settings import RunSettings

EVERY_N_STEPS, STEPS_PER_EPOCH = 2, 30
SEEDS = (42, 123, 456, 789, 101112)
"""The catalogue's own."""


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        subject: Name of the model.
        task: Name of the task.
        mutant: None for a clean run.
        seed: Of weights, rows and dropout; clean and mutated runs of a seed share all three.
    """

    subject: str
    task: str
    mutant: Mutant | None
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells its row from others."""
        return (self.subject, self.task, self.mutant.name if self.mutant else CLEAN, self.seed)

    @property
    def held_out(self) -> bool:
        """Whether nobody who writes rules may look at it."""
        return is_held_out(self.subject, self.task)

    def history(self, folder: Path) -> Path:
        """Where its samples are stored."""
        return folder / f"{'.'.join(map(str, self.key))}.npz"


class WatchedTrainer(Trainer):
    """Trainer that hands inputs and outputs of each step to the catalogue's own callback, as its pipeline does."""

    def __init__(self, predictor: Predictor | None, **kwargs: Any) -> None:
        self.predictor = predictor
        super().__init__(**kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss."""
        outputs = model(**inputs)
        if self.predictor is not None:
            self.predictor.note(inputs, outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def score(model: nn.Module, rows: list[dict], task: Task) -> float:
    """Accuracy of a classifier, mean loss per token of a language model."""
    model.eval()
    total, weight = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), 50):
            batch = collate(rows[start : start + 50])
            output = model(**batch)
            if task.classes:
                total += float((output.logits.argmax(-1) == batch["labels"]).sum())
                weight += len(batch["labels"])
            else:
                tokens = int((batch["labels"][:, 1:] != -100).sum())
                total += float(output.loss) * tokens
                weight += tokens
    return total / weight


def classes(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Predicted classes; the predictor has the model return attention weights, of another length in each batch."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """What the predictor reads of an evaluation."""
    return {"accuracy": float(np.mean(prediction.predictions == prediction.label_ids))}


def arguments(subject: Subject, seed: int, folder: str) -> TrainingArguments:
    """How the subject is trained."""
    return TrainingArguments(
        output_dir=folder,
        seed=seed,
        max_steps=subject.steps,
        learning_rate=subject.rate,
        per_device_train_batch_size=subject.batch,
        per_device_eval_batch_size=50,
        eval_strategy="epoch",
        warmup_steps=subject.steps // 10,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        logging_steps=10,
        save_strategy="no",
        remove_unused_columns=False,  # some mutants wrap the whole model and hide its signature
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def run(job: Job, sources: Sources, histories: Path, with_predictor: bool) -> dict[str, Any]:
    """Train, and say what was seen.

    Returns:
        A row of the results file; `score` is None where training ended with an error, infinite where it is no number.
    """
    subject, task = SUBJECTS[job.subject], TASKS[job.task]
    train, test = subject.rows(task, sources)
    set_seed(job.seed)
    model = subject.build(task, sources)
    health = TrainingHealthCallback(every_n_steps=EVERY_N_STEPS)
    predictor = Predictor(subject.scope) if with_predictor else None
    value, error, seconds = None, None, 0.0
    with tempfile.TemporaryDirectory() as folder:
        trainer = WatchedTrainer(
            predictor,
            model=model,
            args=arguments(subject, job.seed, folder),
            train_dataset=train[: STEPS_PER_EPOCH * subject.batch],
            eval_dataset=test[:100],
            compute_metrics=accuracy if task.classes else None,
            preprocess_logits_for_metrics=classes,
            data_collator=collate,
            callbacks=[health, *([predictor.callback] if predictor else [])],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            with job.mutant.injector(model) if job.mutant else nullcontext():
                set_seed(job.seed)
                start = time.perf_counter()
                trainer.train()
                seconds = time.perf_counter() - start
                value = score(model, test, task)
        except (ValueError, RuntimeError) as failure:
            error = str(failure).splitlines()[0]
    samples = 0
    if health.history is not None:
        samples = len(health.history)
        health.history.save(job.history(histories))
    return {
        "model": job.subject,
        "task": job.task,
        "mutant": job.key[2],
        "seed": job.seed,
        "held_out": job.held_out,
        "score": value if value is None or math.isfinite(value) else None,
        "finite": value is None or math.isfinite(value),
        "findings": findings(health.judge),
        "smdebug": [] if health.history is None else other_thresholds(health.history),
        "predictor": predictor.verdict() if predictor else None,
        "samples": samples,
        "seconds": round(seconds, 2),
        "error": error,
    }


def findings(judge: HealthJudge) -> list[dict[str, Any]]:
    """What is scored of each finding; of the parameters the first eight are kept."""
    kept = ("rule", "severity", "step", "samples", "symptom_of", "value", "seen")
    return [
        {name: entry[name] for name in kept}
        | {"parameters": entry["parameters"][:8], "count": len(entry["parameters"])}
        for entry in judge.report()
    ]


def rejudge(row: dict[str, Any], model: nn.Module, path: Path) -> dict[str, Any]:
    """The row with what the rules of today find in the stored samples, one after another as in training.

    Args:
        row: Of the results file.
        model: The same model, with whatever weights.
        path: The stored samples.

    Returns:
        The new row.

    Raises:
        InputError: The file is damaged or was written by a version that stored other statistics.
    """
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
    history = HealthHistory(model, SUBJECTS[row["model"]].steps, RunSettings.from_json(about["settings"]))
    if not history.load(path, sys.maxsize):
        raise InputError(f"{path} is not of {row['model']}")
    history.places = {name: tuple(places) for name, places in about["places"].items()}
    judge, full = HealthJudge(), len(history)
    history.shorten(0)
    judge.judge_start(history)
    for length in range(1, full + 1):
        history.shorten(length)
        judge.judge(history)
    return {**row, "findings": findings(judge), "smdebug": other_thresholds(history)}
