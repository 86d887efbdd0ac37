"""Predictions in words agree with SciPy's functions."""

import numpy as np
from scipy.special import expit, softmax

from bert_toolkit.reporting.decisions import decision_columns, label_column, label_probabilities

NAMES = ["a", "b; c", "d"]
LOGITS = np.random.default_rng(0).normal(scale=4, size=(50, 3)).astype(np.float32)


def test_label_probabilities_equal_those_of_scipy_and_do_not_overflow():
    logits = np.array([-1e4, -50.0, -1e-8, 0.0, 3.0, 1e4])
    np.testing.assert_allclose(label_probabilities(logits), expit(logits), rtol=1e-9, atol=1e-15)


def test_one_class():
    columns = decision_columns(LOGITS, NAMES, "single_label_classification")
    assert list(columns) == ["prediction", "probability"]
    assert columns["prediction"] == [NAMES[i] for i in LOGITS.argmax(1)]
    np.testing.assert_allclose(columns["probability"], softmax(LOGITS.astype(float), axis=1).max(1))
    assert label_column(np.array([2, 0]), NAMES, "single_label_classification") == ["d", "a"]


def test_several_labels():
    columns = decision_columns(LOGITS, NAMES, "multi_label_classification", threshold=0.8)
    for row, logits in enumerate(LOGITS):
        held = [name for name, logit in zip(NAMES, logits, strict=True) if expit(logit) >= 0.8]
        assert columns["prediction"][row] == "; ".join(held)
    np.testing.assert_allclose(columns["probability of b; c"], expit(LOGITS[:, 1].astype(float)), rtol=1e-6)
    labels = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert label_column(labels, NAMES, "multi_label_classification") == ["a; d", ""]


def test_numbers():
    assert decision_columns(LOGITS[:, :1], ["x"], "regression") == {"prediction": LOGITS[:, 0].tolist()}
    assert label_column(np.array([0.5, 2.0], dtype=np.float32), ["x"], "regression") == [0.5, 2.0]
