"""What evaluations say must agree with themselves and with the training."""

import math
from functools import partial

import numpy as np
import pytest
from courses import Course
from test_health_watch import rule_names, trained
from transformers import Trainer

from bert_toolkit.health.rules.evaluation import (
    evaluation_below_chance,
    evaluation_unchanged,
    learned_by_heart,
    score_contradicts_loss,
)

RULES = (evaluation_unchanged, score_contradicts_loss, evaluation_below_chance, learned_by_heart)


def found(*evaluations, change=lambda course: None):
    """Names of the rules on evaluations that fire at the end of a healthy course; one evaluation every 100 steps."""
    course = Course()
    course.facts["loss_weight"] = np.ones(course.samples)
    change(course)
    history = course.history()
    history.evaluations = [(100 * i, dict(scores)) for i, scores in enumerate(evaluations, start=1)]
    return {rule.name for rule in RULES if rule(history) is not None}


def scores(loss, accuracy=0.9, **further):
    return {"eval_loss": loss, "eval_accuracy": accuracy, "eval_runtime": np.random.default_rng().random(), **further}


@pytest.mark.parametrize(
    ("evaluations", "expected"),
    [
        ([], set()),
        ([scores(0.5), scores(0.4), scores(0.3)], set()),
        ([scores(0.5)] * 2, set()),
        ([scores(0.5, 0.8), scores(0.5, 0.8), scores(0.5, 0.8)], {"evaluation_unchanged"}),
        ([scores(0.5, 0.8), scores(0.5, 0.8), scores(0.5, 0.81)], set()),
        # an accuracy of 1 - loss / (2 ln 2) at least
        ([scores(0.2, 0.78), scores(0.21, 0.77)], set()),
        ([scores(0.2, 0.5), scores(0.21, 0.5)], {"score_contradicts_loss"}),
        ([scores(0.2, 0.78), scores(0.2, 0.5)], set()),
        # of three classes a guess finds a third
        ([scores(1.5, 0.3), scores(1.6, 0.3)], set()),
        ([scores(1.5, 0.1), scores(1.6, 0.1)], {"evaluation_below_chance"}),
        ([scores(1.5, 0.5, eval_matthews_correlation=-0.1)] * 2, set()),
        ([scores(1.5, 0.5, eval_matthews_correlation=-0.4)] * 2, {"evaluation_below_chance"}),
        # of these labels 12 in 32 are of the most frequent class
        ([scores(1.5, 0.35), scores(1.6, 0.36), scores(1.7, 0.37)], {"learned_by_heart"}),
        ([scores(1.5, 0.35), scores(1.6, 0.42), scores(1.7, 0.37)], set()),
        ([scores(1.5, 0.35), scores(1.6, 0.36)], set()),
        ([scores(1.0, 0.35), scores(1.01, 0.36), scores(1.02, 0.37)], set()),
        # without a loss of the evaluation
        ([{"eval_accuracy": 0.35}] * 3, {"learned_by_heart"}),
        ([{"eval_accuracy": 0.1}] * 2, {"evaluation_below_chance"}),
        ([{"eval_accuracy": 0.6}] * 3, set()),
        ([{"eval_r2": -1.0}] * 2, {"evaluation_below_chance"}),
        ([{"eval_r2": -0.1}] * 2, set()),
    ],
)
def test_what_scores_say(evaluations, expected):
    assert found(*evaluations) == expected


def test_losses_that_are_no_mean_cross_entropy_are_not_compared_with_accuracies():
    def focal(course):
        course.facts["loss_weight"] = np.linspace(0.3, 0.8, course.samples)

    assert found(*[scores(0.2, 0.5), scores(0.21, 0.5)], change=focal) == set()


def test_tokens_worse_than_a_guess_among_all():
    """A language model that has read one text scores another one worse than a guess."""

    def of_tokens(course, loss=0.4):
        course.classes, course.label_counts = 1000, np.zeros(0)
        course.loss = math.log(1000) * np.linspace(1.0, loss, course.samples)

    assert found(*[{"eval_loss": 8.0}] * 2, change=of_tokens) == {"evaluation_below_chance"}
    assert found(*[{"eval_loss": 6.0}] * 2, change=of_tokens) == set()
    assert found(*[{"eval_loss": 8.0}] * 2, change=lambda course: of_tokens(course, 0.9)) == set()


def test_classes_of_a_loop_are_known_from_where_outputs_are_drawn():
    def unlabeled(course):
        course.label_counts, course.integer_labels = np.zeros(0), False
        course.facts["rows_by_target"] = np.tile([3.0, 3.0, 4.0], (course.samples, 1))

    assert found(*[{"eval_accuracy": 0.35}] * 3, change=unlabeled) == {"learned_by_heart"}
    assert found(*[{"eval_accuracy": 0.05}] * 2, change=unlabeled) == {"evaluation_below_chance"}


def test_model_that_has_not_learned_may_score_anything():
    def flat(course):
        course.loss = np.full(course.samples, 1.1)

    assert found(*[scores(1.5, 0.1), scores(1.6, 0.1)], change=flat) == set()
    assert found(*[scores(1.1, 0.1)] * 3, change=flat) == set()


def test_error_is_at_most_half_of_the_uncertainty_in_bits():
    """The bound that the rule rests on (Hellman & Raviv 1970), on labels drawn from the probabilities themselves."""
    random = np.random.default_rng(0)
    for classes in (2, 3, 10):
        for sharpness in (0.3, 1.0, 3.0, 10.0):
            logits = sharpness * random.standard_normal((20_000, classes))
            probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            labels = (probability.cumsum(1) > random.random((len(logits), 1))).argmax(1)
            loss = -np.log(probability[np.arange(len(logits)), labels]).mean()
            assert (logits.argmax(1) == labels).mean() >= 1 - loss / (2 * math.log(2)) - 0.01


def test_wrong_metric_function_is_named_in_a_trainer(tmp_path):
    def upside_down(prediction):
        return {"accuracy": float((prediction.predictions.argmin(-1) == prediction.label_ids).mean())}

    def right(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    plan = {"eval_strategy": "steps", "eval_steps": 40, "max_steps": 240, "learning_rate": 2e-3}
    for metric, expected in ((right, set()), (upside_down, {"score_contradicts_loss"})):
        health = trained(tmp_path, trainer_class=partial(Trainer, compute_metrics=metric), **plan)
        assert rule_names(health) == expected
