"""The published thresholds of smdebug's rules, applied to the statistics that training health samples."""

from __future__ import annotations

import math

import numpy as np

from bert_toolkit.health.history import HealthHistory


def other_thresholds(history: HealthHistory) -> list[str]:
    """Rules of smdebug with their published thresholds that fire anywhere in the same statistics."""
    # A warm-up begins at rate 0; that nothing moves then is no fault.
    rows = ~history.skipped & ~history.nonfinite.any(axis=1) & (history.rate > 0)
    gradient, ratio = history.gradient[rows], history.ratio[rows]
    hidden = history.where("matrix", "bias") & np.array([".layer." in f".{b}" for b in history.blocks])
    matrices = history.where("matrix") & (history.weight[0] > 0)
    loss = history.loss[np.isfinite(history.loss)]
    fired = {
        "vanishing gradient": (gradient < 1e-7).any(),
        "exploding tensor": bool(history.nonfinite.any() or history.loss_nonfinite.any()),
        "update ratio too large": (ratio > 10).any(),
        "update ratio too small": (ratio < 1e-8).any(),
        "tensor unchanged": any((ratio[i : i + 3] == 0).all(0).any() for i in range(len(ratio) - 2)),
        "dead ReLU": (history.zero_share[rows][:, hidden] > 0.5).any(),
        "poor initialisation": bool(matrices.any() and np.ptp(2 * np.log(history.weight[0, matrices])) > math.log(10)),
        "loss not decreasing": any(loss[i + 10] > 0.999 * loss[i] for i in range(len(loss) - 10)),
    }
    return [name for name, value in fired.items() if value]


OTHERS = {
    "vanishing gradient": "mean below 1e-7",
    "exploding tensor": "NaN or infinite",
    "update ratio too large": "> 10",
    "update ratio too small": "< 1e-8",
    "tensor unchanged": "3 steps",
    "dead ReLU": "> 50 % of a layer",
    "poor initialisation": "variance ratio > 10",
    "loss not decreasing": "0.1 % in 10 samples",
}
