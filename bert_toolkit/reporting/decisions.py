"""What logits say in the words of the labels, for one class per row, several at once, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_toolkit.data.labels import MULTI, REGRESSION

LABEL_SEPARATOR = "; "


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, in float64.

    Args:
        logits: (n, classes).

    Returns:
        Probabilities (n, classes).
    """
    powers = np.exp(np.asarray(logits, dtype=np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def label_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid in float64.

    Args:
        logits: Of any shape.

    Returns:
        Probabilities of that shape.
    """
    halves = np.asarray(logits, dtype=np.float64) / 2
    return (1 + np.tanh(halves)) / 2


def decision_columns(
    logits: np.ndarray, label_names: Sequence[str], problem_type: str, threshold: float = 0.5
) -> dict[str, Sequence[Any]]:
    """Return columns for a table of predictions.

    Args:
        logits: (n, classes), or (n, 1) for regression.
        label_names: Name of each class.
        problem_type: As in the configuration of the model.
        threshold: Probability from which a label holds, where several may.

    Returns:
        `prediction` and `probability` of the likeliest class; or `prediction`, the names of the labels that hold with
        `LABEL_SEPARATOR` between them, and `probability of …` for each label; or `prediction`, a number.
    """
    if problem_type == REGRESSION:
        return {"prediction": logits[:, 0].astype(np.float64).tolist()}
    if problem_type == MULTI:
        probabilities = label_probabilities(logits)
        return {
            "prediction": join_labels(probabilities >= threshold, label_names),
            **{f"probability of {name}": probabilities[:, i].tolist() for i, name in enumerate(label_names)},
        }
    return {
        "prediction": [label_names[label] for label in logits.argmax(-1)],
        "probability": class_probabilities(logits).max(-1).tolist(),
    }


def label_column(labels: np.ndarray, label_names: Sequence[str], problem_type: str) -> Sequence[Any]:
    """Return true labels in the form of the `prediction` of `decision_columns`.

    Args:
        labels: (n,), or (n, classes) of 0 and 1.
        label_names: Name of each class.
        problem_type: As in the configuration of the model.

    Returns:
        A value per row.
    """
    if problem_type == REGRESSION:
        return labels.astype(np.float64).ravel().tolist()
    if problem_type == MULTI:
        return join_labels(labels > 0, label_names)
    return [label_names[label] for label in labels]


def join_labels(chosen: np.ndarray, label_names: Sequence[str]) -> list[str]:
    """Return the names of the labels of each row.

    Args:
        chosen: Booleans (n, classes).
        label_names: Name of each class.

    Returns:
        `n` strings, with `LABEL_SEPARATOR` between the names.
    """
    return [LABEL_SEPARATOR.join(label_names[i] for i in row.nonzero()[0]) for row in chosen]
