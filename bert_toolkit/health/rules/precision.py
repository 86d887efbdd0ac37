"""Rules on numbers that a format cannot hold: NaN, overflow, steps that round away."""

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import after_warmup, matrices
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    explains=(COURSE, OUTCOME, STEPS, "nonfinite", "not_updated"),
    needs="gradients",
    cause="activations or gradients exceed fp16's 65,504, or the loss scale grows too fast",
    remedy="train in bf16 (--bf16), or lower the learning rate; check for a custom loss that sums instead of "
    "averaging",
)
def loss_scale_overflow(
    history: HealthHistory, *, share: float = 0.3, window: int = 12, search_steps: int = 24
) -> Finding | None:
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
        return None
    return loss_scale_overflow.finding(
        history,
        value=skipped[-window:].mean(),
        threshold=share,
        seen=(
            f"{skipped[-window:].mean():.0%} of the last {len(skipped[-window:])} sampled steps were skipped: "
            "gradients overflowed in fp16"
        ),
    )


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, "not_updated"),
    needs="gradients",
    cause="NaN in the data, an overflow, sqrt(0), log(0) or 0/0 in the forward pass or the loss, too high a learning "
    "rate",
    remedy="go back to the last checkpoint; look for NaN in the data; torch.autograd.set_detect_anomaly(True) names "
    "the operation; lower the learning rate, clip gradients, prefer bf16 to fp16",
)
def nonfinite(history: HealthHistory) -> Finding | None:
    """A gradient, a weight or the loss is NaN or infinite, and no loss scaler skipped the step.

    Names what went bad first. Gradients go bad from the loss downwards, so the culprit is the bad parameter nearest
    to the loss; where all went bad together it is the batch or the loss itself.
    """
    bad_weight = history.trainable & np.isinf(history.weight) & ~np.isnan(history.learning_rate)
    bad = history.nonfinite | bad_weight
    rows = (bad.any(axis=1) | history.loss_nonfinite) & ~history.skipped
    if not rows.any():
        return None
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
    return nonfinite.finding(
        history, parameters=named, value=max(len(positions), 1), threshold=0, seen=seen, cause=cause
    )


@rule(
    explains=(OUTCOME, "update_ratio_low", "not_updated"),
    needs="updates",
    cause="weights are bf16 or fp16 themselves, and the steps are smaller than their spacing",
    remedy="keep weights in fp32 and use mixed precision (--bf16), or stochastic rounding, or a larger learning rate",
)
def rounded_away(history: HealthHistory, *, share: float = 0.5, samples: int = 5) -> Finding | None:
    """Most elements of half-precision weights do not change although they have a gradient.

    bf16 keeps 8 bits: a step below 0.4 % of a weight is rounded away. Measured on weights of standard deviation 0.03:
    21 % of elements change at a step of 2e-5, 5 % at 5e-6; in fp32 all of them do.
    """
    positions = matrices(history)
    positions = positions[history.item_size[positions] <= 2]
    rows = np.flatnonzero(after_warmup(history) & ~history.skipped)[-samples:]
    if len(rows) < samples or not len(positions):
        return None
    alive = 1.0 - history.zero_share[rows][:, positions]
    changed = np.nan_to_num(history.changed_share[rows][:, positions] / np.maximum(alive, 1e-9), nan=1.0)
    per_sample = np.median(changed, axis=1)
    if not (per_sample < share).all():
        return None
    return rounded_away.finding(
        history,
        parameters=positions[changed.max(axis=0) < share],
        value=per_sample[-1],
        threshold=share,
        seen=f"a step changes only {per_sample[-1]:.0%} of the elements of half-precision weights",
    )
