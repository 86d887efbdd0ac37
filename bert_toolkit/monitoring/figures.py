"""Records of gradient flow and update ratios as matplotlib figures."""

import math
import zlib
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.parameter_roles import ParameterInfo, Role
from bert_toolkit.monitoring.update_ratios import TYPICAL_RATIOS, UpdateRatioRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, distinguishable without full color vision, and three more.
_COLORS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D31", "#5E4FA2", "#66A61E"]
_SINGLE = "#7F7F7F"
_LETTER = 0.068  # inches: a letter of a label of 8 points, on average
_ROTATED = 0.2  # inches from one rotated label to the next
_ROLE_TITLES: dict[Role, str] = {
    "matrix": "matrices",
    "embedding": "embeddings",
    "norm": "norms",
    "bias": "biases",
    "adapter": "adapters",
    "other": "other",
}


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
    bars = _Bars(drawn, parameters)
    header = _Header(f"|gradient| at step {record.step:,}", _gradient_notes(record), bars, bars.width)
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
    roles = [role for role in _ROLE_TITLES if any(parameters[n].role == role for n in drawn)]
    groups = [[n for n in drawn if parameters[n].role == role] for role in roles]
    bars = [_Bars(group, parameters, colors_of=drawn, unit=1.0) for group in groups]
    widths = [max(b.extent, 7.0) for b in bars] or [1.0]
    width = float(np.clip(2.0 + 0.13 * sum(widths), 10, 22))
    unit = 0.85 * (width - 1.0) / sum(widths)
    bars = [_Bars(group, parameters, colors_of=drawn, unit=unit) for group in groups]
    widths = [max(b.extent, 7.0, b.least_width / unit) for b in bars] or [1.0]
    scale, notes = _band(record)
    header = _Header(f"update ratio at step {record.step:,}", notes, _Bars(drawn, parameters), width)
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
        panel.set_title(_ROLE_TITLES[role], fontsize=10)
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
    bars = _Bars(drawn, parameters)
    steps = [record.step for record in shown_records]
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log10(_over_time(shown_records, statistic, drawn)).T
    finite = logarithms[np.isfinite(logarithms)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (-1.0, 0.0)
    height = float(np.clip(1.0 + 0.125 * len(drawn), 4.5, 12))
    rows, labels = bars.block_ticks(smallest_gap=(0.12 / (height - 1.0)) * len(drawn))
    margin = 0.25 + _LETTER * max(map(len, labels), default=0)
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


class _Bars:
    """Where each parameter stands along the model's depth, its color and its short label.

    Parameters that every layer repeats share a color and a legend entry, and only the layer's number stands on the
    axis; the others are gray and have their own label. So 24 layers stay as readable as 6.
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: dict[str, ParameterInfo],
        colors_of: Sequence[str] | None = None,
        unit: float | None = None,
    ):
        self.names = list(names)
        self.infos = [parameters[name] for name in names]
        self._blocks = [info.block for info in self.infos]
        blocks_of_kind: dict[str, set[str]] = {}
        for name in colors_of or names:
            blocks_of_kind.setdefault(parameters[name].kind, set()).add(parameters[name].block)
        repeated = [kind for kind, blocks in blocks_of_kind.items() if len(blocks) > 1]
        self.colors = dict(zip(repeated, _distinct_colors(len(repeated)), strict=True))
        self._place(1.9)
        # A parameter with a label of its own needs so many inches, however narrow the bars are.
        needed = _ROTATED / (self.width / (self.extent + 4) if unit is None else unit)
        if needed > 1.9:
            self._place(needed)

    def _place(self, room_for_label: float) -> None:
        """Find where the bars stand, with gaps between blocks and room for the labels of single parameters."""
        gaps = [1.2 * (before != after) for before, after in pairwise(self._blocks)]
        steps = [1.0 if info.kind in self.colors else room_for_label for info in self.infos[1:]]
        self.x = np.concatenate([[0.0], np.cumsum(np.add(gaps, steps))])[: len(self.names)]
        self.extent = float(self.x[-1] + 1) if self.names else 1.0
        self.width = float(np.clip(2.0 + 0.11 * self.extent, 10, 22))

    def draw(self, axes: "Axes", values: np.ndarray, bottom: float, lighter: bool = False) -> None:
        from matplotlib.collections import PolyCollection

        finite = np.isfinite(values)
        top = np.where(finite, values, bottom)
        x = self.x
        corners = [
            np.stack([x - 0.45, x - 0.45, x + 0.45, x + 0.45]),
            np.stack([np.full_like(x, bottom), top, top, np.full_like(x, bottom)]),
        ]
        colors = [self.colors.get(info.kind, _SINGLE) for info in self.infos]
        axes.add_collection(
            PolyCollection(
                list(np.stack(corners, axis=-1).transpose(1, 0, 2)), facecolors=colors, alpha=0.3 if lighter else 1.0
            )
        )
        if not finite.all():
            axes.plot(
                x[~finite], np.full((~finite).sum(), 0.96), "x", color="red", transform=axes.get_xaxis_transform()
            )
        axes.set_xlim(-1.5, self.extent + 0.5)
        axes.grid(axis="y", color="#E0E0E0", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    def draw_log(
        self, axes: "Axes", values: np.ndarray, lighter: bool = False, others: np.ndarray | None = None
    ) -> None:
        """Bars on a logarithmic axis that also spans `others`."""
        span = np.concatenate([values, [] if others is None else others])
        positive = span[np.isfinite(span) & (span > 0)]
        low, high = (positive.min(), positive.max()) if positive.size else (1e-8, 1.0)
        low, high = 10 ** np.floor(np.log10(low) - 0.05), 10 ** np.ceil(np.log10(high) + 0.05)
        axes.set_yscale("log")
        axes.minorticks_off()  # a third of the drawing time
        axes.set_ylim(low, high)
        self.draw(axes, np.where(values < low, low, values), bottom=low, lighter=lighter)

    def block_ticks(self, smallest_gap: float) -> tuple[list[float], list[str]]:
        """Row and label of every block, single parameters by name; labels that would overlap are thinned out."""
        kept: list[tuple[float, str]] = []
        for (block, section), group in groupby(enumerate(self.infos), lambda item: self._section(item[1])):
            rows = [row for row, _ in group]
            named = [self.infos[row] for row in rows if self.infos[row].kind in self.colors]
            if named:
                ticks = [(float(np.mean(rows)), f"{block} {section}".strip())]
            else:
                ticks = [(float(row), self.infos[row].kind) for row in rows]
            for tick in ticks:
                if not kept or tick[0] - kept[-1][0] >= smallest_gap:
                    kept.append(tick)
        return [row for row, _ in kept], [label for _, label in kept]

    @staticmethod
    def _section(info: ParameterInfo) -> tuple[str, str]:
        return info.block, _ROLE_TITLES[info.role] if info.role in ("norm", "bias") else ""

    def block_edges(self) -> list[float]:
        sections = [self._section(info) for info in self.infos]
        return [row + 0.5 for row, (above, below) in enumerate(pairwise(sections)) if above != below]

    def label_axis(self, axes: "Axes") -> None:
        """Write the layers' numbers and the names of single parameters so that no two overlap."""
        layers, singles = self._axis_labels()
        inches = axes.get_window_extent().width / axes.figure.dpi / (self.extent + 2)
        labels = _labels_that_fit(layers, [x for x, _ in singles], inches, upright=True)
        stacks = {stack for _, stack, _ in layers if stack}
        named = [text for _, text in labels if not text.isdigit()]
        upright = 4 * len(labels) >= len(layers) and len(named) == len(stacks)
        if not upright:
            labels = _labels_that_fit(layers, [x for x, _ in singles], inches, upright=False)
        ticks = [*labels, *singles]
        axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks], fontsize=8)
        for i, label in enumerate(axes.get_xticklabels()):
            if i >= len(labels) or not upright:
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        if labels and upright:
            axes.set_xlabel("layer", fontsize=9)
            axes.xaxis.set_label_coords(0.5, -0.28 * axes.figure.dpi / axes.get_window_extent().height)

    def _axis_labels(self) -> tuple[list[tuple[float, str, str]], list[tuple[float, str]]]:
        """Position, stack and number of the layers; position and text of parameters that no other layer has."""
        layers: list[tuple[float, str, str]] = []
        singles: list[tuple[float, str]] = []
        for block in dict.fromkeys(self._blocks):
            members = [i for i, b in enumerate(self._blocks) if b == block]
            repeated = [i for i in members if self.infos[i].kind in self.colors]
            if repeated:
                stack, _, number = block.replace("layer.", "").rpartition(".")
                layers.append((float(np.mean(self.x[repeated])), stack, number))
            singles += [(float(self.x[i]), self.infos[i].kind) for i in members if i not in repeated]
        return layers, singles

    @property
    def least_width(self) -> float:
        """The inches that rotated labels need beside one another."""
        layers, singles = self._axis_labels()
        return 0.3 + _ROTATED * (min(len(layers), 4) + len(singles))

    @property
    def room_for_labels(self) -> float:
        """The inches below the axis, for labels that may be rotated."""
        layers, singles = self._axis_labels()
        longest = max((len(text) for text in [f"{s}.{n}" for _, s, n in layers] + [t for _, t in singles]), default=0)
        return max(0.8, 0.25 + 0.71 * _LETTER * longest)


