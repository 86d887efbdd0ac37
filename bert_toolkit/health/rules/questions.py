"""What several rules ask of a history: when the warm-up ended, which matrices there are, where the loss stands."""

import math
from dataclasses import dataclass

import numpy as np

from bert_toolkit.health.history import HealthHistory

HEEDLESS = ("Ada", "Lion", "Lamb", "LAMB", "Muon", "Prodigy", "RMSprop", "SOAP")
"""Parts of names of optimizers whose steps do not depend on the size of the gradients."""

VOCABULARY = 100
"""Classes from which on a class is taken for a token."""


def after_warmup(history: HealthHistory) -> np.ndarray:
    """Mask of samples whose learning rate is at least half of the largest so far.

    That is neither the first steps of a warm-up nor the end of a decay. All False while the rate still rises.
    """
    rate = history.rate
    if len(rate) < 3 or rate.max() == 0 or rate[-1] > rate[-3] * 1.001:
        return np.zeros(len(rate), dtype=bool)
    return rate >= 0.5 * rate.max()


def warmed_up(history: HealthHistory) -> bool:
    """Whether the learning rate began clearly below its peak."""
    return bool(history.rate[0] < 0.9 * history.rate.max())


def usable_samples(history: HealthHistory, samples: int) -> np.ndarray:
    """Positions of the latest `samples` samples whose gradients were finite."""
    return np.flatnonzero(~np.isnan(history.gradient_norm))[-samples:]


def matrices(history: HealthHistory) -> np.ndarray:
    """Positions of the matrices that train; those that the optimizer does not hold do not."""
    held = ~np.isnan(history.learning_rate[-1])
    return np.flatnonzero(history.is_matrix & history.trainable[-1] & (held | ~held.any()))


def largest_table(history: HealthHistory) -> int:
    """Return the position of the largest table of embeddings, mostly that of words; -1 where there is none."""
    tables = np.flatnonzero(history.where("embedding"))
    return int(tables[history.count[tables].argmax()]) if len(tables) else -1


def matrix_stacks(history: HealthHistory, layers: int = 3) -> list[np.ndarray]:
    """The matrices of stacks of at least so many layers, (kinds, layers) each."""
    stacks = [stack[history.is_matrix[stack].all(axis=1)] for stack in history.stacks if stack.shape[1] >= layers]
    return [stack for stack in stacks if len(stack)]


@dataclass(frozen=True)
class LossLevels:
    """Levels of the loss: at the start, at its best, now (5 samples), lately (10).

    `scatter` is that of single samples around their trend, in all; `recent_scatter` of late.
    """

    start: float
    best: float
    now: float
    lately: float
    scatter: float
    recent_scatter: float
    samples: int


def loss_of_frequencies(history: HealthHistory) -> np.ndarray:
    """Cross-entropy that the class frequencies so far score on the labels of each sample, `(samples,)`.

    NaN where no labels were counted.
    """
    counts = history.label_counts_so_far
    batches = np.diff(counts, axis=0, prepend=np.zeros((1, counts.shape[1])))
    # What nobody has seen yet is not impossible: a half of one example for each class (Krichevsky and Trofimov).
    frequencies = (counts[-1] + 0.5) / (counts[-1].sum() + 0.5 * counts.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(-(batches @ np.log(frequencies)) / batches.sum(axis=1))


def class_counts(history: HealthHistory) -> np.ndarray:
    """How often each class was the label so far, `(classes,)`: as the model got labels, or as outputs were drawn.

    Empty where neither is known.
    """
    if history.label_counts.sum() > 0:
        return history.label_counts
    drawn = history.fact("rows_by_target")
    return np.nansum(drawn, axis=0) if drawn.ndim == 2 else np.zeros(0)


def entropy_of(counts: np.ndarray) -> float:
    """Entropy in nats of these frequencies, what knowing them alone scores; NaN where there are none."""
    shares = counts[counts > 0] / counts.sum() if counts.sum() > 0 else np.full(1, math.nan)
    return float(-(shares * np.log(shares)).sum())


def loss_levels(losses: np.ndarray) -> LossLevels:
    """Where the loss of samples `(samples,)` stands; NaN with fewer than five that are finite."""
    loss = losses[np.isfinite(losses)]
    if len(loss) < 5:
        return LossLevels(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, len(loss))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(loss, 5), axis=1)
    start, best, now = float(np.median(loss[:3])), float(medians.min()), float(medians[-1])
    recent = max(scatter(loss[-20:]), scatter(loss[-10:]))
    return LossLevels(start, best, now, float(np.median(loss[-10:])), scatter(loss), recent, len(loss))


def scatter(values: np.ndarray) -> float:
    """Standard deviation of single values around their trend: differences of neighbors, robust to outliers."""
    return 1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)


