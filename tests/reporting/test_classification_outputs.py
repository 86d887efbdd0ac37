"""Counts and probabilities behind a classifier's outputs, against scikit-learn and SciPy."""

import numpy as np
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

from bert_toolkit.reporting.classification import confusion_counts
from bert_toolkit.reporting.decisions import class_probabilities


def test_confusion_counts_equal_those_of_scikit_learn():
    random = np.random.default_rng(0)
    for classes in (2, 3, 7):
        labels, predicted = random.integers(0, classes, size=(2, 200))
        expected = confusion_matrix(labels, predicted, labels=range(classes))
        np.testing.assert_array_equal(confusion_counts(labels, predicted, classes), expected)


def test_probabilities_equal_those_of_scipy_and_do_not_overflow():
    logits = np.array([[1.0, 2.0, 3.0], [1000.0, -1000.0, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(class_probabilities(logits), softmax(logits.astype(np.float64), axis=-1), rtol=1e-12)
