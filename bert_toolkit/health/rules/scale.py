"""Rules on the size of weights and of the optimizer's steps."""

import math

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.gradients import dead_units, silent_units
from bert_toolkit.health.rules.questions import (
    after_warmup,
    falls,
    fresh_layers,
    has_fallen,
    has_not_fallen,
    has_risen,
    is_late,
    is_trained,
    loss_of_frequencies,
    matrices,
    matrix_stacks,
    usable_samples,
    warmed_up,
)
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule

# How far one step moves the matrix that moves most, relative to its norm, in the healthy trainings of the benchmark:
# 0.003 to 0.02 in mid-run.
USUAL_LARGEST = 5e-3
_FEW_CLASSES = 32  # of a classifier, whose head may begin with anything


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite"),
    needs="updates",
    cause="weights were initialized or rescaled wrongly, or one layer was not loaded with the others",
    remedy="use the model's own initialization (initializer_range 0.02; torch.nn.init for plain layers); check the "
    "loading report for missing keys",
)
def initial_scale(
    history: HealthHistory,
    *,
    low_gain: float = 0.2,
    high_gain: float = 4.0,
    trained_gain: float = 8.0,
    usual: float = 0.02,
    factor: float = 4.0,
    layer_factor: float = 5.0,
) -> Finding | None:
    """At the first step most matrices are far too small or too large, or one layer differs from all its peers.

    A gain is the root mean square times the square root of the fan: PyTorch's default has 0.58, Glorot 1, He 1.41;
    smdebug draws the line at a variance ratio of 10 (3.2 in standard deviation), trained weights reach 5 (GPT-2).
    Fresh transformers (normalizations are exactly one) have standard deviation `usual` at any width (BERT, GPT-2,
    Llama; `initializer_range` of their config) and may be `factor` off it, or as large as He's. Layers of one trained
    model differ by up to 3, below `layer_factor`. Judged are linear layers where there are three, without low-rank
    ones: filters, state matrices and what has few inputs have scales of their own.
    """
    if history.step[0] > 1 or len(history) > 12:
        return None
    positions = _full_linear_layers(history, matrices(history))
    positions = positions[history.weight[0, positions] > 0]
    if len(positions) >= 3:
        weight, side = history.weight[0, positions], np.sqrt(history.fan[positions])
        norms = [p for p in np.flatnonzero(history.where("norm")) if history.names[p].endswith("weight")]
        scales = history.weight[0, norms]
        smallest = largest = np.quantile(weight, 0.75)  # projections back into the stream may be smaller
        if history.initializer_range is not None and len(norms) and (np.abs(scales - 1.0) < 1e-3).all():
            low_limit = max(history.initializer_range, usual) / factor
            high_limit = max(factor * history.initializer_range, 1.6 / side.min())
        else:
            smallest, largest = np.quantile(weight * side, 0.75), np.quantile(weight * side, 0.25)
            low_limit = low_gain if np.quantile(weight, 0.75) < usual / 1.5 else 0.0
            high_limit = trained_gain if len(norms) else high_gain
        if smallest < low_limit or largest > high_limit:
            low = smallest < low_limit
            return initial_scale.finding(
                history,
                value=smallest if low else largest,
                threshold=low_limit if low else high_limit,
                seen=(
                    f"weights are far too {'small' if low else 'large'} at the first step: root mean square "
                    f"{np.median(weight):.2g}"
                ),
                cause="weights were initialized or rescaled wrongly, or a checkpoint was loaded with another scale",
                remedy="use the model's own initialization (initializer_range 0.02; torch.nn.init for plain layers)",
            )
    for stack in matrix_stacks(history):
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
                return initial_scale.finding(
                    history,
                    parameters=np.sort(stack[kinds, layer]),
                    value=relative,
                    threshold=layer_factor,
                    seen=f"weights are {relative:.2g} times those of the other layers at the first step",
                    cause="this layer was initialized or rescaled differently, or not loaded with the others",
                    remedy="check the loading report for missing keys; initialize all layers alike",
                )
    return None


