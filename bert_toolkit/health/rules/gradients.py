"""Rules on how gradients flow through the layers and from step to step."""

import math
import re
from collections.abc import Sequence

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import HEEDLESS, is_learning, matrices, matrix_stacks, scatter, usable_samples
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    group=FLOW,
    explains=(COURSE, OUTCOME, "vanishing_gradients", "no_gradient", "layer_out_of_line"),
    needs="gradients",
    cause="dead ReLUs or saturated units: a large negative bias, too large a step, or inputs of the wrong scale",
    remedy="look at the bias, which should begin near 0; else lower the learning rate, or use GELU or LeakyReLU",
)
def dead_units(
    history: HealthHistory,
    *,
    share: float = 0.9,
    grown_share: float = 0.6,
    learning_share: float = 0.95,
    samples: int = 5,
) -> Finding | None:
    """Most units of a hidden layer get a gradient of exactly zero in every sample.

    Healthy ReLU layers have up to half of their units silent on a small batch, so `share` is needed, or
    `grown_share` where the layer began with less than half of that; `learning_share` while the loss is at its best
    (units that win alone, slices that are trained in turn). smdebug: 50 %. Embeddings (77 to 97 % zeros when
    healthy), heads and adapters are not judged.
    """
    rows = np.flatnonzero(~np.isnan(history.gradient_norm))
    if len(rows) < samples:
        return None
    positions = matrices(history)
    positions = positions[~np.isnan(history.gradient[rows[-samples:]][:, positions]).any(axis=0)]
    zeros = silent_units(history, positions)
    lowest = zeros[rows[-samples:]].min(axis=0)
    learning = is_learning(history)
    dead = lowest >= (learning_share if learning else share)
    if len(rows) >= 3 * samples and not learning:
        dead |= (lowest >= grown_share) & (np.median(zeros[rows[:3]], axis=0) < grown_share / 2)
    # Something nearer the loss must be alive: with a loss of exactly zero every gradient is zero.
    alive = lowest < 0.5
    alive_above = np.cumsum(alive[::-1])[::-1] - alive > 0
    dead &= alive_above & (history.in_layer[positions] | (not history.stacks))
    # A recurrence that is read at one end, and an expert that no token takes, have no units to lose.
    # Neither have projections of attention, whose output may go unread (global attention, a pooled first token).
    named = [history.names[p] for p in positions]
    dead &= ~np.array([re.search(r"_hh_|expert|att(e?n|\b)", name) is not None for name in named], dtype=bool)
    if not dead.any():
        return None
    # The layer nearest the loss: those below it get no gradient through it.
    block = history.blocks[positions[dead][-1]]
    named = dead & (np.array(history.blocks)[positions] == block)
    value = float(lowest[named].max())
    return dead_units.finding(
        history,
        parameters=positions[named],
        value=value,
        threshold=share if value >= share else grown_share,
        seen=f"{value:.0%} of the units of {block} get a gradient of exactly zero in {samples} samples in a row",
    )


@rule(
    group=FLOW,
    explains=(OUTCOME, "layer_out_of_line"),
    needs="gradients",
    cause="saturating activations (sigmoid, tanh), too small weights, or no residual connection or normalization",
    remedy="use ReLU or GELU, add residual connections or normalization, initialize with a gain for the activation",
)
def vanishing_gradients(history: HealthHistory, *, drop: float = 1e-4, samples: int = 5) -> Finding | None:
    """Gradients of lower layers are `drop` times those of the same matrices nearer the loss, for `samples` samples.

    Relative to the other layers, since the absolute size means nothing to Adam. Healthy stacks stay above 1e-2, plain
    ReLU stacks with PyTorch's default initialization lose 0.4 a layer; a sigmoid loses 0.14 a layer (benchmark). Where
    the first samples were well, steps that were too large have saturated the layers, and the text says so.
    """
    rows = usable_samples(history, samples)
    if len(rows) < samples:
        return None
    found: list[int] = []
    value = 1.0
    at_first = 0.0
    for stack in matrix_stacks(history):
        relative = _to_higher_layers(history.gradient[rows][:, stack])
        if (relative < drop).any():
            found += stack[:, :-1][:, relative < drop].ravel().tolist()
            value = min(value, float(relative.min()))
            at_first = max(at_first, float(_to_higher_layers(history.gradient[:2][:, stack])[relative < drop].max()))
    if not found:
        return None
    layers = list(dict.fromkeys(history.blocks[p] for p in sorted(found)))
    later = at_first > 100 * drop
    return vanishing_gradients.finding(
        history,
        parameters=sorted(found),
        value=value,
        threshold=drop,
        seen=f"gradients of {', '.join(layers[:4])} are {value:.1g} times those of the same weights in higher layers"
        + (f"; in the first samples they were {at_first:.1g} times those" if later else ""),
        cause="steps that were too large have saturated these layers: too high a learning rate, no warm-up"
        if later
        else None,
        remedy="lower the learning rate 10 to 100 times, warm up, and start again from weights before the loss"
        if later
        else None,
    )


