"""Rules on the numbers of evaluations: what they say must agree with each other and with the training."""

import math
import re

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import (
    VOCABULARY,
    class_counts,
    entropy_of,
    has_fallen,
    is_late,
    loss_levels,
)
from bert_toolkit.health.rules.registry import OUTCOME, rule

_CLOCK = re.compile(r"runtime|per_second|time|epoch|memory|mem_")


@rule(
    group=OUTCOME,
    explains=("constant_prediction",),
    needs="forward",
    cause="another model is evaluated than the one that is trained (a copy made before training, a second load), or "
    "predictions are kept from the first evaluation",
    remedy="evaluate the object that is trained; make predictions anew in every evaluation",
)
def evaluation_unchanged(history: HealthHistory, *, evaluations: int = 3) -> Finding | None:
    """Loss and scores stay the same to the last digit though weights move and the training loss falls."""
    recent = history.evaluations[-evaluations:]
    if len(recent) < evaluations or len({step for step, _ in recent}) < evaluations:
        return None
    told = [{key: value for key, value in scores.items() if not _CLOCK.search(key)} for _, scores in recent]
    if "eval_loss" not in told[0] or any(scores != told[0] for scores in told) or not has_fallen(history):
        return None
    between = (history.step > recent[0][0]) & (history.step <= recent[-1][0])
    if not (history.median_ratio[between] > 0).any():
        return None
    return evaluation_unchanged.finding(
        history,
        value=told[0]["eval_loss"],
        threshold=0.0,
        seen=f"eval_loss was {told[0]['eval_loss']:.6g} in {evaluations} evaluations in a row while training went on",
    )


@rule(
    group=OUTCOME,
    explains=("constant_prediction",),
    needs="forward",
    cause="the metric function is wrong: another axis in argmax, predictions or labels in another order or numbering, "
    "labels of -100 counted",
    remedy="call compute_metrics with five predictions made by hand, and compare with what they should score",
)
def score_contradicts_loss(history: HealthHistory, *, evaluations: int = 2, margin: float = 0.1) -> Finding | None:
    """The accuracy of evaluations is lower than their cross-entropy allows.

    The error of a best guess is at most half of its uncertainty in bits (Hellman & Raviv 1970), so the accuracy is at
    least 1 - loss / (2 ln 2), for a model whose probabilities are about right; `margin` allows for others. Judged
    where the gradient shows that the loss of the training is a mean cross-entropy, whose rows all weigh the same.
    """
    weight = history.fact("loss_weight")
    usual = weight[np.isfinite(weight)] if weight.ndim == 1 else np.zeros(0)
    if len(usual) < 5 or (np.abs(usual[-20:] - 1.0) > 0.05).mean() > 0.1 or not history.integer_labels[-1]:
        return None
    recent = [scores for _, scores in history.evaluations[-evaluations:]]
    if len(recent) < evaluations or any("eval_loss" not in s or "eval_accuracy" not in s for s in recent):
        return None
    prior = entropy_of(class_counts(history))
    if not all(scores["eval_loss"] < 0.8 * prior for scores in recent):  # nearly equal classes may come in any order
        return None
    lowest = [1.0 - scores["eval_loss"] / (2 * math.log(2)) for scores in recent]
    if any(scores["eval_accuracy"] > least - margin for scores, least in zip(recent, lowest, strict=True)):
        return None
    return score_contradicts_loss.finding(
        history,
        value=recent[-1]["eval_accuracy"],
        threshold=lowest[-1],
        seen=f"with eval_loss {recent[-1]['eval_loss']:.3g} at least {lowest[-1]:.0%} of the rows are predicted "
        f"right, eval_accuracy says {recent[-1]['eval_accuracy']:.0%}",
    )


