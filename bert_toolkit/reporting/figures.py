"""Figures of a finished run: learning curves, scores by batch, confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#3566a5", "#d1752b", "#8a8a8a"
CLASSES_DRAWN = 30


def draw_learning_curves(
    log_history: Sequence[Mapping[str, float]], metrics: Sequence[str], title: str, loss: str = "loss (nats)"
) -> Figure:
    """Draw the loss of training and validation and, beside it, validation metrics over the steps.

    Args:
        log_history: `trainer.state.log_history`.
        metrics: Keys of the right panel without the `eval_` prefix.
        title: Figure title.
        loss: Name and unit of the loss.

    Returns:
        The figure.
    """
    figure = _figure(10, 4)
    loss_axes, metric_axes = figure.subplots(1, 2)
    for key, label, color in (("loss", "training", BLUE), ("eval_loss", "validation", ORANGE)):
        steps, values = _curve(log_history, key)
        loss_axes.plot(steps, values, color=color, label=label, marker="o" if key == "eval_loss" else None, ms=4)
    loss_axes.set(xlabel="step", ylabel=loss)
    loss_axes.legend(frameon=False)
    for key, color in zip(metrics, (BLUE, ORANGE, GREY), strict=False):
        steps, values = _curve(log_history, f"eval_{key}")
        metric_axes.plot(steps, values, color=color, label=key.replace("_", " "), marker="o", ms=4)
    metric_axes.set(xlabel="step", ylabel="validation score")
    metric_axes.legend(frameon=False)
    figure.suptitle(title, parse_math=False)
    return figure


def draw_batch_scores(scores: Sequence[float], total: float, name: str, title: str) -> Figure:
    """Draw a score for each batch of the test set as bars, with the score of the whole set as a line.

    Args:
        scores: Score of each batch, in order.
        total: Score of all rows together.
        name: Name of the score.
        title: Figure title.

    Returns:
        The figure.
    """
    figure = _figure(10, 4)
    axes = figure.subplots()
    axes.bar(range(len(scores)), scores, color=BLUE)
    axes.axhline(total, color=ORANGE, label=f"all rows: {total:.3f}")
    axes.set(xlabel="batch", ylabel=name)
    axes.set_title(title, parse_math=False)
    axes.legend(frameon=False)
    return figure


def draw_batch_losses(losses: Sequence[float], first_batch: int, title: str, loss: str = "loss (nats)") -> Figure:
    """Draw the training loss of every batch and its running mean.

    Args:
        losses: Loss of each batch, in order.
        first_batch: Number of the first of them.
        title: Figure title.
        loss: Name and unit of the loss.

    Returns:
        The figure.
    """
    figure = _figure(10, 4)
    axes = figure.subplots()
    batches = np.arange(first_batch, first_batch + len(losses))
    window = max(1, len(losses) // 50)
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(batches, losses, color=GREY, lw=0.6, alpha=0.7, label="batch")
    axes.plot(batches[window - 1 :], means, color=BLUE, label=f"mean of the last {window}")
    axes.set(xlabel="batch", ylabel=f"training {loss}")
    axes.set_title(title, parse_math=False)
    axes.legend(frameon=False)
    return figure


def draw_class_scores(scores: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draw precision, recall and F1 of each class as bars, the first `CLASSES_DRAWN` classes.

    Args:
        scores: Class name to `precision`, `recall` and `f1`.
        title: Figure title.

    Returns:
        The figure.
    """
    names = list(scores)[:CLASSES_DRAWN]
    figure = _figure(max(5, 2 + 0.5 * len(names)), 4)
    axes = figure.subplots()
    places = np.arange(len(names))
    for shift, (key, color) in zip(
        (-0.27, 0, 0.27), (("precision", BLUE), ("recall", ORANGE), ("f1", GREY)), strict=True
    ):
        axes.bar(places + shift, [scores[name][key] for name in names], width=0.25, color=color, label=key)
    axes.set(ylim=(0, 1), ylabel="score")
    axes.set_xticks(places, _shortened(names), rotation=30 if len(names) > 3 else 0, parse_math=False)
    axes.set_title(_drawn_of(title, len(names), len(scores)), parse_math=False)
    figure.legend(frameon=False, ncols=3, loc="outside lower center")
    return figure


def draw_predictions(labels: np.ndarray, predictions: np.ndarray, title: str) -> Figure:
    """Draw predicted against true numbers, with the diagonal on which a perfect prediction lies.

    Args:
        labels: True numbers (n,).
        predictions: Predicted numbers (n,).
        title: Figure title.

    Returns:
        The figure.
    """
    figure = _figure(5, 5)
    axes = figure.subplots()
    low, high = min(labels.min(), predictions.min()), max(labels.max(), predictions.max())
    axes.plot([low, high], [low, high], color=GREY, lw=1)
    axes.scatter(labels, predictions, s=8, color=BLUE, alpha=0.5, rasterized=True)
    axes.set(xlabel="true", ylabel="predicted")
    axes.set_title(title, parse_math=False)
    return figure


def draw_confusion_matrix(matrix: np.ndarray, label_names: Sequence[str], title: str) -> Figure:
    """Draw counts of true (rows) against predicted classes (columns), colored by the fraction of the row.

    Of more than `CLASSES_DRAWN` classes those with most rows are drawn.

    Args:
        matrix: Integer array (classes, classes).
        label_names: Name of each class.
        title: Figure title.

    Returns:
        The figure.
    """
    chosen = np.sort(np.argsort(-matrix.sum(axis=1), kind="stable")[:CLASSES_DRAWN])
    rows = matrix.sum(axis=1, keepdims=True)[chosen]
    drawn, names = matrix[np.ix_(chosen, chosen)], _shortened([label_names[i] for i in chosen])
    side = 3.2 + 0.55 * len(chosen)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    fractions = drawn / np.maximum(1, rows)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(drawn):
        color = "white" if fractions[row, column] > 0.55 else "black"
        axes.text(column, row, f"{count:,}\n{fractions[row, column]:.0%}", ha="center", va="center", color=color)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(_drawn_of(title, len(chosen), len(matrix)), parse_math=False)
    rotation = 30 if len(names) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=rotation, ha="center", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    return figure


def save_figures(figures: Mapping[str, Figure], output_dir: str | Path, step: int, writer: Any = None) -> list[Path]:
    """Write figures as PNG below `output_dir/figures` and as images into the TensorBoard run of the training.

    Args:
        figures: Name to `matplotlib.figure.Figure`.
        output_dir: Output directory of the run.
        step: Step at which TensorBoard shows them.
        writer: Open `SummaryWriter` of the training, None for no images.

    Returns:
        The PNG files.
    """
    folder = Path(output_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=130)
        if writer is not None:
            writer.add_figure(name, figure, global_step=step)
    if writer is not None:
        writer.flush()
    return paths


def _figure(width: float, height: float) -> Figure:
    # Figure without pyplot: no global state and no display, whatever backend the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _shortened(names: Sequence[str], at_most: int = 24) -> list[str]:
    return [name if len(name) <= at_most else name[: at_most - 1] + "…" for name in names]


def _drawn_of(title: str, drawn: int, classes: int) -> str:
    return title if drawn == classes else f"{title} ({drawn} of {classes} classes)"


def _curve(log_history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
    return [step for step, _ in points], [value for _, value in points]
