"""Losses and accuracies of masked words and next sentences, as pure functions of sums and of held-out predictions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from bert_toolkit.ignored_label import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import EvalPrediction


def pretraining_scores(
    mlm_loss: float, mlm_right: float, masked: float, nsp_loss: float, nsp_right: float, sequences: float
) -> dict[str, float]:
    """Divide sums over any number of batches and processes into scores.

    Args:
        mlm_loss: Sum of the cross-entropy of the masked tokens, in nats.
        mlm_right: Number of masked tokens that were predicted right.
        masked: Number of masked tokens.
        nsp_loss: Sum of the cross-entropy of next sentences, in nats.
        nsp_right: Number of next sentences that were predicted right.
        sequences: Number of next sentences; 0 where they are not predicted.

    Returns:
        `mlm_loss` (nats per token), `mlm_accuracy`, `perplexity`, and with next sentences `nsp_loss` and
        `nsp_accuracy`.

    Examples:
        >>> pretraining_scores(mlm_loss=6.0, mlm_right=1, masked=4, nsp_loss=0.0, nsp_right=0, sequences=0)
        {'mlm_loss': 1.5, 'mlm_accuracy': 0.25, 'perplexity': 4.4816890703380645}
    """
    scores = {
        "mlm_loss": mlm_loss / masked,
        "mlm_accuracy": mlm_right / masked,
        "perplexity": math.exp(min(mlm_loss / masked, 700.0)),
    }
    if sequences:
        scores |= {"nsp_loss": nsp_loss / sequences, "nsp_accuracy": nsp_right / sequences}
    return scores


def losses_and_predictions(logits: Any, labels: Any) -> tuple[torch.Tensor, ...]:
    """Reduce logits to what the scores need, so that Trainer does not gather (pairs, length, vocabulary).

    For `Trainer(preprocess_logits_for_metrics=)`.

    Args:
        logits: (B, T, V) of a masked-LM model, or a tuple of that and (B, 2).
        labels: (B, T), or a tuple of that and (B,).

    Returns:
        Tuple of the cross-entropy of each token (B, T), 0 where nothing is predicted; the predicted ids (B, T); and,
        with next-sentence logits, these (B, 2).
    """
    words, *rest = logits if isinstance(logits, (tuple, list)) else (logits,)
    targets = labels[0] if isinstance(labels, (tuple, list)) else labels
    losses = cross_entropy(words.float().transpose(1, 2), targets, ignore_index=IGNORED_LABEL, reduction="none")
    return (losses, words.argmax(-1), *rest[:1])


def pretraining_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Return the scores on held-out pairs, for `Trainer(compute_metrics=)` after `losses_and_predictions`.

    Args:
        evaluation: What Trainer gathered.

    Returns:
        The scores of `pretraining_scores`, and `unigram_accuracy`: the fraction of the most frequent token among the
        predicted ones, which the best constant guess would score.
    """
    predictions: Any = evaluation.predictions
    labels: Any = evaluation.label_ids
    losses, predicted, *logits = predictions
    words = labels[0] if isinstance(labels, tuple) else labels
    masked = words != IGNORED_LABEL
    right = (predicted == words)[masked].sum()
    nsp = (0.0, 0, 0)
    if logits:
        rows = logits[0].astype(np.float64)
        log_probabilities = rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)
        nsp_loss = -np.take_along_axis(log_probabilities, labels[1][:, None], axis=1).sum()
        nsp = (float(nsp_loss), int((rows.argmax(-1) == labels[1]).sum()), len(rows))
    scores = pretraining_scores(float(losses[masked].sum(dtype=np.float64)), int(right), int(masked.sum()), *nsp)
    scores["unigram_accuracy"] = float(np.bincount(words[masked]).max() / masked.sum())
    return scores
