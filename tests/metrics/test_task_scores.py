"""Scores of several labels and of regression, against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import classification_report, f1_score, mean_absolute_error, r2_score, root_mean_squared_error
from transformers import EvalPrediction

from bert_toolkit.errors import InputError
from bert_toolkit.metrics.task_scores import (
    METRICS,
    class_scores,
    compute_multi_label_metrics,
    compute_regression_metrics,
)

RANDOM = np.random.default_rng(0)


def test_several_labels():
    labels, logits = RANDOM.integers(0, 2, (100, 4)).astype(np.float32), RANDOM.normal(size=(100, 4))
    scores = compute_multi_label_metrics(EvalPrediction(logits, labels))
    for average in ("micro", "macro"):
        assert scores[f"f1_{average}"] == pytest.approx(f1_score(labels, logits >= 0, average=average))
    assert scores["exact_match"] == np.mean(
        [(row >= 0).tolist() == (of > 0).tolist() for row, of in zip(logits, labels, strict=True)]
    )


def test_regression():
    labels = RANDOM.normal(size=200)
    predictions = (labels + RANDOM.normal(scale=0.5, size=200)).round(1)
    scores = compute_regression_metrics(EvalPrediction(predictions[:, None], labels))
    assert scores == pytest.approx(
        {
            "r2": r2_score(labels, predictions),
            "pearson": pearsonr(labels, predictions).statistic,
            "spearman": spearmanr(labels, predictions).statistic,
            "root_mean_squared_error": root_mean_squared_error(labels, predictions),
            "mean_absolute_error": mean_absolute_error(labels, predictions),
        }
    )


def test_constant_predictions_correlate_with_nothing():
    scores = compute_regression_metrics(EvalPrediction(np.ones((5, 1)), np.arange(5.0)))
    assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    assert compute_regression_metrics(EvalPrediction(np.ones((1, 1)), np.ones(1)))["r2"] == 0.0


@pytest.mark.parametrize("compute", [compute_multi_label_metrics, compute_regression_metrics])
def test_batches_that_trainer_did_not_join_score_as_all_rows_do(compute):
    """As under `eval_do_concat_batches=False`; the second output of the model is not scored."""
    labels, logits = RANDOM.integers(0, 2, (10, 3)).astype(np.float32), RANDOM.normal(size=(10, 3))
    batches = [slice(0, 4), slice(4, 8), slice(8, 10)]
    apart = EvalPrediction([(logits[rows], logits[rows, :1]) for rows in batches], [labels[rows] for rows in batches])
    assert compute(apart) == compute(EvalPrediction(logits, labels))


@pytest.mark.parametrize("compute", [compute_multi_label_metrics, compute_regression_metrics])
def test_diverged_model_is_named(compute):
    predictions = np.array([[1.0], [np.nan], [np.inf]])
    with pytest.raises(InputError, match="2 of 3 predictions hold NaN or infinite logits"):
        compute(EvalPrediction(predictions, np.ones((3, 1))))


@pytest.mark.parametrize("several", [False, True])
def test_class_scores_equal_the_report_of_scikit_learn(several):
    names = ["a", "b", "c"]
    shape = (80, 3) if several else 80
    labels, predicted = RANDOM.integers(0, 2 if several else 3, (2, *np.atleast_1d(shape)))
    report = classification_report(
        labels, predicted, labels=range(3), target_names=names, output_dict=True, zero_division=0
    )
    for name, scores in class_scores(labels, predicted, names).items():
        expected = report[name]
        assert [scores["precision"], scores["recall"], scores["f1"], scores["rows"]] == pytest.approx(
            [expected["precision"], expected["recall"], expected["f1-score"], expected["support"]]
        )


def test_class_that_neither_occurs_nor_is_predicted():
    scores = class_scores(np.array([0, 1]), np.array([0, 1]), ["a", "b", "never"])
    assert scores["never"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0}


def test_scores_that_choose_checkpoints_are_computed():
    random = np.random.default_rng(0)
    examples = {
        "single_label_classification": (random.normal(size=(10, 2)), random.integers(0, 2, 10)),
        "multi_label_classification": (random.normal(size=(10, 2)), random.integers(0, 2, (10, 2))),
        "regression": (random.normal(size=(10, 1)), random.normal(size=10)),
    }
    for problem_type, (compute, best, curves) in METRICS.items():
        scores = compute(EvalPrediction(*examples[problem_type]))
        assert {best, *curves} <= set(scores)
        assert all(type(score) is float for score in scores.values()), "numpy numbers break Trainer's state file"
