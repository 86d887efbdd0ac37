"""Rules that tell faults of a training run from the history of its statistics; one pure function each.

A rule gets the history up to now, oldest sample first, and returns findings for what is wrong at the newest sample. To
add one: write the function, put it into `RULES` (causes before symptoms), and say in `EXPLAINS` which other rules'
findings it explains. Thresholds are keyword arguments. "Benchmark" names `benchmarks/fault_injection.py` as a
threshold's source: healthy and broken trainings lie clearly on its two sides there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bert_toolkit.monitoring.health_history import HealthHistory


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Args:
        step: optimizer step at which it was first seen.
        rule: name of the rule.
        parameters: parameters concerned, in the model's order; empty where the whole run is.
        layers: blocks of these parameters, as the monitoring names them.
        value, threshold: what was measured and what it should not pass.
        seen: the observation in words.
        cause: what usually causes it.
        remedy: what to change.
    """

    step: int
    rule: str
    parameters: tuple[str, ...]
    layers: tuple[str, ...]
    value: float
    threshold: float
    seen: str
    cause: str
    remedy: str

    @property
    def where(self) -> str:
        """The place, short enough for a line."""
        if not self.parameters:
            return "whole run"
        rest = len(self.parameters) - 1
        layers = ", ".join(self.layers[:4]) + (f" and {len(self.layers) - 4} more" if len(self.layers) > 4 else "")
        return f"{layers}: {self.parameters[0]}" + (f" and {rest} more parameters" if rest else "")


def _finding(
    history: HealthHistory,
    rule: str,
    parameters: Sequence[int] | np.ndarray,
    value: float,
    threshold: float,
    seen: str,
    cause: str,
    remedy: str,
) -> list[Finding]:
    names = tuple(history.names[p] for p in parameters)
    layers = tuple(dict.fromkeys(history.blocks[p] for p in parameters))
    return [Finding(int(history.step[-1]), rule, names, layers, float(value), float(threshold), seen, cause, remedy)]


# --- what several rules ask ---------------------------------------------------------------------------------------


def _after_warmup(history: HealthHistory) -> np.ndarray:
    """Mask of samples whose learning rate is at least half of the largest so far: neither the first steps of a warm-up
    nor the end of a decay. All False while the rate still rises."""
    rate = history.rate
    if len(rate) < 3 or rate.max() == 0 or rate[-1] > rate[-3] * 1.001:
        return np.zeros(len(rate), dtype=bool)
    return rate >= 0.5 * rate.max()


def _warmed_up(history: HealthHistory) -> bool:
    return bool(history.rate[0] < 0.9 * history.rate.max())


def _usable(history: HealthHistory, samples: int) -> np.ndarray:
    """Positions of the latest `samples` samples whose gradients were finite."""
    return np.flatnonzero(~np.isnan(history.gradient_norm))[-samples:]


def _matrices(history: HealthHistory) -> np.ndarray:
    return np.flatnonzero(history.is_matrix & history.trainable[-1])


def _matrix_stacks(history: HealthHistory, layers: int = 3) -> list[np.ndarray]:
    """The matrices of stacks of at least so many layers, (kinds, layers) each."""
    stacks = [stack[history.is_matrix[stack].all(axis=1)] for stack in history.stacks if stack.shape[1] >= layers]
    return [stack for stack in stacks if len(stack)]


@dataclass(frozen=True)
class _Loss:
    """Levels of the loss: at the start, at its best, now (5 samples), lately (10); and how much single samples
    scatter, in all and of late."""

    start: float
    best: float
    now: float
    lately: float
    scatter: float
    recent_scatter: float
    samples: int


def _loss(history: HealthHistory) -> _Loss:
    loss = history.loss[np.isfinite(history.loss)]
    if len(loss) < 5:
        return _Loss(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, len(loss))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(loss, 5), axis=1)
    start, best, now = float(np.median(loss[:3])), float(medians.min()), float(medians[-1])
    recent = max(_scatter(loss[-20:]), _scatter(loss[-10:]))
    return _Loss(start, best, now, float(np.median(loss[-10:])), _scatter(loss), recent, len(loss))


def _scatter(values: np.ndarray) -> float:
    """Standard deviation of single values around their trend: differences of neighbours, robust to outliers."""
    return 1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)


def _has_not_fallen(history: HealthHistory, samples: int = 10) -> bool:
    """Whether the latest losses are no lower than the first ones, beyond their scatter and one percent."""
    loss = history.loss[np.isfinite(history.loss)]
    if len(loss) < 2 * samples:
        return False
    first, last = loss[:samples], loss[-samples:]
    # A median of n values scatters 1.25 / sqrt(n) times as much as one of them.
    error = 1.25 * math.hypot(_scatter(first), _scatter(last)) / math.sqrt(samples)
    start = float(np.median(first))
    return bool(np.median(last) > start - max(2 * error, 0.01 * abs(start)))


# --- data and loss ------------------------------------------------------------------------------------------------


