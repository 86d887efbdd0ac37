"""Pictures for docs/training-health.md: what each rule sees in a broken and in a healthy training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.fault_injection.results import build
from bert_toolkit.health.history import HealthHistory


def block_mean(values: np.ndarray, history: HealthHistory, block: str) -> np.ndarray:
    """Mean over the matrices of a block, per sample."""
    inside = [p for p, b in enumerate(history.blocks) if b == block and history.roles[p] == "matrix"]
    return np.nan_to_num(values[:, inside]).mean(axis=1)


def matrix_median(values: np.ndarray, history: HealthHistory) -> np.ndarray:
    """Median over all matrices, per sample."""
    return np.nanmedian(values[:, history.where("matrix")], axis=1)


def total_norm(history: HealthHistory) -> np.ndarray:
    """Norm of all gradients, per sample."""
    return np.sqrt(np.nansum(history.gradient**2 * history.count, axis=1))


# rule -> (broken training, healthy training, what is drawn, its name, logarithmic)
PICTURES: dict[str, tuple[str, str, Callable[[HealthHistory], np.ndarray], str, bool]] = {
    "identical_inputs": ("gpt2.constant_input", "gpt2_as_it_is", lambda h: h.identical_inputs, "inputs alike", False),
    "fully_masked_inputs": ("gpt2.all_masked_attention", "gpt2_as_it_is", lambda h: h.masked_share, "hidden", False),
    "wrong_loss_sign": ("gpt2.wrong_loss_sign", "gpt2_as_it_is", lambda h: h.loss, "loss", False),
    "initial_scale": (
        "gpt2.initial_scale_x10",
        "gpt2_as_it_is",
        lambda h: np.quantile(h.weight[:, h.where("matrix")], 0.75, axis=1),
        "weights, r.m.s.",
        True,
    ),
    "loss_scale_overflow": (
        "gpt2.fp16_overflow",
        "gpt2_as_it_is",
        lambda h: np.cumsum(h.skipped) / np.arange(1, len(h) + 1),
        "skipped steps",
        False,
    ),
    "nonfinite": (
        "gpt2.nan_batch",
        "gpt2_as_it_is",
        lambda h: h.nonfinite.sum(axis=1),
        "parameters with NaN",
        False,
    ),
    "frozen_layer": (
        "gpt2.layer_frozen_by_mistake",
        "gpt2_as_it_is",
        lambda h: block_mean(h.ratio, h, "layer.2"),
        "update ratio, layer.2",
        False,
    ),
    "not_updated": (
        "gpt2.missing_from_optimizer",
        "gpt2_as_it_is",
        lambda h: block_mean(h.ratio, h, "layer.1"),
        "update ratio, layer.1",
        False,
    ),
    "rounded_away": (
        "gpt2.bf16_stall",
        "gpt2_as_it_is",
        lambda h: matrix_median(h.changed_share, h),
        "elements changed",
        False,
    ),
    "dead_units": (
        "digits.dead_units",
        "digits_as_it_is",
        lambda h: block_mean(h.zero_share, h, "layer.2"),
        "zero gradients, layer.2",
        False,
    ),
    "no_gradient": (
        "gpt2.detached_branch",
        "gpt2_as_it_is",
        lambda h: h.missing.sum(axis=1),
        "without gradient",
        False,
    ),
    "layer_out_of_line": (
        "gpt2.diverging_layer",
        "gpt2_as_it_is",
        lambda h: block_mean(h.ratio, h, "layer.2") / (block_mean(h.ratio, h, "layer.1") + 1e-12),
        "update ratio, 2 over 1",
        True,
    ),
    "update_ratio_high": (
        "gpt2.learning_rate_x100",
        "gpt2_as_it_is",
        lambda h: matrix_median(h.ratio, h),
        "update ratio",
        True,
    ),
    "update_ratio_low": (
        "gpt2.learning_rate_div1000",
        "gpt2_as_it_is",
        lambda h: matrix_median(h.ratio, h),
        "update ratio",
        True,
    ),
    "vanishing_gradients": (
        "digits.deep_sigmoid_stack",
        "digits_as_it_is",
        lambda h: block_mean(h.gradient, h, "layer.1") / block_mean(h.gradient, h, h.blocks[-3]),
        "gradient, low over high",
        True,
    ),
    "exploding_gradients": ("digits.gradient_ascent", "digits_as_it_is", total_norm, "gradient norm", True),
    "gradient_spike": ("digits.outlier_batch", "digits_as_it_is", total_norm, "gradient norm", True),
    "loss_diverging": ("gpt2.gradient_ascent", "gpt2_as_it_is", lambda h: h.loss, "loss", False),
    "clipped_every_step": (
        "gpt2.clipping_limit_too_low",
        "gpt2_as_it_is",
        lambda h: h.clip_coefficient,
        "clip coefficient",
        True,
    ),
    "constant_prediction": (
        "digits.exploding_without_clipping",
        "digits_as_it_is",
        lambda h: h.top_share,
        "largest predicted class",
        False,
    ),
    "loss_flat": ("digits.shuffled_labels", "digits_as_it_is", lambda h: h.loss, "loss", False),
}


def pictures(histories: Path, seed: int) -> None:
    """Draw what each rule sees, in a broken and in a healthy training."""
    folder = Path(__file__).parents[2] / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for rule, (broken, healthy, statistic, label, logarithmic) in PICTURES.items():
        figure = Figure(figsize=(4.2, 2.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, title, color in ((f"control.{healthy}", "healthy", "#0072B2"), (broken, "broken", "#D55E00")):
            kind, job = name.split(".")
            run = build(kind, job, seed)
            history = HealthHistory(run.model, run.settings["max_steps"])
            history.load(histories / f"{name}.{seed}.npz", sys.maxsize)
            values = np.asarray(statistic(history), dtype=float)
            axes.plot(history.step, values, color=color, label=title, marker=".", markersize=3, linewidth=1)
        if logarithmic:
            axes.set_yscale("log")
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
        figure.savefig(folder / f"health_{rule}.png", dpi=90)
