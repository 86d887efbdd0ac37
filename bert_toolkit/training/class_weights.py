"""A loss in which rare classes count more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.data.labels import SINGLE
from bert_toolkit.errors import InputError

CLASS_WEIGHTS = ("none", "balanced")


def class_weighted_loss(
    corpus: CorpusSplits, class_weights: str, label_smoothing: float = 0.0
) -> Callable[..., Tensor] | None:
    """Return the loss of `--class_weights`, for `Trainer(compute_loss_func=)`.

    Balanced weights are those of scikit-learn: rows / (classes x rows of the class), so that every class weighs the
    same over the training rows and the mean weight is 1.

    Args:
        corpus: Its training rows are counted.
        class_weights: `none` or `balanced`.
        label_smoothing: Of Trainer, which does not apply it to a loss of one's own.

    Returns:
        The function, None where no weights are asked for.

    Raises:
        InputError: Another word, labels that are not one class per text, or a class without a training row.
    """
    if class_weights not in CLASS_WEIGHTS:
        raise InputError(f"`class_weights` must be {' or '.join(CLASS_WEIGHTS)}, got {class_weights}")
    if class_weights == "none":
        return None
    if corpus.problem_type != SINGLE:
        raise InputError(f"`class_weights` must be none for {corpus.problem_type}, got {class_weights}")
    counts = np.bincount(corpus.train["label"][:], minlength=len(corpus.label_names))
    if not counts.all():
        empty = corpus.label_names[int(counts.argmin())]
        raise InputError(f"`class_weights` balanced needs training rows of every class; {empty!r} has none")
    weights = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"].float()
        total = F.cross_entropy(
            logits, labels, weights.to(logits.device), reduction="sum", label_smoothing=label_smoothing
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss
