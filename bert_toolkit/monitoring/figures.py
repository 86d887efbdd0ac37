"""Records of gradient flow and update ratios as matplotlib figures."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.layer_bars import LETTER, ROLE_TITLES, FigureHeader, LayerBars
from bert_toolkit.monitoring.parameter_roles import ParameterInfo
from bert_toolkit.monitoring.update_ratios import TYPICAL_RATIOS, UpdateRatioRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn_names(
    parameters: dict[str, ParameterInfo],
    include_biases: bool = False,
    skip_probability: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Return the names of the parameters that a figure shows, in the order in which they are described.

    Args:
        parameters: Description of the model's parameters.
        include_biases: Keep biases.
        skip_probability: Chance of each parameter to be left out, the same at every step.
        seed: Seed of that choice.
    """
    return [
        name
        for name in parameters
        if (include_biases or parameters[name].role != "bias")
        and zlib.crc32(f"{seed}/{name}".encode()) / 2**32 >= skip_probability
    ]


def gradients_figure(
    record: GradientFlowRecord, parameters: dict[str, ParameterInfo], names: Sequence[str] | None = None
) -> "Figure":
    """Draw one step's gradients: zero share, standard deviation, and mean with maximum, one bar per layer.

    Args:
        record: What to draw.
        parameters: Description of the model's parameters.
        names: Which of the record's parameters to draw, all if None.

    Returns:
        A figure with three panels over the model's depth.
    """
    from matplotlib.figure import Figure

    chosen = set(record.names if names is None else names)
    drawn = [name for name in record.names if name in chosen]
    at = np.array([record.names.index(name) for name in drawn], dtype=int)
    bars = LayerBars(drawn, parameters)
    header = FigureHeader(f"|gradient| at step {record.step:,}", _gradient_notes(record), bars, bars.width)
    below = bars.room_for_labels
    height = header.height + 6.5 + below
    figure = Figure(figsize=(bars.width, height), facecolor="white")
    panels = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(
        left=0.85 / bars.width,
        right=1 - 0.15 / bars.width,
        top=1 - header.height / height,
        bottom=below / height,
        hspace=0.12,
    )
    bars.draw(panels[0], record.zero_share[at], bottom=0.0)
    panels[0].set_ylim(0, 1)
    panels[0].set_ylabel("share of zeros")
    bars.draw_log(panels[1], record.std[at])
    panels[1].set_ylabel("standard deviation")
    bars.draw_log(panels[2], record.max[at], lighter=True, others=record.mean[at])
    bars.draw_log(panels[2], record.mean[at], others=record.max[at])
    panels[2].set_ylabel("mean (full), max (pale)")
    bars.label_axis(panels[2])
    header.draw(figure)
    return figure


def _gradient_notes(record: GradientFlowRecord) -> list[str]:
    clipped = record.clip_coefficient
    notes = [f"clipped to {clipped:.3g} of its length" if clipped < 1 else "not clipped"]
    if not np.isfinite(clipped):
        notes = ["clipping unknown"]
    if record.skipped:
        notes.append("STEP SKIPPED: gradients overflowed")
    elif record.nonfinite:
        notes.append(f"NOT FINITE: {len(record.nonfinite)} parameters, first {record.nonfinite[0]}")
    if record.missing:
        notes.append(f"{len(record.missing)} parameters without gradient")
    return notes


def update_ratios_figure(
    record: UpdateRatioRecord, parameters: dict[str, ParameterInfo], names: Sequence[str] | None = None
) -> "Figure":
    """Draw one step's update ratios, one panel per role with the band in which healthy trainings lie shaded.

    Ratios follow the learning rate, so the band does too: during warm-up and decay it lies lower than at the peak.

    Args:
        record: What to draw.
        parameters: Description of the model's parameters.
        names: Which of the record's parameters to draw, all if None.

    Returns:
        A figure with a logarithmic axis shared by all panels.
    """
    from matplotlib.figure import Figure

    chosen = set(record.names if names is None else names)
    drawn = [name for name in record.names if name in chosen]
    at = {name: i for i, name in enumerate(record.names)}
    roles = [role for role in ROLE_TITLES if any(parameters[n].role == role for n in drawn)]
    groups = [[n for n in drawn if parameters[n].role == role] for role in roles]
    bars = [LayerBars(group, parameters, colors_of=drawn, unit=1.0) for group in groups]
    widths = [max(b.extent, 7.0) for b in bars] or [1.0]
    width = float(np.clip(2.0 + 0.13 * sum(widths), 10, 22))
    unit = 0.85 * (width - 1.0) / sum(widths)
    bars = [LayerBars(group, parameters, colors_of=drawn, unit=unit) for group in groups]
    widths = [max(b.extent, 7.0, b.least_width / unit) for b in bars] or [1.0]
    scale, notes = _band(record)
    header = FigureHeader(f"update ratio at step {record.step:,}", notes, LayerBars(drawn, parameters), width)
    above, below = header.height + 0.3, max((b.room_for_labels for b in bars), default=1.0)
    height = above + 3.2 + below
    figure = Figure(figsize=(width, height), facecolor="white")
    panels = figure.subplots(1, max(len(roles), 1), sharey=True, width_ratios=widths, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.85 / width, right=1 - 0.15 / width, top=1 - above / height, bottom=below / height, wspace=0.06
    )
    bands = {role: np.multiply(TYPICAL_RATIOS[role], scale) for role in roles if role in TYPICAL_RATIOS and scale > 0}
    shown = [record.ratio[at[n]] for n in drawn] + [edge for band in bands.values() for edge in band]
    for panel, role, group, group_bars in zip(panels, roles, groups, bars, strict=False):
        if role in bands:
            panel.axhspan(*bands[role], color="#2CA02C", alpha=0.13, linewidth=0, zorder=0)
        group_bars.draw_log(panel, record.ratio[[at[n] for n in group]], others=np.array(shown))
        group_bars.label_axis(panel)
        panel.set_title(ROLE_TITLES[role], fontsize=10)
    panels[0].set_ylabel("‖update‖ / ‖parameter‖")
    header.draw(figure)
    return figure


