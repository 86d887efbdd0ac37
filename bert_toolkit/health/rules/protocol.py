"""Rules on the loop itself: what must hold around every optimizer step, whatever is trained."""

from __future__ import annotations

import numpy as np

from bert_toolkit.health.findings import Finding, Severity
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import HEEDLESS, falls, latest
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule
from bert_toolkit.health.rules.settings import ADAM_LIKE

_EVERYTHING = (COURSE, OUTCOME, FLOW, STEPS, "nonfinite", "not_updated", "no_gradient")


@rule(
    needs="gradients",
    explains=_EVERYTHING,
    cause="zero_grad() is called between backward() and the optimizer's step",
    remedy="call zero_grad() after optimizer.step(), or before the forward pass",
)
def gradients_cleared(history: HealthHistory, *, samples: int = 2, fraction: float = 0.9) -> Finding | None:
    """Gradients arrived in the backward pass and are gone when the optimizer is called.

    Seen on a few parameters: their gradient was not zero at the end of backward, and is zero or None before the step.
    Steps that a loss scaler skips are not judged: clipping by an infinite norm makes finite gradients zero.
    """
    recent = latest(history, "cleared_gradient", samples)
    if len(recent) < samples or not (recent >= fraction).all() or history.skipped[-samples:].any():
        return None
    return gradients_cleared.finding(
        history,
        value=recent[-1],
        threshold=fraction,
        seen=f"gradients of {recent[-1]:.0%} of the parameters looked at arrived and were gone before the step",
    )


@rule(
    needs="gradients",
    explains=_EVERYTHING,
    cause="zero_grad() is never called, or not for these parameters, so that every step adds to the last",
    remedy="call optimizer.zero_grad() after every optimizer.step()",
)
def gradients_kept(history: HealthHistory, *, samples: int = 3, share: float = 1e-3) -> Finding | None:
    """The first backward pass of a step adds to gradients that an earlier step has already used.

    Compared on a few parameters: the gradient after the first backward pass against what this pass brought.
    """
    recent = latest(history, "stale_gradient", samples)
    if len(recent) < samples or not (recent > share).all():
        return None
    return gradients_kept.finding(
        history,
        value=np.median(recent),
        threshold=share,
        seen=f"before backward, gradients already held {np.median(recent):.2g} times what it brought",
    )


@rule(
    needs="updates",
    explains=(COURSE, STEPS),
    cause="the optimizer is made anew, or its state is cleared, while training goes on",
    remedy="make the optimizer once; load its state with the checkpoint when a run is resumed",
)
def optimizer_state_lost(history: HealthHistory) -> Finding | None:
    """The optimizer counts fewer steps than at the sample before, or keeps nothing between steps.

    Adam and its kin count the steps of every parameter; the count grows with training.
    """
    counts, in_all = history.fact("optimizer_steps"), history.fact("optimizer_steps_in_all")
    known = np.flatnonzero(np.isfinite(counts))
    if len(known) >= 2:
        before, now = known[-2], known[-1]
        steps = float(history.step[now] - history.step[before])
        # Steps that a loss scaler skipped are not counted, so only a count that does not grow is judged.
        gained = in_all[now] - in_all[before]
        skipped = history.skipped[before] or history.skipped[now]
        restarted = counts[now] < counts[before] or (gained == 0 and steps >= 1 and not skipped)
        if now == len(history) - 1 and restarted and counts[before] >= 1:
            return _lost(history, counts[now], counts[before])
    state = history.fact("optimizer_state")
    if len(known) == 0 and len(history) >= 4 and history.settings.optimizer in ADAM_LIKE:
        moved = np.isfinite(history.median_ratio[1:]).all()
        if moved and (state[1:] == 0).all():
            return _lost(history, 0.0, float(history.step[-1] - 1))
    return None


def _lost(history: HealthHistory, now: float, before: float) -> Finding:
    return optimizer_state_lost.finding(
        history,
        value=now,
        threshold=before,
        seen=f"the optimizer counts {now:.0f} steps at step {history.step[-1]}; {before:.0f} were counted before",
    )