def identical_inputs(history: HealthHistory, *, samples: int = 3) -> list[Finding]:
    """All examples of a batch are the same, in each of the last `samples` samples.

    Batches of one example are not judged. Three samples rule out a chance duplicate.
    """
    if len(history) < samples or not history.identical_inputs[-samples:].all():
        return []
    return _finding(
        history,
        "identical_inputs",
        [],
        1.0,
        1.0,
        f"every example of the batch had the same inputs in {samples} samples in a row",
        "the dataset, tokenisation or collator gives a constant, or one example is repeated",
        "print a batch of the data loader; compare the examples with the raw rows",
    )


def masked_attention(history: HealthHistory, *, samples: int = 3, share: float = 0.5) -> list[Finding]:
    """The attention mask hides every token of more than `share` of the examples.

    A padded batch may hold an empty row by mistake or on purpose; half of the batch is never meant.
    """
    if len(history) < samples or not (history.masked_share[-samples:] > share).all():
        return []
    return _finding(
        history,
        "masked_attention",
        [],
        history.masked_share[-1],
        share,
        f"attention_mask hides all tokens of {history.masked_share[-1]:.0%} of the examples",
        "attention_mask is all zeros: inverted (1 means hidden) or built from the wrong padding id",
        "pass 1 for tokens and 0 for padding; check pad_token_id against the tokenizer",
    )


def wrong_loss_sign(history: HealthHistory, *, samples: int = 3) -> list[Finding]:
    """The loss of a model with class labels is negative, which no cross-entropy is."""
    recent = slice(-samples, None)
    if len(history) < samples or not (history.integer_labels & (history.classes > 1))[recent].all():
        return []
    if not (history.loss[recent] < 0).all():
        return []
    return _finding(
        history,
        "wrong_loss_sign",
        [],
        history.loss[-1],
        0.0,
        f"the loss is {history.loss[-1]:.3g} though labels are classes",
        "the loss has the wrong sign (a log-likelihood instead of its negative), so training makes the model worse",
        "negate the loss; use torch.nn.functional.cross_entropy on logits, nll_loss on log-probabilities",
    )


# --- numbers ------------------------------------------------------------------------------------------------------


def nonfinite(history: HealthHistory) -> list[Finding]:
    """A gradient, a weight or the loss is NaN or infinite, and no loss scaler skipped the step.

    Names what went bad first. Gradients go bad from the loss downwards, so the culprit is the bad parameter nearest
    to the loss; where all went bad together it is the batch or the loss itself.
    """
    bad_weight = history.trainable & ~np.isfinite(history.weight) & ~np.isnan(history.learning_rate)
    bad = history.nonfinite | bad_weight
    rows = (bad.any(axis=1) | history.loss_nonfinite) & ~history.skipped
    if not rows.any():
        return []
    first = int(np.argmax(rows))
    positions = np.flatnonzero(bad[first])
    everything = len(positions) >= 0.9 * history.trainable[first].sum()
    if everything or not len(positions):
        named = np.array([], dtype=int)
        seen = f"at step {history.step[first]} loss and gradients of all parameters are NaN or infinite"
        cause = "a NaN or an overflow in the batch, in the forward pass or in the loss"
        if bad_weight[first].any():
            seen = f"at step {history.step[first]} weights and gradients are NaN or infinite"
            cause += ", in one of the steps before; weights are lost by now"
    else:
        block = history.blocks[positions[-1]]
        named = positions[np.array(history.blocks)[positions] == block]
        seen = (
            f"at step {history.step[first]} {len(positions)} parameters are NaN or infinite, {block} nearest the loss"
        )
        cause = f"an overflow or an undefined derivative in or right above {block}: sqrt(0), log(0), 0/0, fp16"
    return _finding(
        history,
        "nonfinite",
        named,
        max(len(positions), 1),
        0,
        seen,
        cause,
        "go back to the last checkpoint; look for NaN in the data; torch.autograd.set_detect_anomaly(True) names the "
        "operation; lower the learning rate, clip gradients, prefer bf16 to fp16",
    )


def loss_scale_overflow(
    history: HealthHistory, *, share: float = 0.3, window: int = 12, search_steps: int = 24
) -> list[Finding]:
    """The loss scaler keeps skipping steps because gradients overflow in fp16.

    At first a scaler halves its scale until gradients fit: from 2^16 that takes at most `search_steps` steps (a scale
    of 2^-8). Later it skips about one step in 2,000 (its growth interval), far below `share`.
    """
    skipped = history.skipped
    if skipped.all():
        found = len(skipped) >= 3 and history.step[-1] - history.step[0] >= search_steps
    else:
        later = skipped[np.argmin(skipped) :][-window:]
        found = len(later) >= window // 2 and later.mean() > share
    if not found:
        return []
    return _finding(
        history,
        "loss_scale_overflow",
        [],
        skipped[-window:].mean(),
        share,
        f"{skipped[-window:].mean():.0%} of the last {len(skipped[-window:])} sampled steps were skipped: gradients "
        "overflowed in fp16",
        "activations or gradients exceed fp16's 65,504, or the loss scale grows too fast",
        "train in bf16 (--bf16), or lower the learning rate; check for a custom loss that sums instead of averaging",
    )


# --- parameters that do not take part -----------------------------------------------------------------------------