def _to_higher_layers(gradient: np.ndarray) -> np.ndarray:
    """Largest gradient of each layer but the last, over the largest above it; of (samples, kinds, layers)."""
    level = np.nan_to_num(gradient).max(axis=0)
    above = np.maximum.accumulate(level[:, :0:-1], axis=1)[:, ::-1]
    relative = np.where((level[:, :-1] > 0) & (above > 0), level[:, :-1] / np.maximum(above, 1e-300), 1.0)
    return np.median(relative, axis=0)


@rule(
    group=COURSE,
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite"),
    needs="gradients",
    cause="the run diverges: too high a learning rate, no warm-up, or no clipping",
    remedy="set max_grad_norm=1.0, lower the learning rate, warm up; go back to a checkpoint before the growth",
)
def exploding_gradients(history: HealthHistory, *, growth: float = 100.0, samples: int = 3) -> Finding | None:
    """Gradient norms before clipping stay `growth` times above those of the beginning.

    Compared with the median of the first 5 samples and with 10 times the largest of them (Megatron-LM calls 10 times
    the largest of the first 100 large); in each of the last `samples` samples, so that a spike does not count.
    """
    norm = history.gradient_norm[np.isfinite(history.gradient_norm)]
    if len(norm) < 5 + samples:
        return None
    limit = max(growth * float(np.median(norm[:5])), 10 * float(norm[:5].max()))
    now = float(norm[-samples:].min())
    if not limit > 0 or now <= limit:
        return None
    squares = np.nan_to_num(history.gradient[-1] ** 2 * history.count)
    largest = np.argsort(squares)[::-1][:3]
    return exploding_gradients.finding(
        history,
        parameters=sorted(largest.tolist()),
        value=now / float(np.median(norm[:5])),
        threshold=growth,
        seen=f"gradient norms grew from {np.median(norm[:5]):.2g} to {now:.2g}",
    )


@rule(
    group=COURSE,
    explains=("clipped_every_step",),
    needs="gradients",
    cause="a bad batch (wrong labels, garbage text, an outlier in length), or the start of a divergence",
    remedy="look at the batch of that step; clip gradients (max_grad_norm=1.0); lower the learning rate if it recurs",
)
def gradient_spike(
    history: HealthHistory, *, factor: float = 30.0, deviations: float = 8.0, samples: int = 20
) -> Finding | None:
    """A single gradient norm is `factor` times the largest before and `deviations` robust deviations above the median.

    Judged at the next sample, so that the start of an explosion is not called a spike. Deviations are those of the
    logarithm around its trend, since norms of small batches have heavy tails. Megatron-LM calls 10 times the largest
    large, OLMo-core mean + 6 sigma; a healthy GPT-2 of the benchmark had one of 11 times, clipped, and went on well.
    """
    norm = history.gradient_norm
    if len(norm) < samples + 2 or not (norm[-2:] > 0).all():
        return None
    before = np.log(norm[:-2][norm[:-2] > 0])
    if len(before) < samples:
        return None
    middle = float(np.median(before[-samples:]))
    limit = max(before.max() + math.log(factor), middle + deviations * scatter(before))
    then, now = np.log(norm[-2:])
    if then < limit or now >= limit:
        return None
    squares = np.nan_to_num(history.gradient[-2] ** 2 * history.count)
    return gradient_spike.finding(
        history,
        parameters=[int(np.argmax(squares))],
        value=math.exp(then - middle),
        threshold=math.exp(limit - middle),
        seen=f"the gradient norm of step {history.step[-2]} was {math.exp(then - middle):.3g} times the median",
    )


