"""Records of gradient flow and update ratios as matplotlib figures."""

import zlib
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np

from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.parameter_roles import ParameterInfo, Role
from bert_toolkit.monitoring.update_ratios import TYPICAL_RATIOS, UpdateRatioRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinguishable without full colour vision, and three to go on with.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D31", "#5E4FA2", "#66A61E"]
_SINGLE = "#7F7F7F"
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
    """Choose what a figure shows.

    Args:
        parameters: description of the model's parameters.
        include_biases: keep biases.
        skip_probability: chance of each parameter to be left out, the same at every step.
        seed: seed of that choice.
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
        record: what to draw.
        parameters: description of the model's parameters.
        names: which of the record's parameters to draw, all if None.

    Returns:
        A figure with three panels over the model's depth.
    """
    from matplotlib.figure import Figure

    chosen = set(record.names if names is None else names)
    drawn = [name for name in record.names if name in chosen]
    at = np.array([record.names.index(name) for name in drawn], dtype=int)
    bars = _Bars(drawn, parameters)
    figure = Figure(figsize=(bars.width, 8.6), facecolor="white")
    panels = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(left=0.85 / bars.width, right=1 - 0.15 / bars.width, top=0.9, bottom=0.14, hspace=0.12)
    bars.draw(panels[0], record.zero_share[at], bottom=0.0)
    panels[0].set_ylim(0, 1)
    panels[0].set_ylabel("share of zeros")
    bars.draw_log(panels[1], record.std[at])
    panels[1].set_ylabel("standard deviation")
    bars.draw_log(panels[2], record.max[at], lighter=True, others=record.mean[at])
    bars.draw_log(panels[2], record.mean[at], others=record.max[at])
    panels[2].set_ylabel("mean (full), max (pale)")
    bars.label_axis(panels[2])
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
    _title(figure, bars, f"|gradient| at step {record.step:,}", notes)
    return figure


def update_ratios_figure(
    record: UpdateRatioRecord,
    parameters: dict[str, ParameterInfo],
    names: Sequence[str] | None = None,
    note: str = "",
) -> "Figure":
    """Draw one step's update ratios, one panel per role with the band in which healthy trainings lie shaded.

    Args:
        record: what to draw.
        parameters: description of the model's parameters.
        names: which of the record's parameters to draw, all if None.
        note: what to add below the title.

    Returns:
        A figure with a logarithmic axis shared by all panels.
    """
    from matplotlib.figure import Figure

    chosen = set(record.names if names is None else names)
    drawn = [name for name in record.names if name in chosen]
    at = {name: i for i, name in enumerate(record.names)}
    roles = [role for role in _ROLE_TITLES if any(parameters[n].role == role for n in drawn)]
    groups = [[n for n in drawn if parameters[n].role == role] for role in roles]
    bars = [_Bars(group, parameters, colours_of=drawn) for group in groups]
    widths = [max(b.extent, 7.0) for b in bars] or [1.0]
    width = float(np.clip(2.0 + 0.13 * sum(widths), 10, 22))
    figure = Figure(figsize=(width, 5.6), facecolor="white")
    panels = figure.subplots(1, max(len(roles), 1), sharey=True, width_ratios=widths, squeeze=False)[0]
    figure.subplots_adjust(left=0.85 / width, right=1 - 0.15 / width, top=0.8, bottom=0.23, wspace=0.06)
    bands = [TYPICAL_RATIOS[role] for role in roles if role in TYPICAL_RATIOS]
    shown = [record.ratio[at[n]] for n in drawn] + [edge for band in bands for edge in band]
    for panel, role, group, group_bars in zip(panels, roles, groups, bars, strict=False):
        if role in TYPICAL_RATIOS:
            panel.axhspan(*TYPICAL_RATIOS[role], color="#2CA02C", alpha=0.13, linewidth=0, zorder=0)
        group_bars.draw_log(panel, record.ratio[[at[n] for n in group]], others=np.array(shown))
        group_bars.label_axis(panel)
        panel.set_title(_ROLE_TITLES[role], fontsize=10)
    panels[0].set_ylabel("‖update‖ / ‖parameter‖")
    notes = ["shaded: where healthy trainings lie at their full learning rate", *([note] if note else [])]
    if record.skipped:
        notes = ["STEP SKIPPED: gradients overflowed, nothing moved"]
    _title(figure, _Bars(drawn, parameters), f"update ratio at step {record.step:,}", notes)
    return figure