def _full_linear_layers(history: HealthHistory, positions: np.ndarray) -> np.ndarray:
    inputs = history.start.get("fan_in", np.full(len(history.names), np.nan))[positions]
    linear = np.isfinite(inputs)
    if linear.sum() < 3:
        return positions
    return positions[linear & (inputs >= 0.5 * np.median(inputs[linear]))]


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME),
    severity="warning",
    cause="outputs are far too large at the start: the table of words that is tied to the head has a deviation of 1 "
    "(nn.Embedding's own), or the head or the last normalization was scaled",
    remedy="initialize the table or the head with a deviation of 0.02, or divide logits by the root of the width",
)
def initial_loss_high(history: HealthHistory, *, times: float = 1.5, margin: float = 3.0) -> Finding | None:
    """A fresh model is surer than it can be: its first loss is far above that of a guess among all classes.

    Judged at the first step on a mean cross-entropy of many classes or of tokens. Trained models are told by
    `worse_than_guessing`.
    """
    if len(history) != 1 or history.now != 1 or history.several_losses[0] or history.classes[0] < _FEW_CLASSES:
        return None
    states = fresh_layers(history).values() if history.start else ()
    guess = math.log(history.classes[0])
    if not states or not all(states) or not history.loss[0] > max(times * guess, guess + margin):
        return None
    agrees = (
        np.nan_to_num(history.fact("target_agrees")[0]) > 0.9 or np.nan_to_num(history.fact("target_is_next")[0]) > 0.9
    )
    if not agrees or not history.fact("loss_weight")[0] < 1.5 or not history.fact("gradient_row_sum")[0] < 0.1:
        return None
    return initial_loss_high.finding(
        history,
        value=history.loss[0],
        threshold=max(times * guess, guess + margin),
        seen=f"the first loss is {history.loss[0]:.3g}, a guess among {history.classes[0]} classes scores {guess:.3g}",
    )


@rule(
    group=STEPS,
    explains=(COURSE, OUTCOME, FLOW, "layer_out_of_line", "nonfinite"),
    needs="updates",
    cause="the learning rate is too high, or it starts without a warm-up",
    remedy="lower the learning rate 10 to 100 times; warm up over 5 to 10 % of the steps",
)
def update_ratio_high(
    history: HealthHistory, *, always: float = 0.2, with_loss: float = 0.03, samples: int = 3, part: float = 0.1
) -> Finding | None:
    """A step moves matrices by a large part of their norm.

    Healthy ratios lie at 1e-4 to 1e-2 (cs231n: about 1e-3), and at up to 0.1 while small fresh weights grow, so
    `always` is a fault by itself in `samples` samples unless the loss falls all the same; from `with_loss` on it is
    one where the loss has not fallen meanwhile or units died. Steps that were large while weights were small, and
    no longer are, did their work: then they are a fault only where the loss is higher than it was. Where hardly any
    matrix trains, or less than `part` of all, on a frozen body (a fresh head, LoRA, prompts), small weights grow by
    large parts at first, and a step must be as long as the weights themselves. A loss without a level (policies) can
    neither have fallen nor not. In a model whose layers are trained, first steps of `with_loss` destroy what it knows:
    they are a fault where the loss then stays at what class frequencies score.
    """
    ratio = history.median_ratio
    trained = matrices(history)
    few = len(trained) < 3 or history.count[trained].sum() < part * history.count[history.is_matrix].sum()
    always = 1.0 if few else always
    large = 0 if few else int((ratio > with_loss).sum())
    ruined = not few and _body_was_ruined(history, with_loss)
    lately = int((ratio[-20:] > with_loss).sum())
    useless = min(large, lately) >= 2 * samples and len(history) >= 20 and has_not_fallen(history)
    useless &= is_late(history, 0.6)  # plateaus before learning are healthy
    learns = len(history) < 2 * samples or falls(history.step, history.loss) or has_fallen(history)
    still = ratio[-1] > always and (ratio > always).sum() >= samples
    if (ratio > 1.0).sum() >= samples or (still and not learns):
        threshold = always
    elif (
        (useless and (ratio[-1] > with_loss or has_risen(history)))
        or (large >= samples and _units_died(history))
        or ruined
    ):
        threshold = with_loss
    else:
        return None
    value = float(np.median(ratio[ratio > threshold]))
    warm = warmed_up(history)
    cause = "the learning rate is too high" + ("" if warm else ", and it starts without a warm-up")
    return update_ratio_high.finding(
        history,
        value=value,
        threshold=threshold,
        seen=f"a step moves matrices by {value:.2g} of their norm; about 0.001 is usual",
        cause=cause,
        remedy=(
            ("lower the learning rate 10 to 100 times" if threshold == always else "lower the learning rate")
            + ("" if warm else "; warm up over 5 to 10 % of the steps")
        ),
    )