def _band(record: UpdateRatioRecord) -> tuple[float, list[str]]:
    """By what to scale the band of healthy trainings, and what to say of it."""
    if record.skipped:
        return 1.0, ["STEP SKIPPED: gradients overflowed, nothing moved"]
    if record.nothing_can_move:
        return 0.0, ["learning rate 0: nothing can move"]
    rate, peak = record.learning_rate, record.peak_learning_rate
    if not (rate > 0 and peak > 0):
        return 1.0, ["shaded: where healthy trainings lie at their full learning rate"]
    fraction = f"{rate / peak:.0%} of its peak" if rate < peak else "its peak so far"
    return rate / peak, [f"shaded: where healthy trainings lie at this learning rate ({rate:.2g}, {fraction})"]


def heat_map_figure(
    records: Sequence[Any],
    statistic: str,
    parameters: dict[str, ParameterInfo],
    title: str,
    names: Sequence[str] | None = None,
    markers: Sequence[tuple[int, str]] = (),
) -> "Figure":
    """Draw layers over time, color being the logarithm of a statistic; no value is gray, zero is black.

    Update ratios of steps with a learning rate of 0, such as the first of a warm-up, are left out.

    Args:
        records: What to draw, oldest first; each with `step`, `names` and the statistic of each name.
        statistic: Field of the records, e.g. `mean` or `ratio`.
        parameters: Description of the model's parameters.
        title: What the color means.
        names: Which of the records' parameters to draw, all if None.
        markers: (step, parameter name) of points to mark, e.g. findings of training health.

    Returns:
        A figure with time to the right and depth downwards.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    moving = [record for record in records if not getattr(record, "nothing_can_move", False)]
    left_out = len(records) - len(moving) if moving else 0
    shown_records = moving or records
    present = {name for record in shown_records for name in record.names}
    chosen = present if names is None else present.intersection(names)
    # Norms and biases live on other scales: in rows between the weights they would hide them, below they compare.
    sections = [("matrix", "embedding", "adapter", "other"), ("norm",), ("bias",)]
    drawn = [n for roles in sections for n, info in parameters.items() if n in chosen and info.role in roles]
    bars = LayerBars(drawn, parameters)
    steps = [record.step for record in shown_records]
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log10(_over_time(shown_records, statistic, drawn)).T
    finite = logarithms[np.isfinite(logarithms)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (-1.0, 0.0)
    height = float(np.clip(1.0 + 0.125 * len(drawn), 4.5, 12))
    rows, labels = bars.block_ticks(smallest_gap=(0.12 / (height - 1.0)) * len(drawn))
    margin = 0.25 + LETTER * max(map(len, labels), default=0)
    width = 9.0 + margin
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.subplots()
    figure.subplots_adjust(left=margin / width, right=1 - 1.15 / width, top=1 - 0.6 / height, bottom=0.55 / height)
    colors = colormaps["viridis"].with_extremes(bad="#D0D0D0", under="black")
    # Zeros (minus infinity) get the color below the scale; ordinary low values stay on it.
    shown = np.where(np.isneginf(logarithms), -1e9, np.where(np.isnan(logarithms), np.nan, logarithms.clip(min=low)))
    image = axes.imshow(
        np.ma.masked_invalid(shown),
        aspect="auto",
        interpolation="nearest",
        cmap=colors,
        vmin=low,
        vmax=max(high, low + 0.1),
    )
    box = axes.get_position()
    scale = figure.add_axes((1 - 1.0 / width, box.y0, 0.2 / width, box.height))
    figure.colorbar(image, cax=scale).ax.set_title("log10", fontsize=9, loc="left")
    count = len(steps)
    ticks = np.unique(np.linspace(0, count - 1, min(count, 9)).round().astype(int))
    axes.set_xticks(ticks, [f"{steps[t]:,}" for t in ticks])
    axes.set_xlabel("step")
    axes.set_yticks(rows, labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.hlines(bars.block_edges(), -0.5, count - 0.5, color="white", linewidth=0.6)
    row_of = {name: row for row, name in enumerate(bars.names)}
    points = [(int(np.searchsorted(steps, s)), row_of[n]) for s, n in markers if n in row_of]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(np.clip(x, 0, count - 1), y, "x", color="red", markersize=6, markeredgewidth=1.6)
    keys = [f"{left_out} step{'s' * (left_out > 1)} of learning rate 0 left out"] * bool(left_out)
    keys += ["black: zero"] * bool(np.isneginf(logarithms).any()) + ["gray: no value"] * bool(np.isnan(shown).any())
    if points:
        keys.append("red cross: finding of training health")
    axes.set_title(f"{title}, layers over time\n{', '.join(keys)}".strip(), fontsize=10, loc="left")
    return figure


def _over_time(records: Sequence, statistic: str, names: Sequence[str]) -> np.ndarray:
    """(records, names) values of a statistic, NaN where a record has no such parameter."""
    values = np.full((len(records), len(names)), np.nan)
    at: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for row, record in zip(values, records, strict=True):
        if record.names not in at:
            position = {name: i for i, name in enumerate(record.names)}
            shared = [(i, position[name]) for i, name in enumerate(names) if name in position]
            at[record.names] = ([i for i, _ in shared], [j for _, j in shared])
        to, taken = at[record.names]
        row[to] = getattr(record, statistic)[taken]
    return values