def no_gradient(history: HealthHistory, *, samples: int = 5) -> list[Finding]:
    """A trainable parameter has had no gradient, or one of only zeros, since the start of training.

    `samples` samples: LoRA's A and gates that start at zero have a zero gradient at the first step only.
    """
    usable = ~np.isnan(history.gradient_norm)
    if usable.sum() < samples:
        return []
    ever = (np.nan_to_num(history.gradient[usable]) > 0).any(axis=0)
    never = history.trainable[usable].all(axis=0) & ~ever
    if not never.any():
        return []
    positions = np.flatnonzero(never)
    return _finding(
        history,
        "no_gradient",
        positions,
        usable.sum(),
        samples,
        f"{len(positions)} trainable parameters had no gradient in any of {usable.sum()} samples",
        "they do not reach the loss: a detach() or no_grad() in the forward pass, a branch or head that is not used, "
        "or a label that was not passed",
        "remove the detach, or set requires_grad=False (and leave them out of the optimizer) if this is meant",
    )


def frozen_layer(history: HealthHistory, *, samples: int = 2, share: float = 0.5) -> list[Finding]:
    """A layer is frozen while a lower layer of the same stack trains.

    Freezing on purpose takes the lower layers, everything, or one kind of parameter in all layers. Frozen layers that
    are few (at most `share` of the stack, or one) and lie above a trainable one are a hole.
    """
    if len(history) < samples:
        return []
    trainable = history.trainable[-1]
    if trainable.all():
        return []
    blocks = np.array(history.blocks)
    for stack in history.stacks:
        names = blocks[stack[0]]
        alive = np.array([trainable[blocks == name].any() for name in names])
        holes = names[~alive & (np.cumsum(alive) > 0)]
        if len(holes) and (len(holes) == 1 or len(holes) <= share * len(names)):
            return _finding(
                history,
                "frozen_layer",
                np.flatnonzero(np.isin(blocks, holes)),
                len(holes),
                0,
                f"{', '.join(holes)} of {len(names)} layers does not require gradients, though layers below it train",
                "requires_grad was switched off for this layer and not for those below it",
                "call requires_grad_(True) on it; to freeze on purpose, freeze from the input upwards",
            )
    return []


def not_updated(history: HealthHistory, *, samples: int = 4) -> list[Finding]:
    """A parameter has a gradient in each of the last `samples` samples and never moves, while the learning rate is on.

    Exactly zero movement, so no threshold is needed; several samples, since a warm-up may start at zero. In half
    precision small steps round away instead, see `rounded_away`. Embeddings count only where the optimizer does not
    hold them or their rate is zero, since few of their rows move in a step.
    """
    recent = _usable(history, samples)
    if len(recent) < samples:
        return []
    rates = history.learning_rate[recent]
    on = history.rate[recent] > 0
    if not on.any():
        at_end = history.step[-1] >= 0.9 * history.last_step
        if at_end or history.step[recent[-1]] - history.step[recent[0]] < samples:
            return []
        return _finding(
            history,
            "not_updated",
            np.flatnonzero(history.trainable[-1]),
            0.0,
            0.0,
            f"the learning rate is 0 in {samples} samples in a row",
            "the scheduler gives 0: wrong number of steps or of warm-up steps, or a resumed schedule that has ended",
            "check lr_scheduler_type, warmup_steps and max_steps",
        )
    if not on.all():
        return []
    stuck = (history.gradient[recent] > 0).all(axis=0) & (history.ratio[recent] == 0).all(axis=0)
    unheld = np.isnan(rates).all(axis=0) & ~np.isnan(rates).all()
    off = (rates == 0).all(axis=0)
    # Late in a decay even fp32 rounds steps away, from normalisation weights of 1 first.
    full_rate = (history.rate[recent] >= 0.1 * history.rate.max()).all()
    exact = (history.item_size > 2) & ~history.where("embedding") & full_rate
    positions = np.flatnonzero(stuck & (unheld | off | exact))
    if not len(positions):
        return []
    if unheld[positions].all():
        cause = "the optimizer does not hold them: it was built before they were added, or from a filtered list"
        remedy = "pass them to the optimizer, or let Trainer build it"
    elif off[positions].all():
        cause = "the learning rate of their parameter group is 0"
        remedy = "give their group a learning rate, or set requires_grad=False if this is meant"
    else:
        cause = "the optimizer gives them no step: a wrong parameter group, a hook that undoes it, or rounding"
        remedy = "compare optimizer.param_groups with model.named_parameters()"
    return _finding(
        history,
        "not_updated",
        positions,
        0.0,
        0.0,
        f"{len(positions)} parameters have gradients and did not move in {samples} samples",
        cause,
        remedy,
    )