def has_fallen(history: HealthHistory) -> bool:
    """Whether the loss (median of 5 samples) is below its start (of 3) by twice the scatter of single samples."""
    loss = loss_levels(history.loss)
    return loss.now < loss.start - 2 * loss.scatter


def is_learning(history: HealthHistory) -> bool:
    """Whether the loss has clearly fallen and is about where it was at its best."""
    loss = loss_levels(history.loss)
    return has_fallen(history) and loss.now <= loss.best + 2 * loss.scatter


def has_level(history: HealthHistory) -> bool:
    """Whether the height of the loss says how good the model is.

    The loss of a policy is an advantage, which is positive or negative whatever the policy is like; that of anything
    else stays on its side of zero, or crosses it once as a density grows.
    """
    loss = history.loss[np.isfinite(history.loss)]
    signs = np.sign(loss[loss != 0])
    return int((np.diff(signs) != 0).sum()) < 2


def has_not_fallen(history: HealthHistory, samples: int = 10) -> bool:
    """Whether the latest losses are no lower than the first ones, beyond their scatter and one percent.

    False where the loss has no level, see `has_level`.
    """
    before, now, error = _first_and_last(history, samples)
    return has_level(history) and now > before - max(2 * error, 0.01 * abs(before))


def has_risen(history: HealthHistory, samples: int = 10) -> bool:
    """Whether the latest losses are higher than the first ones, beyond their scatter."""
    before, now, error = _first_and_last(history, samples)
    return now > before + error


def _first_and_last(history: HealthHistory, samples: int) -> tuple[float, float, float]:
    """Medians of the first and the last losses and the standard error of their difference; NaN where they overlap."""
    loss = history.loss[np.isfinite(history.loss)]
    if len(loss) < 2 * samples:
        return math.nan, math.nan, math.nan
    first, last = loss[:samples], loss[-samples:]
    # A median of n values scatters 1.25 / sqrt(n) times as much as one of them.
    error = 1.25 * math.hypot(scatter(first), scatter(last)) / math.sqrt(samples)
    return float(np.median(first)), float(np.median(last)), error


def is_late(history: HealthHistory, progress: float, steps: int = 2000) -> bool:
    """Whether this part of the planned steps is done, or `steps` steps where the plan is longer or unknown."""
    now = history.now
    planned = history.last_step if history.last_step > 0 else math.inf
    return now >= progress * planned or now >= steps


def falls(steps: np.ndarray, loss: np.ndarray, errors: float = 2.0) -> bool:
    """Whether a straight line through these losses falls by more than `errors` standard errors of its slope."""
    known = np.isfinite(loss)
    x, y = steps[known].astype(float), loss[known]
    if len(x) < 5 or x.std() == 0:
        return False
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    residual = y - y.mean() - slope * x
    error = math.sqrt(float(residual @ residual) / max(len(x) - 2, 1) / float(x @ x))
    return slope < -errors * error


def latest(history: HealthHistory, fact: str, samples: int) -> np.ndarray:
    """The last `samples` values of a scalar fact where the newest sample has it, without gaps; else none."""
    values = history.fact(fact)
    if values.ndim != 1 or len(values) < samples or not np.isfinite(values[-samples:]).all():
        return np.zeros(0)
    return values[-samples:]


def fresh_layers(history: HealthHistory) -> dict[str, bool]:
    """Layer -> whether all its normalizations are one and all its biases zero, or most of them vary.

    Layers without any, and those that are neither, are left out.
    """
    mean, std = history.start["mean"], history.start["std"]
    norms = history.where("norm") & np.array([name.endswith("weight") for name in history.names])
    biases = history.where("bias")
    blocks = np.array(history.blocks)
    fresh = {}
    for block in dict.fromkeys(history.blocks):
        inside = history.in_layer & (blocks == block) & np.isfinite(mean)
        scales, shifts = inside & norms, inside & biases
        if not scales.any():
            continue
        untouched = (mean[scales] == 1.0) & (std[scales] == 0.0)
        zero = (mean[shifts] == 0.0) & (std[shifts] == 0.0)
        varying = (std[scales | shifts] > 0).mean() > 0.5
        if varying or (untouched.all() and zero.all()):
            fresh[block] = not varying
    return fresh


def is_trained(history: HealthHistory) -> bool:
    """Whether there are layers whose state `fresh_layers` tells, and none of them is fresh."""
    states = fresh_layers(history).values()
    return bool(states) and not any(states)


def fact_by_place(history: HealthHistory, name: str) -> np.ndarray:
    """A fact that is a vector, (samples, places); (0, 0) where it is not there."""
    places = len(history.places.get(name, ()))
    seen = history.fact(name)
    if seen.ndim == 1 and places == 1:  # a vector of one entry is kept as a number
        seen = seen[:, None]
    return seen if seen.ndim == 2 and seen.shape[1] == places else np.zeros((0, 0))