@rule(
    group=STEPS,
    explains=(COURSE, OUTCOME, FLOW, "update_ratio_high", "nonfinite"),
    needs="updates",
    cause="a parameter group with a larger learning rate, a layer with another scale, or a gradient hook",
    remedy="compare the learning rate, the initial scale and the hooks of this layer with the other layers",
)
def layer_out_of_line(history: HealthHistory, *, factor: float = 10.0, samples: int = 3) -> Finding | None:
    """The update ratios or the gradients of one layer exceed those of every other layer `factor` times.

    Compared are the same matrices of different layers, in at least half of the kinds that a layer has and in each of
    the last `samples` samples; gradients in each of the first `samples` as well, since what a hook or a scale does is
    there from the start, while gradients that grow apart in training do no harm unless steps do. Layer-wise learning
    rates differ by less than 2 from one layer to the next; gradients of healthy layers by less than 5 (benchmark).
    """
    usable = usable_samples(history, len(history))
    rows = usable[-samples:]
    if len(rows) < samples:
        return None
    both = np.r_[usable[:samples], rows]
    for stack in matrix_stacks(history):
        for what, array, looked_at in (
            ("update ratio", history.ratio, rows),
            ("gradient", history.gradient, both),
        ):
            values = np.nan_to_num(array[looked_at][:, stack])  # (samples, kinds, layers)
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
                return layer_out_of_line.finding(
                    history,
                    parameters=np.sort(stack[kinds, layer]),
                    value=excess,
                    threshold=factor,
                    seen=f"the {what} of {block} is {excess:.3g} times that of any other layer",
                    remedy=f"compare learning rate, initial scale and hooks of {block} with the other layers",
                )
    return None


@rule(
    group=STEPS,
    explains=(OUTCOME, "not_updated"),
    needs="updates",
    cause="the learning rate is too low, or the warm-up takes most of the run",
    remedy="raise the learning rate 10 to 1000 times, shorten the warm-up to 5 to 10 % of the steps; usual rates are "
    "2e-5 to 5e-4 for fine-tuning, 1e-4 to 1e-3 from scratch",
)
def update_ratio_low(
    history: HealthHistory,
    *,
    per_step: float = 2e-4,
    planned: float = 0.02,
    always: float = 1e-6,
    samples: int = 20,
) -> Finding | None:
    """Steps are so small that the whole run cannot get anywhere.

    Judged after the warm-up, or from the middle of the run where that has not ended by then, on the matrix that moves
    most. The ratio times the number of steps of the run bounds how far weights can go; fine-tuning moves them by a
    few percent. Below `always` per step it is a fault by itself; below `per_step` and `planned` in all it is one where
    the loss has not fallen.
    """
    rows = np.flatnonzero(after_warmup(history) & ~history.skipped)
    warming = not len(rows) and history.step[-1] >= history.last_step / 2
    if warming:
        rows = np.flatnonzero(~history.skipped)[-samples:]
    weights = matrices(history)
    if len(rows) < min(samples, 8) or not len(weights):
        return None
    largest = float(np.median(history.largest_ratio[rows[-samples:]]))
    if not largest > 0 or (history.item_size[weights] <= 2).all():
        return None  # told by other rules
    reach = largest * max(history.last_step, 1)
    if largest < always and reach < planned:
        threshold = always
    elif (
        largest < per_step
        and reach < planned
        and len(rows) >= samples
        and is_late(history, 0.5)
        and has_not_fallen(history)
        and not falls(history.step, history.loss)
    ):
        threshold = per_step
    else:
        return None
    return update_ratio_low.finding(
        history,
        value=largest,
        threshold=threshold,
        seen=(
            f"a step moves matrices by at most {largest:.2g} of their norm: "
            f"all {history.last_step} steps by {reach:.2g}"
        ),
        cause=(
            "the warm-up takes more than half of the run, and the learning rate is still too low"
            if warming
            else "the learning rate is too low, or the optimizer's steps are too small for the scale of the weights"
        ),
        remedy=(
            (
                "shorten the warm-up to 5 to 10 % of the steps; "
                if warming
                else f"raise the learning rate, by these steps about {_round(USUAL_LARGEST / largest)} times; "
            )
            + "then try 3 and 10 times that rate and keep the one whose loss ends lowest; usual are 2e-5 to 5e-4 for "
            "fine-tuning, 1e-4 to 1e-3 from scratch"
        ),
    )


def _body_was_ruined(history: HealthHistory, ratio: float, *, samples: int = 8) -> bool:
    """Whether early steps of a trained model were large, and it now predicts no better than a guess."""
    if len(history) < samples + 2 or not history.start or not is_trained(history) or history.several_losses.any():
        return False
    lately, guess = history.loss[-samples:], loss_of_frequencies(history)[-samples:]
    if not (history.median_ratio > ratio).any() or not np.isfinite(guess).all() or not np.isfinite(lately).all():
        return False
    return bool(np.median(lately) >= np.median(guess))


def _round(number: float) -> str:
    """A number of one digit, as people say it."""
    power = 10 ** math.floor(math.log10(number))
    return f"{max(round(number / power) * power, 2):,.0f}"


def _units_died(history: HealthHistory) -> bool:
    """Whether units are dead now that were alive at the first sample."""
    finding = dead_units(history)
    if finding is None:
        return False
    positions = [history.names.index(name) for name in finding.parameters]
    return bool((silent_units(history, positions)[0] < 0.5).all())
