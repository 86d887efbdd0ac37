"""Rules on what a training achieves: the course of the loss and of the predictions."""

import math

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import (
    LossLevels,
    after_warmup,
    falls,
    is_late,
    latest,
    loss_levels,
    loss_of_frequencies,
    matrices,
    warmed_up,
)
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    group=COURSE,
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite"),
    needs="forward",
    cause="the learning rate is too high for this model and batch size, or the warm-up is missing; else the sign of "
    "the loss, or data that changed",
    remedy="go back to the last good checkpoint, lower the learning rate 3 to 10 times, warm up, clip gradients",
)
def loss_diverging(
    history: HealthHistory, *, rise: float = 0.5, given_back: float = 0.6, deviations: float = 6.0
) -> Finding | None:
    """The loss (median of 5 samples) is clearly above its start, or (median of 10) has given back most of its gain.

    Clearly is `rise` times the start and `deviations` times the scatter of single samples; given back is a share of
    the gain, at least a fifth of the start. Once a loss has fallen by that much, small batches have losses of either
    kind, easy or wrong, so that 5 of them say little and 10 must agree. Where labels are counted the same must hold
    for the difference to what the frequencies of the classes alone would score on the labels of each batch: with one
    label in twenty it is the labels that make one batch harder than another. Losses that are no cross-entropy of
    class labels may rise in healthy training (two players, rewards, distances), so of them only a rise to three times
    the start is told, and where it is the steps that bring it about: matrices that move by 3 % in a step or have
    doubled, or a loss of a thousand times its start.
    """
    loss = loss_levels(history.loss)
    if loss.samples < 8 or not math.isfinite(loss.start):
        return None
    classes = bool(history.integer_labels[-1])
    if not classes and loss.start <= 0:  # a score rather than a distance
        return None
    thresholds = {"rise": rise if classes else 2.0, "given_back": given_back if classes else math.inf}
    found = _gone_up(loss, abs(loss.start), deviations, **thresholds)
    if found is None:
        return None
    if history.label_counts.sum() > 0:
        beyond = loss_levels(history.loss - loss_of_frequencies(history))
        if beyond.samples >= 8 and _gone_up(beyond, abs(loss.start), deviations, **thresholds) is None:
            return None
    now, threshold, seen = found
    if not classes and now < 1000 * loss.start and not _steps_are_large(history):
        return None
    cause = "the learning rate is too high for this model and batch size"
    if not warmed_up(history):
        cause += ", or the missing warm-up"
    return loss_diverging.finding(
        history,
        value=now,
        threshold=threshold,
        seen=seen,
        cause=cause + "; else the sign of the loss, or data that changed",
    )


def _steps_are_large(history: HealthHistory, *, step: float = 0.03, growth: float = 2.0) -> bool:
    """Whether the matrices that move have lately moved by `step` of their norm at once, or have grown by `growth`."""
    moving = matrices(history)
    grown = history.weight[-1, moving] / np.maximum(history.weight[0, moving], 1e-30)
    return bool((history.median_ratio[-8:] > step).any() or (len(moving) and np.nanmedian(grown) > growth))


def _gone_up(
    loss: LossLevels, height: float, deviations: float, *, rise: float, given_back: float
) -> tuple[float, float, str] | None:
    """Level now, the limit that it passes, and that in words; `height` is what parts of the loss are measured in."""
    gain = loss.start - loss.best
    now = min(loss.now, loss.lately) if gain > 0.2 * height else loss.now
    limit = loss.start + max(rise * height, deviations * loss.scatter)
    if now > limit:
        return now, limit, f"the loss rose from {loss.start:.3g} to {now:.3g}"
    # The scatter of fine-tuning grows as examples become easy or hard, so what comes back is compared with the latest.
    noise = deviations * max(loss.scatter, loss.recent_scatter)
    limit = loss.best + max(given_back * gain, noise, 0.2 * height) if math.isfinite(given_back) else math.inf
    if now > limit:
        return now, limit, f"the loss went back up to {now:.3g} after {loss.best:.3g}"
    return None


@rule(
    group=OUTCOME,
    explains=("loss_flat",),
    needs="forward",
    cause="the model fell back to the most frequent class: learning rate too high or too low, unbalanced classes, or "
    "inputs without information",
    remedy="lower the learning rate and warm up; weight the classes; read a batch as the model gets it",
)
def constant_prediction(
    history: HealthHistory, *, samples: int = 30, steps: int = 150, majority: float = 0.9
) -> Finding | None:
    """The classifier gives every example the same class, though the labels vary.

    Either all of the last `samples` samples over at least `steps` steps while the loss has not got below the labels'
    entropy, or a Matthews correlation of exactly 0 in two evaluations in a row in the second third of the run or
    later.
    """
    zero = [
        [value == 0.0 for key, value in metrics.items() if "matthews" in key]
        for _, metrics in history.evaluations[-2:]
    ]
    if len(zero) == 2 and all(any(flags) for flags in zero) and history.step[-1] > history.last_step / 3:
        value, seen = 0.0, "the Matthews correlation was exactly 0 in two evaluations in a row"
    else:
        recent = slice(-samples, None)
        if len(history) < samples or history.step[-1] - history.step[recent][0] < steps or not is_late(history, 0.5):
            return None
        if not (history.top_share[recent] >= 0.999).all() or history.prior_loss[-1] < -math.log(majority):
            return None
        if np.median(history.loss[recent]) < 0.98 * history.prior_loss[-1]:
            return None
        value, seen = 1.0, f"every example got the same class in {samples} samples in a row"
    return constant_prediction.finding(history, value=value, threshold=majority, seen=seen)


