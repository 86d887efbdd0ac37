"""Scores on rows that were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from benchmarks.fault_injection.healthy_programs.program import Score


@torch.no_grad()
def predictions(model: nn.Module, rows: Sequence[Any], collate: Callable[[list], dict], batch: int = 64) -> np.ndarray:
    """Logits of the model in evaluation mode, one row per example."""
    was_training = model.training
    model.eval()
    logits = []
    for start in range(0, len(rows), batch):
        inputs = collate([rows[i] for i in range(start, min(start + batch, len(rows)))])
        output = model(**inputs)
        logits.append((output["logits"] if isinstance(output, dict) else output[1]).float().numpy())
    model.train(was_training)
    return np.concatenate(logits)


def accuracy(model: nn.Module, rows: Sequence[Any], collate: Callable[[list], dict]) -> float:
    """Share of rows with the right class."""
    labels = np.array([int(row["labels"]) for row in rows])
    return float((predictions(model, rows, collate).argmax(-1) == labels).mean())


def held_out_accuracy(rows: Sequence[Any], bound: float) -> Callable[[Trainer], Score]:
    """Score: accuracy of a trainer's model on these rows, which must reach the bound."""

    def measure(trainer: Trainer) -> Score:
        value = accuracy(trainer.model, rows, trainer.data_collator)
        return Score("held-out accuracy", value, bound, higher=True)

    return measure