def heat_map_figure(
    records: Sequence[GradientFlowRecord] | Sequence[UpdateRatioRecord],
    statistic: str,
    parameters: dict[str, ParameterInfo],
    title: str,
    names: Sequence[str] | None = None,
    markers: Sequence[tuple[int, str]] = (),
) -> "Figure":
    """Draw layers over time, colour being the logarithm of a statistic; no value is grey, zero is black.

    Args:
        records: what to draw, oldest first.
        statistic: field of the records, e.g. `mean` or `ratio`.
        parameters: description of the model's parameters.
        title: what the colour means.
        names: which of the records' parameters to draw, all if None.
        markers: (step, parameter name) of points to mark, e.g. findings of training health.

    Returns:
        A figure with time to the right and depth downwards.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    present = {name for record in records for name in record.names}
    chosen = present if names is None else present.intersection(names)
    # Norms and biases live on other scales: in rows between the weights they would hide them, below they compare.
    sections = [("matrix", "embedding", "adapter", "other"), ("norm",), ("bias",)]
    drawn = [n for roles in sections for n, info in parameters.items() if n in chosen and info.role in roles]
    bars = _Bars(drawn, parameters)
    steps = [record.step for record in records]
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log10(_over_time(records, statistic, drawn)).T
    finite = logarithms[np.isfinite(logarithms)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (-1.0, 0.0)
    height = float(np.clip(1.0 + 0.125 * len(drawn), 4.5, 12))
    figure = Figure(figsize=(11, height), facecolor="white")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.15, right=0.91, top=1 - 0.45 / height, bottom=0.55 / height)
    colours = colormaps["viridis"].with_extremes(bad="#D0D0D0", under="black")
    # Zeros (minus infinity) get the colour below the scale; ordinary low values stay on it.
    shown = np.where(np.isneginf(logarithms), -1e9, np.where(np.isnan(logarithms), np.nan, logarithms.clip(min=low)))
    image = axes.imshow(
        np.ma.masked_invalid(shown),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=low,
        vmax=max(high, low + 0.1),
    )
    box = axes.get_position()
    scale = figure.add_axes((0.925, box.y0, 0.018, box.height))
    figure.colorbar(image, cax=scale).set_label("log10")
    count = len(steps)
    ticks = np.unique(np.linspace(0, count - 1, min(count, 9)).round().astype(int))
    axes.set_xticks(ticks, [f"{steps[t]:,}" for t in ticks])
    axes.set_xlabel("step")
    rows, labels = bars.block_ticks(smallest_gap=(0.12 / (height - 1.0)) * len(drawn))
    axes.set_yticks(rows, labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.hlines(bars.block_edges(), -0.5, count - 0.5, color="white", linewidth=0.6)
    row_of = {name: row for row, name in enumerate(bars.names)}
    points = [(int(np.searchsorted(steps, s)), row_of[n]) for s, n in markers if n in row_of]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(np.clip(x, 0, count - 1), y, "x", color="red", markersize=6, markeredgewidth=1.6)
    keys = ["black: zero"] * bool(np.isneginf(logarithms).any()) + ["grey: no value"] * bool(np.isnan(shown).any())
    if points:
        keys.append("red cross: finding of training health")
    axes.set_title(", ".join([f"{title}, layers over time", *keys]), fontsize=10, loc="left")
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
    """Where each parameter stands along the model's depth, its colour and its short label.

    Parameters that every layer repeats share a colour and a legend entry, and only the layer's number stands on the
    axis; the others are grey and have their own label. So 24 layers stay as readable as 6.
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: dict[str, ParameterInfo],
        colours_of: Sequence[str] | None = None,
    ):
        self.names = list(names)
        self.infos = [parameters[name] for name in names]
        self._blocks = [info.block for info in self.infos]
        blocks_of_kind: dict[str, set[str]] = {}
        for name in colours_of or names:
            blocks_of_kind.setdefault(parameters[name].kind, set()).add(parameters[name].block)
        repeated = [kind for kind, blocks in blocks_of_kind.items() if len(blocks) > 1]
        self.colours = {kind: _COLOURS[i % len(_COLOURS)] for i, kind in enumerate(repeated)}
        # A gap between blocks, and room for the label of a parameter that has its own.
        gaps = [1.2 * (before != after) for before, after in pairwise(self._blocks)]
        steps = [1.0 if info.kind in self.colours else 1.9 for info in self.infos[1:]]
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
        colours = [self.colours.get(info.kind, _SINGLE) for info in self.infos]
        axes.add_collection(
            PolyCollection(
                list(np.stack(corners, axis=-1).transpose(1, 0, 2)), facecolors=colours, alpha=0.3 if lighter else 1.0
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
            named = [self.infos[row] for row in rows if self.infos[row].kind in self.colours]
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
        ticks: list[float] = []
        labels: list[str] = []
        rotated: list[bool] = []
        for block in dict.fromkeys(self._blocks):
            members = [i for i, b in enumerate(self._blocks) if b == block]
            repeated = [i for i in members if self.infos[i].kind in self.colours]
            if repeated:
                ticks.append(float(np.mean(self.x[repeated])))
                labels.append(block.replace("layer.", ""))
                rotated.append(False)
            for i in members:
                if i not in repeated:
                    ticks.append(float(self.x[i]))
                    labels.append(self.infos[i].kind)
                    rotated.append(True)
        axes.set_xticks(ticks, labels, fontsize=8)
        for label, is_rotated in zip(axes.get_xticklabels(), rotated, strict=True):
            if is_rotated:
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        if not all(rotated):
            axes.set_xlabel("layer", fontsize=9)
            axes.xaxis.set_label_coords(0.5, -0.28 * axes.figure.dpi / axes.get_window_extent().height)

    def legend(self, figure: "Figure") -> None:
        from matplotlib.patches import Patch

        present = {info.kind for info in self.infos}
        patches = [Patch(color=c, label=kind) for kind, c in self.colours.items() if kind in present]
        if patches:
            figure.legend(
                handles=patches,
                loc="upper right",
                ncols=min(len(patches), max(2, int(self.width / 2.4))),
                fontsize=8,
                frameon=False,
            )


def _title(figure: "Figure", bars: _Bars, title: str, notes: Sequence[str]) -> None:
    left = 0.85 / figure.get_figwidth()
    figure.text(left, 0.975, title, fontsize=13, weight="bold", va="top")
    figure.text(left, 0.975 - 0.27 / figure.get_figheight(), ", ".join(notes), fontsize=9, va="top", color="#404040")
    bars.legend(figure)