@rule(
    group=OUTCOME,
    needs="forward",
    severity="warning",
    cause="labels do not belong to the inputs (shuffled, shifted, off by one), inputs lack the information, or the "
    "learning rate is far too low or too high",
    remedy="read ten examples with their labels; check that 20 examples can be learned by heart; vary the learning "
    "rate",
)
def loss_flat(
    history: HealthHistory,
    *,
    steps: int = 100,
    progress: float = 0.6,
    recent: int = 30,
    late: float = 0.75,
    few: int = 15,
    share: float = 0.97,
    known_share: float = 0.9,
) -> Finding | None:
    """Late in the run the model still knows no more than how frequent the classes are, and its loss does not fall.

    Plateaus before learning are healthy (fine-tuning, parity-like tasks, long warm-ups), so nothing is said before
    `progress` of the planned steps, or 2,000 steps after the warm-up, and only a warning then. From `late` of the
    planned steps on `few` samples do, so that short runs are judged as well.

    With one class label per example each of the last `recent` losses is compared with what the frequencies of the
    classes alone would score on the labels of the same batch, so that which labels a batch happens to have does not
    blur the comparison, and nothing is said where the noise leaves it open whether it is below `known_share` of that;
    with token labels with `share` of the logarithm of the vocabulary, since the plateau of word
    frequencies is healthy.
    A loss falls where it does from the first to the second half of these samples, or on the whole since the warm-up,
    beyond twice its own noise. Other losses, and sums of several, have no level to compare with and are not judged.
    """
    if history.last_step > 0 and history.now >= late * history.last_step:
        recent = max(few, min(recent, len(history)))
    if len(history) < recent or history.step[-1] - history.step[0] < steps:
        return None
    warm = after_warmup(history)
    if warm.sum() < recent // 2 or not is_late(history, progress):
        return None
    loss = history.loss[-recent:]
    if not np.isfinite(loss).all() or history.classes[-1] < 2:
        return None
    if not history.integer_labels[-1] or history.several_losses[-1]:
        return None
    halves = np.array_split(loss, 2)
    if halves[0].mean() - halves[1].mean() > 2 * math.hypot(*(half.std() / math.sqrt(len(half)) for half in halves)):
        return None
    if falls(history.step[warm], history.loss[warm]):
        return None
    if math.isfinite(history.prior_loss[-1]):
        if history.prior_loss[-1] < 0.05:
            return None  # hardly anything to learn
        guess, known = loss_of_frequencies(history)[-recent:], "the class frequencies alone give"
        # With and without the extremes: one outlier blurs all others, and rare labels are extremes themselves.
        gains = guess - loss, np.sort(guess - loss)[recent // 10 : recent - recent // 10]
        allowed = 2 * float(gains[0].std()) / math.sqrt(recent)
        if any(gain.mean() > 2 * gain.std() / math.sqrt(recent) for gain in gains):
            return None
        if gains[0].mean() + allowed > (1.0 - known_share) * guess.mean():
            return None  # too noisy to tell
    else:
        guess, known = np.full(recent, math.log(history.classes[-1])), "a guess among all classes gives"
        allowed = (1.0 - share) * guess[0]
        if (
            not guess[0] - allowed <= loss.mean() < 1.5 * guess[0]
        ):  # far above it is no loss of single tokens, as CTC's
            return None
    return loss_flat.finding(
        history,
        value=float(loss.mean()),
        threshold=float(guess.mean() - allowed),
        seen=f"the loss stays at {loss.mean():.3g}; {known} {guess.mean():.3g}",
    )


@rule(
    group=OUTCOME,
    needs="forward",
    cause="what tells examples apart is lost on the way: pooling over the batch, weights or a normalization of zero, "
    "inputs that are not used",
    remedy="look where activations of two different examples become equal: print them layer by layer",
)
def outputs_ignore_inputs(history: HealthHistory, *, samples: int = 4, vary: float = 1e-5) -> Finding | None:
    """Rows of one batch get the same logits, to the last digits, in every sample.

    A head of zeros does so at the first step only. Judged by the largest spread of a class over the rows, relative to
    the largest logit.
    """
    spread = latest(history, "logits_vary", samples)
    if len(spread) < samples or not (spread < vary).all() or not history.rate[-samples] > 0:
        return None
    if history.identical_inputs[-samples:].any():
        return None
    return outputs_ignore_inputs.finding(
        history,
        value=spread[-1],
        threshold=vary,
        seen=f"logits of different rows differ by {spread[-1]:.1g} of the largest",
    )
