"""Accuracy and Matthews correlation of classifiers, from whole arrays, from Trainer, or batch by batch.

Everything rests on one small set of counts, `ClassificationCounts`: how often each class was predicted, how
often it was right, and how often it really occurred. Both metrics follow from it, and it adds up over batches.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bert_toolkit.errors import InputError
from bert_toolkit.ignored_label import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import EvalPrediction


def flat_accuracy(predictions: Any, labels: Any) -> float:
    """Return the fraction of labeled positions whose class is predicted right.

    Args:
        predictions: Logits `(..., classes)` or class ids shaped like `labels`; NumPy, torch (any device, any float
            type) or nested lists.
        labels: Class ids, `(examples,)` or `(examples, length)`; positions labeled -100 do not count.

    Returns:
        A value in [0, 1].

    Raises:
        InputError: NaN logits, shapes that do not fit, nothing labeled, or values that are not classes.

    Examples:
        >>> flat_accuracy([[2.0, -1.0], [0.3, 0.1], [-1.0, 1.0], [0.0, 4.0]], [0, 1, 1, -100])
        0.6666666666666666
        >>> flat_accuracy([0, 1, 1, 0], [0, 1, 0, 0])
        0.75
    """
    return ClassificationCounts.of(predictions, labels).accuracy


def matthews_correlation(predictions: Any, labels: Any) -> float:
    """Return the correlation of predicted and true classes: 1 perfect, 0 no better than a constant, -1 all wrong.

    Two or more classes (Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient"). Where it is undefined because all predictions or all labels are one class, it is 0.0, as in
    scikit-learn.

    Args:
        predictions: Logits `(..., classes)` or class ids shaped like `labels`; see `flat_accuracy`.
        labels: Class ids, `(examples,)` or `(examples, length)`; positions labeled -100 do not count.

    Returns:
        A value in [-1, 1].

    Raises:
        InputError: NaN logits, shapes that do not fit, nothing labeled, or values that are not classes.

    Examples:
        >>> matthews_correlation([0, 1, 1, 0, 1], [0, 1, 0, 0, 1])
        0.6666666666666666
        >>> matthews_correlation([1, 1, 1, 1, 1], [0, 1, 1, 1, 1])  # right four times of five, and knows nothing
        0.0
    """
    return ClassificationCounts.of(predictions, labels).matthews_correlation


def matthews_correlation_interval(
    predictions: Any, labels: Any, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile-bootstrap confidence interval of the Matthews correlation (Efron & Tibshirani 1993, ch. 13).

    Drawing n examples with replacement and counting the (predicted, true) pairs is one multinomial draw over the
    pairs that occur, so a resample costs as much as there are distinct pairs, however many examples there are.
    A resample with only one predicted or one true class counts as 0.0, as in `matthews_correlation`.

    Args:
        predictions: Logits `(..., classes)` or class ids shaped like `labels`; see `flat_accuracy`.
        labels: Class ids, `(examples,)` or `(examples, length)`; positions labeled -100 do not count.
        confidence: Fraction of resamples inside the interval, in (0, 1).
        resamples: Number of bootstrap resamples, at least 1.
        seed: Seed of the resampling; the same seed gives the same interval.

    Returns:
        Lower and upper end, each in [-1, 1].

    Raises:
        InputError: As `matthews_correlation`; also a confidence or number of resamples out of range.
    """
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must lie in (0, 1), got {confidence}")
    if resamples < 1:
        raise InputError(f"`resamples` must be at least 1, got {resamples}")
    predicted, actual = _class_id_pairs(predictions, labels)
    _require_labeled(len(actual))
    pairs, occurrences = np.unique(np.stack([predicted, actual], axis=1), axis=0, return_counts=True)
    n = len(predicted)
    # (resamples, pairs); squares of float64 counts are exact up to 94 million examples
    drawn = np.random.default_rng(seed).multinomial(n, occurrences / n, size=resamples).astype(np.float64)
    classes = np.unique(pairs)
    predicted_per_class = drawn @ (pairs[:, :1] == classes)  # (resamples, classes)
    actual_per_class = drawn @ (pairs[:, 1:] == classes)
    correct = drawn @ (pairs[:, 0] == pairs[:, 1])
    covariance = correct * n - (predicted_per_class * actual_per_class).sum(axis=1)
    predicted_variance = n * n - (predicted_per_class**2).sum(axis=1)
    actual_variance = n * n - (actual_per_class**2).sum(axis=1)
    scale = np.sqrt(predicted_variance * actual_variance)
    correlations = np.divide(covariance, scale, out=np.zeros(resamples), where=scale > 0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(correlations, [tail, 1 - tail])
    return float(low), float(high)


def compute_classification_metrics(eval_prediction: "EvalPrediction") -> dict[str, float]:
    """Return accuracy and Matthews correlation, for `Trainer(compute_metrics=compute_classification_metrics)`.

    Args:
        eval_prediction: What Trainer passes. Predictions may be a tuple whose first element is the logits (models
            that also return hidden states or attentions).

    Returns:
        `{"accuracy": ..., "matthews_correlation": ...}`; Trainer prefixes the keys with `eval_`.

    Raises:
        InputError: Regression or multi-label outputs, several label arrays, NaN logits, or nothing labeled.
    """
    return _counts_of_eval_prediction(eval_prediction).metrics()


class ClassificationMetrics:
    """The same metrics batch by batch, for `TrainingArguments(batch_eval_metrics=True)`: no logits are kept.

    Pass an instance as `Trainer(compute_metrics=ClassificationMetrics())`. It holds one count per class and starts
    afresh after the batch that Trainer marks as the last.

    Examples:
        >>> import torch
        >>> from transformers import EvalPrediction
        >>> metrics = ClassificationMetrics()
        >>> metrics(EvalPrediction(torch.tensor([[2.0, -1.0], [0.3, 0.1]]), torch.tensor([0, 1])))
        {}
        >>> metrics(EvalPrediction(torch.tensor([[-1.0, 1.0], [0.5, 0.2]]), torch.tensor([1, 0])), compute_result=True)
        {'accuracy': 0.75, 'matthews_correlation': 0.5773502691896258}
    """

    def __init__(self) -> None:
        """Start with no batch."""
        self.counts = ClassificationCounts()

    def __call__(self, eval_prediction: "EvalPrediction", compute_result: bool = False) -> dict[str, float]:
        """Add a batch.

        Args:
            eval_prediction: One batch, as for `compute_classification_metrics`; torch tensors on any device. A batch
                without any labeled position is accepted.
            compute_result: True with the last batch: return the metrics of all batches and start afresh.

        Returns:
            The metrics after the last batch, otherwise an empty dictionary.

        Raises:
            InputError: As `compute_classification_metrics`.
        """
        try:
            self.counts += _counts_of_eval_prediction(eval_prediction)
        except InputError:
            self.reset()
            raise
        if not compute_result:
            return {}
        counts = self.counts
        self.reset()
        return counts.metrics()

    def reset(self) -> None:
        """Forget every batch so far: needed only after an evaluation that was broken off."""
        self.counts = ClassificationCounts()


@dataclass(frozen=True)
class ClassificationCounts:
    """What accuracy and Matthews correlation need to know of a set of predictions; `+` joins two sets.

    Args:
        predicted: How often each class was predicted.
        actual: How often each class is the label.
        correct: How many predictions equal their label.
    """

    predicted: Mapping[int, int] = field(default_factory=dict)
    actual: Mapping[int, int] = field(default_factory=dict)
    correct: int = 0

    @classmethod
    def of(cls, predictions: Any, labels: Any) -> "ClassificationCounts":
        """Count logits or class ids against labels.

        Args:
            predictions: As for `flat_accuracy`.
            labels: As for `flat_accuracy`.

        Returns:
            The counts.

        Raises:
            InputError: As `flat_accuracy`, except that nothing labeled is accepted.
        """
        predicted, actual = _class_id_pairs(predictions, labels)
        return cls(_occurrences(predicted), _occurrences(actual), int((predicted == actual).sum()))

    def __add__(self, other: "ClassificationCounts") -> "ClassificationCounts":
        """The counts of both sets together."""
        return ClassificationCounts(
            Counter(self.predicted) + Counter(other.predicted),
            Counter(self.actual) + Counter(other.actual),
            self.correct + other.correct,
        )

    @property
    def total(self) -> int:
        """The number of labeled positions."""
        return sum(self.actual.values())

    @property
    def accuracy(self) -> float:
        """The fraction of labeled positions that are predicted right, from 0 to 1.

        Raises:
            InputError: Nothing is labeled.
        """
        _require_labeled(self.total)
        return self.correct / self.total

    @property
    def matthews_correlation(self) -> float:
        """The Matthews correlation, from -1 to 1; 0 where the predictions or the labels are all of one class.

        Raises:
            InputError: Nothing is labeled.
        """
        _require_labeled(self.total)
        # Python integers: exact at any number of examples
        n = self.total
        covariance = self.correct * n - sum(k * self.actual.get(c, 0) for c, k in self.predicted.items())
        predicted_variance = n * n - sum(k * k for k in self.predicted.values())
        actual_variance = n * n - sum(k * k for k in self.actual.values())
        if predicted_variance == 0 or actual_variance == 0:
            return 0.0
        return covariance / math.sqrt(predicted_variance * actual_variance)

    def metrics(self) -> dict[str, float]:
        """Return both metrics under the names that Trainer logs.

        Returns:
            `{"accuracy": ..., "matthews_correlation": ...}`.

        Raises:
            InputError: Nothing is labeled.
        """
        return {"accuracy": self.accuracy, "matthews_correlation": self.matthews_correlation}


def _require_labeled(total: int) -> None:
    if total == 0:
        raise InputError(
            f"no labeled example to score: there are no labels or all are {IGNORED_LABEL}; pass rows with labels"
        )


def _counts_of_eval_prediction(eval_prediction: "EvalPrediction") -> ClassificationCounts:
    predictions, labels = eval_prediction.predictions, eval_prediction.label_ids
    if labels is None:
        raise InputError("the evaluation data have no labels: metrics need a `labels` column")
    if isinstance(labels, tuple):
        if len(labels) != 1:
            raise InputError(
                f"classification metrics score one array of labels, got {len(labels)} (a model with several heads): "
                "choose one with `TrainingArguments(label_names=[...])` and `preprocess_logits_for_metrics`"
            )
        labels = labels[0]
    if isinstance(predictions, tuple):
        predictions = predictions[0]
    return ClassificationCounts.of(predictions, labels)


def _class_id_pairs(predictions: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true class ids of the labeled positions, each `(positions,)` of int64."""
    labels = _as_array(labels, "labels")
    if not isinstance(predictions, torch.Tensor):
        predictions = _as_array(predictions, "predictions")
    positions = tuple(labels.shape)
    if predictions.ndim == labels.ndim + 1 and tuple(predictions.shape[:-1]) == positions:
        classes = predictions.shape[-1]
        if classes < 2:
            raise InputError(
                f"predictions of shape {tuple(predictions.shape)} have one column, a regression output: "
                "classification metrics need class ids or one logit per class"
            )
        actual = _as_class_ids(labels, "labels").ravel()
        labeled = actual != IGNORED_LABEL
        predicted, has_nan = (part.ravel()[labeled] for part in _most_likely_class(predictions))
        actual = actual[labeled]
        if has_nan.any():
            raise InputError(
                f"{int(has_nan.sum())} of {has_nan.size} predictions hold NaN logits: the model has diverged or a "
                "computation overflowed; lower the learning rate or use bf16 or fp32"
            )
        outside = actual[(actual < 0) | (actual >= classes)]
        if outside.size:
            raise InputError(
                f"labels must lie in 0..{classes - 1} for logits of {classes} classes (or be {IGNORED_LABEL}, not "
                f"scored), got {int(outside[0])}"
                + ("; -1 marks hidden labels of a test set" if outside[0] == -1 else "")
            )
        return predicted, actual
    if tuple(predictions.shape) == positions:
        predictions = _as_array(predictions, "predictions")
        if predictions.ndim > 1 and "f" in (predictions.dtype.kind, labels.dtype.kind):
            raise InputError(
                f"predictions and labels are both {positions} with float values, a multi-label or regression output: "
                "classification metrics score exactly one class per position"
            )
        actual = _as_class_ids(labels, "labels").ravel()
        labeled = actual != IGNORED_LABEL
        return _as_class_ids(predictions.ravel()[labeled], "predictions"), actual[labeled]
    raise InputError(
        f"predictions of shape {tuple(predictions.shape)} do not fit labels of shape {positions}: expected class ids "
        f"of shape {positions} or logits of shape {(*positions, 'classes')}"
    )


def _most_likely_class(logits: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Index of the largest logit, and whether any logit is NaN, per position."""
    if isinstance(logits, torch.Tensor):  # on its own device: the logits of a large vocabulary stay there
        logits = logits.detach()
        return logits.argmax(-1).cpu().numpy(), logits.isnan().any(-1).cpu().numpy()
    if logits.dtype.kind not in "fiub":
        raise InputError(f"predictions must be numbers, got {logits.dtype}")
    return logits.argmax(-1), np.isnan(logits).any(-1)


def _as_array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name} must form a rectangular array: {error}") from error


def _as_class_ids(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise InputError(f"{name} must be class ids, got {values.dtype}")
    strange = values[~np.isfinite(values) | (values != np.floor(values))]
    if strange.size:
        raise InputError(
            f"{name} must be class ids (whole numbers), got {float(strange[0])!r}: "
            "scores, single logits and regression outputs are not scored as classes"
        )
    return values.astype(np.int64)


def _occurrences(class_ids: np.ndarray) -> dict[int, int]:
    return dict(zip(*(part.tolist() for part in np.unique(class_ids, return_counts=True)), strict=True))