@rule(
    needs="updates",
    explains=(OUTCOME, STEPS, "not_updated"),
    cause="the scheduler is stepped for every batch instead of every optimizer step, several times, or by two loops",
    remedy="call lr_scheduler.step() once after every optimizer step; Trainer does it itself",
)
def schedule_out_of_step(history: HealthHistory, *, factor: float = 1.4, steps: int = 4) -> Finding | None:
    """The scheduler of the learning rate has counted far more, or far fewer, steps than the optimizer has made."""
    counted = history.fact("schedule_steps")
    if not len(history) or not np.isfinite(counted[-1]) or history.step[-1] < steps:
        return None
    ratio = float(counted[-1]) / float(history.step[-1])
    # At most half of the steps may have been skipped by a loss scaler.
    skipped = history.skipped.any()
    if 1 / factor <= ratio <= factor or (ratio < 1 and skipped):
        return None
    return schedule_out_of_step.finding(
        history,
        value=ratio,
        threshold=factor,
        seen=f"the scheduler has counted {counted[-1]:.0f} steps at optimizer step {history.step[-1]}",
    )


@rule(
    needs="updates",
    explains=(OUTCOME, "update_ratio_low"),
    severity="warning",
    cause="a schedule that is meant for epochs is stepped with every batch (StepLR, ExponentialLR), or it was planned "
    "for fewer steps",
    remedy="step it once per epoch, or plan it for all steps of the run",
)
def rate_gone_early(history: HealthHistory, *, part: float = 0.01, share: float = 0.15) -> Finding | None:
    """The learning rate has been below `part` of its peak for `share` of the planned steps, and the run is not over.

    Usual schedules are there at their very end, and those that restart for a tenth of a cycle at most.
    """
    planned = history.last_step
    if len(history) < 8 or planned <= 0 or not history.rate.max() > 0 or history.now > 0.9 * planned:
        return None
    high = np.flatnonzero(history.rate >= part * history.rate.max())
    first = int(high[-1]) + 1
    if first >= len(history) or high[0] > 0 and high[-1] == high[0]:
        return None
    since = int(history.step[first])
    if history.now - since < share * planned or len(history) - first < 4:
        return None
    return rate_gone_early.finding(
        history,
        value=float(history.rate[-1] / history.rate.max()),
        threshold=part,
        seen=f"since step {since} of {planned} the learning rate is below {part:.0%} of its peak of "
        f"{history.rate.max():.2g}",
    )


@rule(
    needs="forward",
    cause="the loss is not divided by the number of accumulated batches, or twice, or it is summed over the batch",
    remedy="divide each batch's mean loss by gradient_accumulation_steps once; for models of transformers that ignore "
    "`num_items_in_batch` set `model.accepts_loss_kwargs = False`",
)
def loss_weight(history: HealthHistory, *, samples: int = 3, tolerance: float = 0.15) -> Finding | None:
    """The gradient of one optimizer step weighs as many batches as are accumulated, or one part of them.

    The gradient of a cross-entropy at its logits shows the weight of every example; those of a mean add up to one.
    Judged only where batches are accumulated, and only for weights that are the number of batches or one over it,
    since class weights and sums of several losses have weights of their own. With an optimizer that does not heed the
    size of gradients it does little harm: a note where nothing is divided, a warning where it is twice.
    """
    batches = history.settings.accumulation
    if batches < 2:
        return None
    recent = latest(history, "loss_weight", samples)
    if len(recent) < samples:
        return None
    weight = float(np.median(recent))
    for wrong, seen in ((float(batches), "as if none were divided"), (1.0 / batches, "as if each were divided twice")):
        if abs(weight / wrong - 1.0) < tolerance and (np.abs(recent / wrong - 1.0) < 2 * tolerance).all():
            heedless = any(name in history.settings.optimizer for name in HEEDLESS)
            severity: Severity = "error" if not heedless else "note" if wrong > 1 else "warning"
            return loss_weight.finding(
                history,
                value=weight,
                threshold=1.0,
                seen=f"the losses of {batches} accumulated batches weigh {weight:.2g} in all, {seen}",
                severity=severity,
            )
    return None


@rule(
    needs="updates",
    explains=(COURSE, OUTCOME, STEPS, FLOW, "layer_out_of_line"),
    cause="weights were initialized, loaded or overwritten again while training",
    remedy="look for what touches parameters besides the optimizer: init_weights(), load_state_dict(), a callback",
)
def weights_replaced(
    history: HealthHistory, *, factor: float = 10.0, share: float = 0.3, samples: int = 3
) -> Finding | None:
    """Between two samples matrices moved by a large part of their norm, far more than their steps can explain.

    The bound is the number of steps in between times the largest step seen at either end, times `factor`.
    """
    drift, moved, norms = (history.fact(name) for name in ("drift", "moved", "held_norm"))
    if drift.ndim != 2 or len(history) < samples or history.step[-1] - history.step[-2] <= 0:
        return None
    steps = float(history.step[-1] - history.step[-2])
    bound = factor * steps * np.fmax(moved[-1], np.nanmax(moved[-samples:], axis=0, initial=0.0))
    norm = np.fmax(norms[-1], norms[-2])
    with np.errstate(invalid="ignore"):
        jumped = (drift[-1] > bound) & (drift[-1] > share * norm)
    jumped &= history.is_matrix | history.where("embedding")
    jumped &= (moved[-1] > 0) & (moved[-2] > 0)  # a layer that was left out of a sampled step tells nothing of others
    positions = np.flatnonzero(jumped)
    if not len(positions):
        return None
    largest = float(np.nanmax(drift[-1][positions] / norm[positions]))
    return weights_replaced.finding(
        history,
        parameters=positions,
        value=largest,
        threshold=share,
        seen=f"between steps {history.step[-2]} and {history.step[-1]} weights moved by {largest:.0%} of their norm, "
        f"more than {factor:g} times what {steps:.0f} steps can",
    )


