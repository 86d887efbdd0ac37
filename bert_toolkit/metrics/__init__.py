"""Every score: of classifiers, of several labels at once, of regression, and of pre-training."""

from bert_toolkit.ignored_label import IGNORED_LABEL
from bert_toolkit.metrics.classification import (
    ClassificationCounts,
    ClassificationMetrics,
    compute_classification_metrics,
    flat_accuracy,
    matthews_correlation,
    matthews_correlation_interval,
)

__all__ = [
    "IGNORED_LABEL",
    "ClassificationCounts",
    "ClassificationMetrics",
    "compute_classification_metrics",
    "flat_accuracy",
    "matthews_correlation",
    "matthews_correlation_interval",
]