def rounded_away(history: HealthHistory, *, share: float = 0.5, samples: int = 5) -> list[Finding]:
    """Most elements of half-precision weights do not change although they have a gradient.

    bf16 keeps 8 bits: a step below 0.4 % of a weight is rounded away. Measured on weights of standard deviation 0.03:
    21 % of elements change at a step of 2e-5, 5 % at 5e-6; in fp32 all of them do.
    """
    positions = _matrices(history)
    positions = positions[history.item_size[positions] <= 2]
    rows = np.flatnonzero(_after_warmup(history) & ~history.skipped)[-samples:]
    if len(rows) < samples or not len(positions):
        return []
    alive = 1.0 - history.zero_share[rows][:, positions]
    changed = np.nan_to_num(history.changed_share[rows][:, positions] / np.maximum(alive, 1e-9), nan=1.0)
    per_sample = np.median(changed, axis=1)
    if not (per_sample < share).all():
        return []
    return _finding(
        history,
        "rounded_away",
        positions[changed.max(axis=0) < share],
        per_sample[-1],
        share,
        f"a step changes only {per_sample[-1]:.0%} of the elements of half-precision weights",
        "weights are bf16 or fp16 themselves, and the steps are smaller than their spacing",
        "keep weights in fp32 and use mixed precision (--bf16), or stochastic rounding, or a larger learning rate",
    )


# --- scale of weights and steps -----------------------------------------------------------------------------------