@rule(
    needs="updates",
    explains=(COURSE, OUTCOME, STEPS),
    cause="something puts the weights back after each step: an average of weights that is copied into the model, a "
    "state_dict that is loaded again, a swap of weights that is never undone",
    remedy="look for what writes to parameters after optimizer.step(); keep averaged weights in a model of their own",
)
def steps_undone(history: HealthHistory, *, left: float = 0.2, share: float = 0.9, samples: int = 4) -> Finding | None:
    """Steps move the weights, and at the next sample they are where they were before.

    Judged on the matrices that move: less than `left` of a step's length lies between where two samples in a row
    begin, in `share` of the matrices and `samples` times in a row. Steps that go to and fro do not meet like that in
    hundreds of directions.
    """
    progress, moved = history.fact("progress"), history.fact("moved")
    if progress.ndim != 2 or moved.ndim != 2 or len(history) <= samples:
        return None
    steps, net = moved[-samples - 1 : -1], progress[-samples:]
    looked_at = np.flatnonzero(
        history.is_matrix & (np.nan_to_num(steps) > 0).all(axis=0) & np.isfinite(net).all(axis=0)
    )
    if len(looked_at) < 2:
        return None
    remains = net[:, looked_at] / steps[:, looked_at]
    if not ((remains < left).mean(axis=1) > share).all():
        return None
    return steps_undone.finding(
        history,
        parameters=looked_at,
        value=float(np.median(remains[-1])),
        threshold=left,
        seen=f"of what a step moves {np.median(remains[-1]):.0%} is left when the next sample begins",
    )


@rule(
    needs="updates",
    explains=(COURSE, OUTCOME, STEPS, "nonfinite"),
    cause="the optimizer maximizes: maximize=True, a negative rate, or an update with the wrong sign",
    remedy="check the sign of the update of the optimizer, and of hooks and wrappers around its step",
)
def step_ascends(
    history: HealthHistory, *, cosine: float = 0.15, samples: int = 8, samples_of_layer: int = 12
) -> Finding | None:
    """Steps point along the gradient instead of against it, in the model as a whole or in one layer, every time.

    Looked at is the median cosine over the matrices: above zero in each sample and above `cosine` on the whole. Noise
    and momentum turn single steps; `samples` in a row for the model, and `samples_of_layer` for a layer of two
    matrices or more, they do not. Silent while the loss falls.
    """
    ascent = history.fact("ascent")
    if ascent.ndim != 2 or len(history) < samples or falls(history.step, history.loss):
        return None
    matrices = history.is_matrix & np.isfinite(ascent[-samples:]).all(axis=0)
    if matrices.sum() >= 3 and _points_up(ascent[-samples:, matrices], cosine):
        return _ascending(history, (), float(np.median(ascent[-samples:, matrices])), cosine)
    if len(history) < samples_of_layer:
        return None
    blocks = np.array(history.blocks)
    for block in dict.fromkeys(history.blocks):
        inside = np.flatnonzero(matrices & (blocks == block) & np.isfinite(ascent[-samples_of_layer:]).all(axis=0))
        if len(inside) >= 2 and _points_up(ascent[-samples_of_layer:, inside], cosine):
            return _ascending(history, tuple(inside), float(np.median(ascent[-samples_of_layer:, inside])), cosine)
    return None


def _points_up(ascent: np.ndarray, cosine: float) -> bool:
    each = np.median(ascent, axis=1)
    return bool((each > 0).all() and np.median(each) > cosine)


def _ascending(history: HealthHistory, parameters: tuple[int, ...], value: float, cosine: float) -> Finding:
    return step_ascends.finding(
        history,
        parameters=parameters,
        value=value,
        threshold=cosine,
        seen=f"step after step has a cosine of about {value:.2g} with the gradient; it should be negative",
    )