@rule(
    group=OUTCOME,
    explains=("learned_by_heart",),
    needs="forward",
    severity="warning",
    cause="labels, targets or texts are prepared in another way for evaluation than for training (numbering, unit, "
    "case, tokens), rows and labels are paired wrongly in one of the two, or there are far too few training rows",
    remedy="prepare both sets by the same code; score some training rows with the evaluation function",
)
def evaluation_below_chance(
    history: HealthHistory, *, evaluations: int = 2, part: float = 0.6, lowest: float = -0.2
) -> Finding | None:
    """The model has learned its training rows and scores clearly worse than a guess on those of the evaluation.

    In `evaluations` evaluations in a row: an accuracy below `part` of that of a guess among all classes, a Matthews
    correlation or a coefficient of determination (`r2`) below `lowest`, or, where classes are tokens, a loss above
    that of a guess among all of them. Learned is a loss clearly below that of a guess, or half of its start where the
    loss is no cross-entropy. Accuracies are left alone where the loss of the evaluation is better than a guess.
    """
    recent = [scores for _, scores in history.evaluations[-evaluations:]]
    if len(recent) < evaluations or not len(history):
        return None
    loss, classes = loss_levels(history.loss), max(int(history.classes[-1]), 1)
    prior = entropy_of(class_counts(history))
    limits: list[tuple[str, float, bool]] = []  # score, limit, whether larger is worse
    if classes >= VOCABULARY and history.integer_labels[-1] and loss.now < 0.7 * math.log(classes):
        limits.append(("eval_loss", math.log(classes), True))
    if loss.now < 0.8 * prior and not any(scores.get("eval_loss", math.inf) < prior for scores in recent):
        limits.append(("eval_accuracy", part / classes, False))
        limits += [(key, lowest, False) for key in recent[-1] if re.search(r"matthews|mcc", key)]
    if has_fallen(history) and loss.now < 0.5 * loss.start:
        limits += [(key, lowest, False) for key in recent[-1] if re.search(r"_r2$|r2_score|r_squared", key)]
    for key, limit, larger in limits:
        values = [scores.get(key, math.nan) for scores in recent]
        if all(value > limit if larger else value < limit for value in values):
            return evaluation_below_chance.finding(
                history,
                value=values[-1],
                threshold=limit,
                seen=f"{key} is {values[-1]:.3g}, worse than a guess scores, while the loss of training is "
                f"{loss.now:.3g} (at first {loss.start:.3g})",
            )
    return None


@rule(
    group=OUTCOME,
    explains=("constant_prediction",),
    needs="forward",
    severity="warning",
    cause="labels do not belong to the inputs (shuffled, of another batch, of another column), so they can only be "
    "learned by heart; rows that differ between training and evaluation; far too few rows",
    remedy="read ten training examples with their labels; prepare both sets by the same code; train on more rows",
)
def learned_by_heart(
    history: HealthHistory, *, evaluations: int = 3, known: float = 0.5, most_classes: int = 20
) -> Finding | None:
    """Half of what there is to know about the training labels is known, and nothing about those of the evaluation.

    Judged in the second half of a run. In `evaluations` evaluations in a row the loss, if it is told, is above what
    the class frequencies of the training rows alone would score, and the accuracy no better than always the most
    frequent of these classes, or the Matthews correlation below 0.05.
    """
    recent = [scores for _, scores in history.evaluations[-evaluations:]]
    counts = class_counts(history)
    if len(recent) < evaluations or not 2 <= len(counts) <= most_classes or not is_late(history, 0.5):
        return None
    prior, loss = entropy_of(counts), loss_levels(history.loss)
    if not loss.now < known * prior or any(scores.get("eval_loss", math.inf) < prior for scores in recent):
        return None
    correlations = [[v for key, v in scores.items() if re.search(r"matthews|mcc", key)] for scores in recent]
    guess = counts.max() / counts.sum()
    by_chance = [
        max(found) < 0.05 if found else scores.get("eval_accuracy", math.inf) <= guess
        for found, scores in zip(correlations, recent, strict=True)
    ]
    if not all(by_chance):
        return None
    return learned_by_heart.finding(
        history,
        value=recent[-1].get("eval_loss", math.nan),
        threshold=prior,
        seen=f"the loss of training is {loss.now:.3g}, where a guess by class frequencies gives {prior:.3g}, and "
        f"the scores of {evaluations} evaluations are those of a guess",
    )