def initial_scale(
    history: HealthHistory,
    *,
    low_gain: float = 0.2,
    high_gain: float = 4.0,
    trained_gain: float = 8.0,
    usual: float = 0.02,
    factor: float = 4.0,
    layer_factor: float = 5.0,
) -> list[Finding]:
    """At the first step most matrices are far too small or too large, or one layer differs from all its peers.

    A gain is the root mean square times the square root of the fan: PyTorch's default has 0.58, Glorot 1, He 1.41;
    smdebug draws the line at a variance ratio of 10 (3.2 in standard deviation), trained weights reach 5 (GPT-2).
    Fresh transformers (normalisations are exactly one) have standard deviation `usual` at any width (BERT, GPT-2,
    Llama; `initializer_range` of their config) and may be `factor` off it. Layers of one trained model differ by up to
    3, below `layer_factor`.
    """
    if history.step[0] > 1 or len(history) > 12:
        return []
    positions = _matrices(history)
    positions = positions[history.weight[0, positions] > 0]
    if len(positions) >= 3:
        weight, side = history.weight[0, positions], np.sqrt(history.fan[positions])
        norms = [p for p in np.flatnonzero(history.where("norm")) if history.names[p].endswith("weight")]
        scales = history.weight[0, norms]
        smallest = largest = np.quantile(weight, 0.75)  # projections back into the stream may be smaller
        if history.initializer_range is not None and len(norms) and (np.abs(scales - 1.0) < 1e-3).all():
            low_limit = max(history.initializer_range, usual) / factor
            high_limit = min(factor * history.initializer_range, max(factor * usual, 1.5 / side.min()))
        else:
            smallest, largest = np.quantile(weight * side, 0.75), np.quantile(weight * side, 0.25)
            low_limit = low_gain if np.quantile(weight, 0.75) < usual / 1.5 else 0.0
            high_limit = trained_gain if len(norms) else high_gain
        if smallest < low_limit or largest > high_limit:
            low = smallest < low_limit
            return _finding(
                history,
                "initial_scale",
                [],
                smallest if low else largest,
                low_limit if low else high_limit,
                f"weights are far too {'small' if low else 'large'} at the first step: root mean square "
                f"{np.median(weight):.2g}",
                "weights were initialised or rescaled wrongly, or a checkpoint was loaded with another scale",
                "use the model's own initialisation (initializer_range 0.02; torch.nn.init for plain layers)",
            )
    for stack in _matrix_stacks(history):
        weights = history.weight[0, stack]
        ordered = np.sort(weights, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            large = ordered[:, -1] > layer_factor * ordered[:, -2]
            small = (ordered[:, 0] > 0) & (ordered[:, 0] < ordered[:, 1] / layer_factor)
        for odd, layers in ((large, weights.argmax(axis=1)), (small, weights.argmin(axis=1))):
            for layer in np.unique(layers[odd]):
                kinds = np.flatnonzero(odd & (layers == layer))
                if 2 * len(kinds) < len(stack):
                    continue
                relative = float(weights[kinds[0], layer] / np.median(weights[kinds[0]]))
                return _finding(
                    history,
                    "initial_scale",
                    np.sort(stack[kinds, layer]),
                    relative,
                    layer_factor,
                    f"weights are {relative:.2g} times those of the other layers at the first step",
                    "this layer was initialised or rescaled differently, or not loaded with the others",
                    "check the loading report for missing keys; initialise all layers alike",
                )
    return []


def layer_out_of_line(history: HealthHistory, *, factor: float = 10.0, samples: int = 3) -> list[Finding]:
    """The update ratios or the gradients of one layer exceed those of every other layer `factor` times.

    Compared are the same matrices of different layers, in at least half of the kinds that a layer has and in each of
    the last `samples` samples. Layer-wise learning rates differ by less than 2 from one layer to the next; gradients
    of healthy layers by less than 5 (benchmark).
    """
    rows = _usable(history, samples)
    if len(rows) < samples:
        return []
    for stack in _matrix_stacks(history):
        for what, array in (("update ratio", history.ratio), ("gradient", history.gradient)):
            values = np.nan_to_num(array[rows][:, stack])  # (samples, kinds, layers)
            ordered = np.sort(values, axis=2)
            largest = values.argmax(axis=2)
            with np.errstate(divide="ignore", invalid="ignore"):
                gap = ordered[..., -1] / ordered[..., -2]
                # Where gradients vanish, each layer is far above the next: there the others are as far apart.
                spread = ordered[..., -2] / np.where(ordered > 0, ordered, np.inf).min(axis=2)
            odd = (np.isfinite(gap) & (gap > np.maximum(factor, spread)) & (largest == largest[0])).all(axis=0)
            for layer in np.unique(largest[0, odd]):
                kinds = np.flatnonzero(odd & (largest[0] == layer))
                if 2 * len(kinds) < len(stack):
                    continue
                excess = float(gap[:, kinds].min(axis=0).max())
                block = history.blocks[stack[0, layer]]
                return _finding(
                    history,
                    "layer_out_of_line",
                    np.sort(stack[kinds, layer]),
                    excess,
                    factor,
                    f"the {what} of {block} is {excess:.3g} times that of any other layer",
                    "a parameter group with a larger learning rate, a layer with another scale, or a gradient hook",
                    f"compare the learning rate, the initial scale and the hooks of {block} with the other layers",
                )
    return []


def update_ratio_high(
    history: HealthHistory, *, always: float = 0.2, with_loss: float = 0.03, samples: int = 3
) -> list[Finding]:
    """A step moves matrices by a large part of their norm.

    Healthy ratios lie at 1e-4 to 1e-2 (cs231n: about 1e-3), and at up to 0.1 while small fresh weights grow, so
    `always` is a fault by itself in `samples` samples; from `with_loss` on it is one where the loss has not fallen
    meanwhile or units died. Where hardly any matrix trains but a fresh head (LoRA, frozen encoder), `always` only.
    """
    ratio = history.median_ratio
    large = int((ratio > with_loss).sum()) if len(_matrices(history)) >= 3 else 0
    lately = int((ratio[-20:] > with_loss).sum())
    useless = min(large, lately) >= 2 * samples and len(history) >= 20 and _has_not_fallen(history)
    if (ratio > always).sum() >= samples:
        threshold = always
    elif useless or (large >= samples and _units_died(history)):
        threshold = with_loss
    else:
        return []
    value = float(np.median(ratio[ratio > threshold]))
    warm = _warmed_up(history)
    cause = "the learning rate is too high" + ("" if warm else ", and it starts without a warm-up")
    return _finding(
        history,
        "update_ratio_high",
        [],
        value,
        threshold,
        f"a step moves matrices by {value:.2g} of their norm; about 0.001 is usual",
        cause,
        ("lower the learning rate 10 to 100 times" if threshold == always else "lower the learning rate")
        + ("" if warm else "; warm up over 5 to 10 % of the steps"),
    )


def _units_died(history: HealthHistory) -> bool:
    """Whether units are dead now that were alive at the first sample."""
    return any(
        (_silent_units(history, [history.names.index(name) for name in finding.parameters])[0] < 0.5).all()
        for finding in dead_units(history)
    )


def _silent_units(history: HealthHistory, positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """Share of units of each matrix without a gradient, `(samples, positions)`: the zero share of its bias, which
    zeros of the input do not touch, or its own where it has none."""
    zeros = history.zero_share[:, positions]
    bias = history.bias_of[positions]
    has_bias = (bias >= 0) & ~np.isnan(history.zero_share[-1, bias])
    return np.where(has_bias, np.fmin(zeros, history.zero_share[:, bias]), zeros)


def update_ratio_low(
    history: HealthHistory,
    *,
    per_step: float = 2e-4,
    planned: float = 0.02,
    always: float = 1e-6,
    samples: int = 20,
) -> list[Finding]:
    """Steps are so small that the whole run cannot get anywhere.

    Judged after the warm-up, or from the middle of the run where that has not ended by then, on the matrix that moves
    most. The ratio times the number of steps of the run bounds how far weights can go; fine-tuning moves them by a
    few percent. Below `always` per step it is a fault by itself; below `per_step` and `planned` in all it is one where
    the loss has not fallen.
    """
    rows = np.flatnonzero(_after_warmup(history) & ~history.skipped)
    warming = not len(rows) and history.step[-1] >= history.last_step / 2
    if warming:
        rows = np.flatnonzero(~history.skipped)[-samples:]
    matrices = _matrices(history)
    if len(rows) < min(samples, 8) or not len(matrices):
        return []
    largest = float(np.median(history.largest_ratio[rows[-samples:]]))
    if not largest > 0 or (history.item_size[matrices] <= 2).all():
        return []  # told by other rules
    reach = largest * max(history.last_step, 1)
    if largest < always and reach < planned:
        threshold = always
    elif largest < per_step and reach < planned and len(rows) >= samples and _has_not_fallen(history):
        threshold = per_step
    else:
        return []
    return _finding(
        history,
        "update_ratio_low",
        [],
        largest,
        threshold,
        f"a step moves matrices by at most {largest:.2g} of their norm: all {history.last_step} steps by {reach:.2g}",
        "the warm-up takes more than half of the run, and the learning rate is still too low"
        if warming
        else "the learning rate is too low, or the optimizer's steps are too small for the scale of the weights",
        (
            "shorten the warm-up to 5 to 10 % of the steps; "
            if warming
            else "raise the learning rate 10 to 1000 times; "
        )
        + "usual rates are 2e-5 to 5e-4 for fine-tuning, 1e-4 to 1e-3 from scratch",
    )


# --- flow of gradients --------------------------------------------------------------------------------------------


def dead_units(
    history: HealthHistory, *, share: float = 0.9, grown_share: float = 0.6, samples: int = 5
) -> list[Finding]:
    """Most units of a hidden layer get a gradient of exactly zero in every sample.

    Healthy ReLU layers have up to half of their units silent on a small batch, so `share` is needed, or
    `grown_share` where the layer began with less than half of that. smdebug: 50 %. Embeddings (77 to 97 % zeros when
    healthy), heads and adapters are not judged.
    """
    rows = np.flatnonzero(~np.isnan(history.gradient_norm))
    if len(rows) < samples:
        return []
    positions = _matrices(history)
    positions = positions[~np.isnan(history.gradient[rows[-samples:]][:, positions]).any(axis=0)]
    zeros = _silent_units(history, positions)
    lowest = zeros[rows[-samples:]].min(axis=0)
    dead = lowest >= share
    if len(rows) >= 3 * samples:
        dead |= (lowest >= grown_share) & (np.median(zeros[rows[:3]], axis=0) < grown_share / 2)
    # Something nearer the loss must be alive: with a loss of exactly zero every gradient is zero.
    alive = lowest < 0.5
    alive_above = np.cumsum(alive[::-1])[::-1] - alive > 0
    dead &= alive_above & (history.in_layer[positions] | (not history.stacks))
    if not dead.any():
        return []
    # The layer nearest the loss: those below it get no gradient through it.
    block = history.blocks[positions[dead][-1]]
    named = dead & (np.array(history.blocks)[positions] == block)
    value = float(lowest[named].max())
    return _finding(
        history,
        "dead_units",
        positions[named],
        value,
        share if value >= share else grown_share,
        f"{value:.0%} of the units of {block} get a gradient of exactly zero in {samples} samples in a row",
        "dead ReLUs or saturated units: a large negative bias, too large a step, or inputs of the wrong scale",
        "lower the learning rate, check the initialisation of the bias, or use GELU or LeakyReLU",
    )


def vanishing_gradients(history: HealthHistory, *, drop: float = 1e-4, samples: int = 5) -> list[Finding]:
    """Gradients of lower layers are `drop` times those of the same matrices nearer the loss, for `samples` samples.

    Relative to the other layers, since the absolute size means nothing to Adam. Healthy stacks stay above 1e-2, plain
    ReLU stacks with PyTorch's default initialisation lose 0.4 a layer; a sigmoid loses 0.14 a layer (benchmark).
    """
    rows = _usable(history, samples)
    if len(rows) < samples:
        return []
    found: list[int] = []
    value = 1.0
    for stack in _matrix_stacks(history):
        level = np.nan_to_num(history.gradient[rows][:, stack]).max(axis=0)  # (kinds, layers)
        above = np.maximum.accumulate(level[:, :0:-1], axis=1)[:, ::-1]
        relative = np.where((level[:, :-1] > 0) & (above > 0), level[:, :-1] / np.maximum(above, 1e-300), 1.0)
        relative = np.median(relative, axis=0)
        if (relative < drop).any():
            found += stack[:, :-1][:, relative < drop].ravel().tolist()
            value = min(value, float(relative.min()))
    if not found:
        return []
    layers = list(dict.fromkeys(history.blocks[p] for p in sorted(found)))
    return _finding(
        history,
        "vanishing_gradients",
        sorted(found),
        value,
        drop,
        f"gradients of {', '.join(layers[:4])} are {value:.1g} times those of the same weights in higher layers",
        "saturating activations (sigmoid, tanh), too small weights, or no residual connection or normalisation",
        "use ReLU or GELU, add residual connections or normalisation, initialise with a gain for the activation",
    )


def exploding_gradients(history: HealthHistory, *, growth: float = 100.0, samples: int = 3) -> list[Finding]:
    """Gradient norms before clipping stay `growth` times above those of the beginning.

    Compared with the median of the first 5 samples and with 10 times the largest of them (Megatron-LM calls 10 times
    the largest of the first 100 large); in each of the last `samples` samples, so that a spike does not count.
    """
    norm = history.gradient_norm[np.isfinite(history.gradient_norm)]
    if len(norm) < 5 + samples:
        return []
    limit = max(growth * float(np.median(norm[:5])), 10 * float(norm[:5].max()))
    now = float(norm[-samples:].min())
    if not limit > 0 or now <= limit:
        return []
    squares = np.nan_to_num(history.gradient[-1] ** 2 * history.count)
    largest = np.argsort(squares)[::-1][:3]
    return _finding(
        history,
        "exploding_gradients",
        sorted(largest.tolist()),
        now / float(np.median(norm[:5])),
        growth,
        f"gradient norms grew from {np.median(norm[:5]):.2g} to {now:.2g}",
        "the run diverges: too high a learning rate, no warm-up, or no clipping",
        "set max_grad_norm=1.0, lower the learning rate, warm up; go back to a checkpoint before the growth",
    )


def gradient_spike(
    history: HealthHistory, *, factor: float = 30.0, deviations: float = 8.0, samples: int = 20
) -> list[Finding]:
    """A single gradient norm is `factor` times the largest before and `deviations` robust deviations above the median.

    Judged at the next sample, so that the start of an explosion is not called a spike. Deviations are those of the
    logarithm around its trend, since norms of small batches have heavy tails. Megatron-LM calls 10 times the largest
    large, OLMo-core mean + 6 sigma; a healthy GPT-2 of the benchmark had one of 11 times, clipped, and went on well.
    """
    norm = history.gradient_norm
    if len(norm) < samples + 2 or not (norm[-2:] > 0).all():
        return []
    before = np.log(norm[:-2][norm[:-2] > 0])
    if len(before) < samples:
        return []
    middle = float(np.median(before[-samples:]))
    limit = max(before.max() + math.log(factor), middle + deviations * _scatter(before))
    then, now = np.log(norm[-2:])
    if then < limit or now >= limit:
        return []
    squares = np.nan_to_num(history.gradient[-2] ** 2 * history.count)
    return _finding(
        history,
        "gradient_spike",
        [int(np.argmax(squares))],
        math.exp(then - middle),
        math.exp(limit - middle),
        f"the gradient norm of step {history.step[-2]} was {math.exp(then - middle):.3g} times the median",
        "a bad batch (wrong labels, garbage text, an outlier in length), or the start of a divergence",
        "look at the batch of that step; clip gradients (max_grad_norm=1.0); lower the learning rate if it recurs",
    )


def clipped_every_step(history: HealthHistory, *, coefficient: float = 0.02, samples: int = 20) -> list[Finding]:
    """Clipping cuts every one of the last `samples` samples to less than `coefficient`.

    Clipping by 2 to 10 in most steps is normal in BERT fine-tuning; at 50 the limit replaces the gradient's size.
    """
    recent = history.clip_coefficient[~history.skipped][-samples:]
    if len(recent) < samples or not (recent < coefficient).all():
        return []
    return _finding(
        history,
        "clipped_every_step",
        [],
        float(np.median(recent)),
        coefficient,
        f"clipping multiplies gradients by {np.median(recent):.2g} in every one of {samples} samples",
        "max_grad_norm is far below the gradients of this model, or the loss is summed instead of averaged",
        "raise max_grad_norm (usual is 1.0); average the loss over tokens or examples",
    )


# --- loss and predictions -----------------------------------------------------------------------------------------


def loss_diverging(
    history: HealthHistory, *, rise: float = 0.5, given_back: float = 0.6, deviations: float = 6.0
) -> list[Finding]:
    """The loss (median of 5 samples) is clearly above its start, or (median of 10) has given back most of its gain.

    Clearly is `rise` times the start and `deviations` times the scatter of single samples; given back is a share of
    the gain, at least a fifth of the start. Batches of two have losses of either kind, easy or wrong, so that 5 of
    them say little about what came back.
    """
    loss = _loss(history)
    if loss.samples < 8 or not math.isfinite(loss.start):
        return []
    # The scatter of fine-tuning grows as examples become easy or hard, so what comes back is compared with the latest.
    rise_limit = loss.start + max(rise * abs(loss.start), deviations * loss.scatter)
    recent_noise = deviations * max(loss.scatter, loss.recent_scatter)
    gain = loss.start - loss.best
    return_limit = loss.best + max(given_back * gain, recent_noise, 0.2 * abs(loss.start))
    if loss.now > rise_limit:
        threshold, seen = rise_limit, f"the loss rose from {loss.start:.3g} to {loss.now:.3g}"
    elif (min(loss.now, loss.lately) if gain > 0.2 * abs(loss.start) else loss.now) > return_limit:
        threshold, seen = return_limit, f"the loss went back up to {loss.now:.3g} after {loss.best:.3g}"
    else:
        return []
    cause = "the learning rate is too high for this model and batch size"
    if not _warmed_up(history):
        cause += ", or the missing warm-up"
    return _finding(
        history,
        "loss_diverging",
        [],
        loss.now,
        threshold,
        seen,
        cause + "; else the sign of the loss, or data that changed",
        "go back to the last good checkpoint, lower the learning rate 3 to 10 times, warm up, clip gradients",
    )


def loss_flat(
    history: HealthHistory, *, samples: int = 40, steps: int = 150, recent: int = 30, share: float = 0.97
) -> list[Finding]:
    """After `samples` samples and `steps` steps the model knows no more than how frequent the classes are.

    With one class label per example the last `recent` losses are compared with the entropy of the labels seen; with
    token labels with `share` of the logarithm of the vocabulary, since the plateau of word frequencies is healthy.
    Judged after the warm-up, and not while the loss falls from the first to the second half of these samples. Other
    losses, and sums of several, have no level to compare with and are not judged.
    """
    if len(history) < samples or history.step[-1] - history.step[0] < steps:
        return []
    if _after_warmup(history).sum() < recent // 2:
        return []
    loss = history.loss[-recent:]
    if not np.isfinite(loss).all() or history.classes[-1] < 2:
        return []
    if not history.integer_labels[-1] or history.several_losses[-1]:
        return []
    halves = np.array_split(loss, 2)
    if halves[0].mean() - halves[1].mean() > 2 * math.hypot(*(half.std() / math.sqrt(len(half)) for half in halves)):
        return []
    loss = np.sort(loss)[recent // 10 : -(recent // 10)]  # without the extremes of single batches
    if math.isfinite(history.prior_loss[-1]):
        level = float(history.prior_loss[-1])
        limit = level - 2 * float(loss.std()) / math.sqrt(len(loss))
        known = "the entropy of the class frequencies"
        if level < 0.05:
            return []  # hardly anything to learn
    else:
        level = math.log(history.classes[-1])
        limit = share * level
        known = "a guess among all classes"
    if loss.mean() < limit:
        return []
    return _finding(
        history,
        "loss_flat",
        [],
        float(loss.mean()),
        limit,
        f"the loss stays at {loss.mean():.3g}; {known} alone gives {level:.3g}",
        "labels do not belong to the inputs (shuffled, shifted, off by one), inputs lack the information, or the "
        "learning rate is far too low or too high",
        "read ten examples with their labels; check that 20 examples can be learned by heart; vary the learning rate",
    )


def constant_prediction(
    history: HealthHistory, *, samples: int = 30, steps: int = 150, majority: float = 0.9
) -> list[Finding]:
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
        if len(history) < samples or history.step[-1] - history.step[recent][0] < steps:
            return []
        if not (history.top_share[recent] >= 0.999).all() or history.prior_loss[-1] < -math.log(majority):
            return []
        if np.median(history.loss[recent]) < 0.98 * history.prior_loss[-1]:
            return []
        value, seen = 1.0, f"every example got the same class in {samples} samples in a row"
    return _finding(
        history,
        "constant_prediction",
        [],
        value,
        majority,
        seen,
        "the model fell back to the most frequent class: learning rate too high or too low, unbalanced classes, or "
        "inputs without information",
        "lower the learning rate and warm up; weight the classes; read a batch as the model gets it",
    )


RULES: list[Callable[[HealthHistory], list[Finding]]] = [
    identical_inputs,
    masked_attention,
    wrong_loss_sign,
    initial_scale,
    loss_scale_overflow,
    nonfinite,
    frozen_layer,
    not_updated,
    rounded_away,
    update_ratio_high,
    dead_units,
    no_gradient,
    layer_out_of_line,
    update_ratio_low,
    vanishing_gradients,
    exploding_gradients,
    gradient_spike,
    loss_diverging,
    clipped_every_step,
    constant_prediction,
    loss_flat,
]

_COURSE = frozenset({"exploding_gradients", "gradient_spike", "clipped_every_step", "loss_diverging"})
_OUTCOME = frozenset({"loss_flat", "constant_prediction"})
_FLOW = frozenset({"vanishing_gradients", "dead_units", "no_gradient"})
_STEPS = frozenset({"update_ratio_high", "update_ratio_low", "layer_out_of_line"})

# What a finding explains. Where two explain each other, the one that was seen first does.
EXPLAINS: dict[str, frozenset[str]] = {
    "identical_inputs": _COURSE | _OUTCOME | _FLOW | _STEPS | {"nonfinite"},
    "masked_attention": _COURSE | _OUTCOME | _FLOW | _STEPS | {"nonfinite"},
    "wrong_loss_sign": _COURSE | _OUTCOME | _FLOW | _STEPS | {"nonfinite"},
    "initial_scale": _COURSE | _OUTCOME | _FLOW | _STEPS | {"nonfinite"},
    "loss_scale_overflow": _COURSE | _OUTCOME | _STEPS | {"nonfinite", "not_updated"},
    "nonfinite": _COURSE | _OUTCOME | _FLOW | _STEPS | {"not_updated"},
    "frozen_layer": _OUTCOME | {"vanishing_gradients"},
    "not_updated": _COURSE | _OUTCOME | {"vanishing_gradients", "layer_out_of_line"},
    "rounded_away": _OUTCOME | {"update_ratio_low", "not_updated"},
    "dead_units": _COURSE | _OUTCOME | {"vanishing_gradients", "no_gradient", "layer_out_of_line"},
    "no_gradient": _COURSE | _OUTCOME | {"vanishing_gradients", "layer_out_of_line"},
    "layer_out_of_line": _COURSE | _OUTCOME | _FLOW | {"update_ratio_high", "nonfinite"},
    "update_ratio_high": _COURSE | _OUTCOME | _FLOW | {"layer_out_of_line", "nonfinite"},
    "update_ratio_low": _OUTCOME | {"not_updated"},
    "vanishing_gradients": _OUTCOME | {"layer_out_of_line"},
    "exploding_gradients": _COURSE | _OUTCOME | _FLOW | _STEPS | {"nonfinite"},
    "gradient_spike": frozenset({"clipped_every_step"}),
    "loss_diverging": _COURSE | _OUTCOME | _FLOW | _STEPS | {"nonfinite"},
    "constant_prediction": frozenset({"loss_flat"}),
}
