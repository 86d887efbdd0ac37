"""Scores of several labels at once and of regression, for Trainer; needs the `recipes` extra (scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bert_toolkit.errors import InputError
from bert_toolkit.metrics import compute_classification_metrics

if TYPE_CHECKING:
    from transformers import EvalPrediction


def compute_multi_label_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Return micro F1 over all decisions, macro F1 over the labels, and the fraction of rows with every label right.

    A label holds where its logit is at least 0, a probability of one half. The F1 of a label that no row has and
    none was given is 0.

    Args:
        eval_prediction: Logits (n, labels) and labels of 0 and 1 (n, labels).

    Returns:
        `f1_micro`, `f1_macro` and `exact_match`, each in [0, 1].

    Raises:
        InputError: Logits that are not finite.
    """
    from sklearn.metrics import accuracy_score, f1_score

    logits, labels = _finite_predictions(eval_prediction)
    predicted, labels = logits >= 0, labels > 0
    return {
        "f1_micro": float(f1_score(labels, predicted, average="micro", zero_division=0)),
        "f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "exact_match": float(accuracy_score(labels, predicted)),
    }


def compute_regression_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Return R² (fraction of the variance explained), both correlations, and errors in the unit of the labels.

    A correlation with constant predictions or labels is undefined and counts as 0.

    Args:
        eval_prediction: Predictions (n, 1) and labels (n,).

    Returns:
        `r2`, `pearson`, `spearman`, `root_mean_squared_error` and `mean_absolute_error`. `r2` is 0 where all labels
        are equal.

    Raises:
        InputError: Predictions that are not finite.
    """
    from scipy.stats import rankdata

    predictions, labels = _finite_predictions(eval_prediction)
    predicted, actual = predictions.astype(np.float64).ravel(), labels.astype(np.float64).ravel()
    errors = predicted - actual
    variance = actual.var()
    return {
        "r2": float(1 - np.square(errors).mean() / variance) if variance else 0.0,
        "pearson": _correlation(predicted, actual),
        "spearman": _correlation(rankdata(predicted), rankdata(actual)),
        "root_mean_squared_error": float(np.sqrt(np.square(errors).mean())),
        "mean_absolute_error": float(np.abs(errors).mean()),
    }


# By `problem_type` of a transformers configuration: what Trainer computes, the score that chooses the best checkpoint,
# and the scores to draw; more is better.
METRICS = {
    "single_label_classification": (
        compute_classification_metrics,
        "matthews_correlation",
        ["matthews_correlation", "accuracy"],
    ),
    "multi_label_classification": (compute_multi_label_metrics, "f1_micro", ["f1_micro", "f1_macro", "exact_match"]),
    "regression": (compute_regression_metrics, "r2", ["r2", "pearson", "spearman"]),
}


def class_scores(labels: np.ndarray, predicted: np.ndarray, label_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall and F1 of each class, 0 where undefined, and the number of its rows.

    Args:
        labels: True class ids (n,), or 0 and 1 for each label (n, classes).
        predicted: Likewise.
        label_names: Name of each class.

    Returns:
        Class name to `precision`, `recall`, `f1` and `rows`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predicted, labels=range(len(label_names)), zero_division=0)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "rows": int(rows)}
        for name, precision, recall, f1, rows in zip(label_names, *columns, strict=True)
    }


def _finite_predictions(eval_prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = _one_array(eval_prediction.predictions), _one_array(eval_prediction.label_ids)
    broken = int((~np.isfinite(predictions)).any(axis=-1).sum())
    if broken:
        raise InputError(
            f"{broken} of {len(predictions)} predictions hold NaN or infinite logits: the model has diverged or a "
            "computation overflowed; lower the learning rate or use bf16 or fp32"
        )
    return predictions, labels


def _one_array(part: np.ndarray | tuple | list) -> np.ndarray:
    if isinstance(part, list):  # one entry a batch, under `eval_do_concat_batches=False`
        return np.concatenate([_one_array(batch) for batch in part])
    return part[0] if isinstance(part, tuple) else part


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