class _Header:
    """Title, notes and legend, beside one another where there is room, else below.

    Attributes:
        height: Inches that they take.
    """

    def __init__(self, title: str, notes: Sequence[str], bars: _Bars, width: float):
        self.title = title
        self.notes = ", ".join(notes)
        self.width = width
        present = {info.kind for info in bars.infos}
        self.entries = [(kind, color) for kind, color in bars.colors.items() if kind in present]
        column = 0.6 + _LETTER * max((len(kind) for kind, _ in self.entries), default=0)
        text = max(0.13 * len(title), 0.078 * len(self.notes)) + 0.4
        beside, below = (int((width - 0.85 - used) / column) for used in (text, 0.0))
        self.is_beside = beside * 3 >= len(self.entries)
        self.columns = max(min(beside if self.is_beside else below, len(self.entries)), 1)
        rows = -(-len(self.entries) // self.columns)
        self.height = max(0.8, 0.18 + 0.19 * rows) if self.is_beside else 0.7 + 0.19 * rows

    def draw(self, figure: "Figure") -> None:
        from matplotlib.patches import Patch

        left, height = 0.85 / self.width, figure.get_figheight()
        figure.text(left, 1 - 0.2 / height, self.title, fontsize=13, weight="bold", va="top")
        figure.text(left, 1 - 0.47 / height, self.notes, fontsize=9, va="top", color="#404040")
        if self.entries:
            place = {"loc": "upper right"} if self.is_beside else {"loc": "upper left", "borderaxespad": 0.0}
            figure.legend(
                handles=[Patch(color=color, label=kind) for kind, color in self.entries],
                bbox_to_anchor=(1.0, 1.0) if self.is_beside else (left, 1 - 0.66 / height),
                ncols=self.columns,
                fontsize=8,
                frameon=False,
                **place,
            )


def _distinct_colors(count: int) -> list[str]:
    """As many colors, none twice: the palette, then darker and lighter ones, then the whole circle of hues."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex, to_rgb

    base = np.array([to_rgb(color) for color in _COLORS])
    palette = [*base, *base * 0.55, *(base + (1 - base) * 0.5)]
    if count > len(palette):
        palette = list(colormaps["hsv"](np.linspace(0.0, 0.95, count))[:, :3])
    return [to_hex(color) for color in palette[:count]]


def _labels_that_fit(
    layers: list[tuple[float, str, str]], singles: Sequence[float], inches: float, upright: bool
) -> list[tuple[float, str]]:
    """As many of the layers' labels as fit beside one another and beside those of single parameters.

    The first label of a stack has the stack's name, the others are numbers: `encoder.0 1 2 ... decoder.0 1 2`.

    Args:
        layers: Position, stack and number, from left to right.
        singles: Positions of the other labels, which are rotated.
        inches: Width of one unit of position.
        upright: The layers' labels are upright, else rotated.
    """
    # A rotated label reaches to the left, below the upright ones.
    left, right = (0.25, 0.12) if upright else (_ROTATED / 2, _ROTATED / 2)
    taken = [(x - left / inches, x + right / inches) for x in singles]
    found: dict[float, str] = {}

    def fits(x: float, text: str) -> bool:
        half = (len(text) * _LETTER / 2 + 0.03 if upright else _ROTATED / 2) / inches
        free = all(x + half <= start or x - half >= end for start, end in taken)
        if free:
            taken.append((x - half, x + half))
            found[x] = text
        return free

    named: dict[str, float] = {}
    for x, stack, number in layers:
        if stack and stack not in named and fits(x, f"{stack}.{number}"):
            named[stack] = x
    for x, stack, number in layers:
        if x > named.get(stack, -math.inf) and (not stack or stack in named):
            fits(x, number)
    return sorted(found.items())
