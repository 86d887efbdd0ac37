"""Figures of a finished run: learning curves, scores by batch, confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

BLUE, ORANGE, GREY = "#3566a5", "#d1752b", "#8a8a8a"


def draw_learning_curves(log_history: Sequence[Mapping[str, float]], metrics: Sequence[str], title: str):
    """Draws the loss of training and validation and, beside it, validation metrics over the steps.

    Args:
        log_history: `trainer.state.log_history`.
        metrics: Keys of the right panel without the `eval_` prefix.
        title: Figure title.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure = _figure(10, 4)
    loss_axes, metric_axes = figure.subplots(1, 2)
    for key, label, color in (("loss", "training", BLUE), ("eval_loss", "validation", ORANGE)):
        steps, values = _curve(log_history, key)
        loss_axes.plot(steps, values, color=color, label=label, marker="o" if key == "eval_loss" else None, ms=4)
    loss_axes.set(xlabel="step", ylabel="loss (nats)")
    loss_axes.legend(frameon=False)
    for key, color in zip(metrics, (BLUE, ORANGE, GREY), strict=False):
        steps, values = _curve(log_history, f"eval_{key}")
        metric_axes.plot(steps, values, color=color, label=key.replace("_", " "), marker="o", ms=4)
    metric_axes.set(xlabel="step", ylabel="validation score")
    metric_axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def draw_batch_scores(scores: Sequence[float], total: float, name: str, title: str):
    """Draws a score for each batch of the test set as bars, with the score of the whole set as a line.

    Args:
        scores: Score of each batch, in order.
        total: Score of all rows together.
        name: Name of the score.
        title: Figure title.
    """
    figure = _figure(10, 4)
    axes = figure.subplots()
    axes.bar(range(len(scores)), scores, color=BLUE)
    axes.axhline(total, color=ORANGE, label=f"all rows: {total:.3f}")
    axes.set(xlabel="batch", ylabel=name, title=title)
    axes.legend(frameon=False)
    return figure


def draw_confusion_matrix(matrix: np.ndarray, label_names: Sequence[str], title: str):
    """Draws counts of true (rows) against predicted classes (columns), coloured by the share of the row.

    Args:
        matrix: Integer array (classes, classes).
        label_names: Name of each class.
        title: Figure title.
    """
    side = 3.2 + 0.55 * len(label_names)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{count:,}\n{shares[row, column]:.0%}", ha="center", va="center", color=color)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(len(label_names)), label_names, rotation=30 if len(label_names) > 3 else 0, ha="center")
    axes.set_yticks(range(len(label_names)), label_names)
    return figure


def save_figures(figures: Mapping[str, object], output_dir: str | Path, step: int) -> list[Path]:
    """Writes figures as PNG below `output_dir/figures` and as images into a TensorBoard run beside the training's.

    The TensorBoard run is a folder of its own, because two writers in one folder lose points while a server reads.

    Args:
        figures: Name to `matplotlib.figure.Figure`.
        output_dir: Output directory of the run.
        step: Step at which TensorBoard shows them.

    Returns:
        The PNG files.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(output_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with SummaryWriter(str(Path(output_dir) / "runs" / "results")) as writer:
        for name, figure in figures.items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=130)
            writer.add_figure(name, figure, global_step=step)
    return paths


def _figure(width: float, height: float):
    # Figure without pyplot: no global state and no display, whatever backend the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve(log_history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
    return [step for step, _ in points], [value for _, value in points]