@rule(
    group=COURSE,
    needs="gradients",
    cause="max_grad_norm is far below the gradients of this model, or the loss is summed instead of averaged",
    remedy="raise max_grad_norm (usual is 1.0); average the loss over tokens or examples",
)
def clipped_every_step(
    history: HealthHistory, *, coefficient: float = 0.02, samples: int = 20, usual: float = 0.1
) -> Finding | None:
    """Clipping cuts every one of the last `samples` samples to less than `coefficient`.

    Clipping by 2 to 10 in most steps is normal in BERT fine-tuning; at 50 the limit replaces the gradient's size.
    Where the limit is a usual one (`usual` and more) the loss is large (targets of thousands, a sum), and an optimizer
    that does not heed the size of gradients loses nothing: then it is a note, and while it learns.
    """
    clipped = history.clip_coefficient[~history.skipped]
    recent = clipped[-samples:]
    if len(recent) < samples or not (recent < coefficient).all():
        return None
    limit = float(np.nanmedian((clipped * history.gradient_norm[~history.skipped])[-samples:]))
    heedless = any(name in history.settings.optimizer for name in HEEDLESS)
    return clipped_every_step.finding(
        history,
        value=float(np.median(recent)),
        threshold=coefficient,
        seen=f"clipping multiplies gradients by {np.median(recent):.2g} in every one of {samples} samples",
        severity="note" if heedless and (limit >= usual or is_learning(history)) else "error",
    )


def silent_units(history: HealthHistory, positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """Share of units of each matrix without a gradient, `(samples, positions)`.

    The zero share of its bias, which zeros of the input do not touch (a filter over a picture of one pixel sees its
    padding in eight of nine places), or that of a normalization right after it, or its own where it has neither.
    """
    zeros = history.zero_share[:, positions]
    following = np.minimum(np.asarray(positions, dtype=int) + 1, len(history.names) - 1)
    normalized = history.where("norm")[following] & (history.bias_of[positions] < 0)
    bias = np.where(normalized, history.bias_of[following], history.bias_of[positions])
    has_bias = (bias >= 0) & ~np.isnan(history.zero_share[-1, bias])
    return np.where(has_bias, np.fmin(zeros, history.zero_share[:, bias]), zeros)


@rule(
    group=FLOW,
    explains=(COURSE, OUTCOME, STEPS, "dead_units", "no_gradient", "vanishing_gradients", "not_updated"),
    needs="gradients",
    cause="the loss does not depend on the parameters: outputs are multiplied by zero, cut off by a clamp or masked "
    "entirely, or a gradient underflows",
    remedy="print outputs and loss, and loss.grad_fn; look for masks, clamps and products with zero",
)
def all_gradients_zero(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """Every gradient of every parameter has been exactly zero since the start, and the loss is not.

    Or no parameter has had a gradient at all, and none has moved: an optimizer that keeps gradients elsewhere moves
    them.
    """
    if len(history) < samples:
        return None
    gradients, loss = history.gradient, history.loss
    known = np.isfinite(gradients)
    if not known.any() and (history.gradient_norm == 0).all() and (np.nan_to_num(history.ratio) == 0).all():
        return all_gradients_zero.finding(
            history,
            value=0.0,
            threshold=0.0,
            seen=f"no parameter had a gradient in any of {len(history)} samples, and none has moved",
            cause="the loss is not connected to the parameters: no_grad() around the forward pass, detach(), .item() "
            "or .numpy() on the way, a loss in a new tensor; or nobody calls backward()",
            remedy="call backward() on the loss as it comes from the model's outputs; print loss.grad_fn",
        )
    if not known.any(axis=1).all() or np.nansum(gradients) != 0.0 or history.nonfinite.any():
        return None
    told = loss[np.isfinite(loss)]  # what Trainer logs comes later than the first samples
    if history.skipped.any() or not len(told) or not (np.abs(told) > 1e-6).all():
        return None
    return all_gradients_zero.finding(
        history,
        value=0.0,
        threshold=0.0,
        seen=f"all gradients were exactly zero in all {len(history)} samples, at a loss of {told[-1]:.3g}",
    )
