"""The layers of a model along the axis of a figure: where each parameter stands, its color, its label, the legend."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np

from bert_toolkit.monitoring.parameter_roles import ParameterInfo, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, distinguishable without full color vision, and three more.
_COLORS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D31", "#5E4FA2", "#66A61E"]
_SINGLE = "#7F7F7F"
LETTER = 0.068  # inches: a letter of a label of 8 points, on average
_ROTATED = 0.2  # inches from one rotated label to the next
Layer = tuple[float, str, str]
"""Position, stack such as `encoder` (empty where there is one stack), and number."""
ROLE_TITLES: dict[Role, str] = {
    "matrix": "matrices",
    "embedding": "embeddings",
    "norm": "norms",
    "bias": "biases",
    "adapter": "adapters",
    "other": "other",
}


class LayerBars:
    """Bars of parameters along the model's depth: where each stands, its color and its short label.

    Parameters that every layer repeats share a color and a legend entry, and only the layer's number stands on the
    axis; the others are gray and have their own label. So 24 layers stay as readable as 6.

    Args:
        names: Parameters, in the order of the bars.
        parameters: Description of the model's parameters.
        colors_of: Parameters of the whole figure, whose colors its panels share; `names` if None.
        unit: Inches of one unit of position; found from the width that the figure then has if None.

    Attributes:
        infos: Description of each parameter.
        colors: Kind of parameter that several layers have -> its color.
        x: Position of each bar.
        extent: Units of position that all take.
        width: Inches that a figure of them should have.
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
        """Draw a bar for each parameter, a red cross where its value is not finite.

        Args:
            axes: Where.
            values: Height of each.
            bottom: Where they begin.
            lighter: Draw them pale.
        """
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
        """Draw them on a logarithmic axis.

        Args:
            axes: Where.
            values: Height of each.
            lighter: Draw them pale.
            others: Values that the axis spans too.
        """
        span = np.concatenate([values, [] if others is None else others])
        positive = span[np.isfinite(span) & (span > 0)]
        low, high = (positive.min(), positive.max()) if positive.size else (1e-8, 1.0)
        low, high = 10 ** np.floor(np.log10(low) - 0.05), 10 ** np.ceil(np.log10(high) + 0.05)
        axes.set_yscale("log")
        axes.minorticks_off()  # a third of the drawing time
        axes.set_ylim(low, high)
        self.draw(axes, np.where(values < low, low, values), bottom=low, lighter=lighter)

    def block_ticks(self, smallest_gap: float) -> tuple[list[float], list[str]]:
        """Return row and label of every block, single parameters by name; labels that would overlap are left out.

        Args:
            smallest_gap: Rows from one label to the next.
        """
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
        return info.block, ROLE_TITLES[info.role] if info.role in ("norm", "bias") else ""

    def block_edges(self) -> list[float]:
        """Return the rows between which one block ends and the next begins."""
        sections = [self._section(info) for info in self.infos]
        return [row + 0.5 for row, (above, below) in enumerate(pairwise(sections)) if above != below]

    def label_axis(self, axes: "Axes") -> None:
        """Write the layers' numbers and the names of single parameters so that no two overlap.

        Args:
            axes: Whose axis; its place in the figure must be known.
        """
        layers, singles = self._axis_labels()
        inches = axes.get_window_extent().width / axes.figure.dpi / (self.extent + 2)
        at = [x for x, _ in singles]
        numbers = _numbers_that_fit(layers, at, inches)
        stacks = _stacks_that_fit(layers, at, inches)
        upright = 4 * len(numbers) >= len(layers) and len(stacks) == len({stack for _, stack, _ in layers})
        labels = numbers if upright else _rotated_that_fit(layers, at, inches)
        ticks = [*labels, *singles]
        axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks], fontsize=8)
        for i, label in enumerate(axes.get_xticklabels()):
            if i >= len(labels) or not upright:
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        along = axes.get_xaxis_transform()
        for x, name in stacks if upright else []:
            axes.annotate(name, (x, 0), (0, -20), along, "offset points", ha="center", va="top", fontsize=9)

    def _axis_labels(self) -> tuple[list[Layer], list[tuple[float, str]]]:
        """The layers; position and text of parameters that no other layer has."""
        layers: list[Layer] = []
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
        return max(0.8, 0.25 + 0.71 * LETTER * longest)


class FigureHeader:
    """Title, notes and legend, beside one another where there is room, else below.

    Args:
        title: Of the figure.
        notes: What to say below it.
        bars: Whose colors the legend explains.
        width: Inches of the figure.

    Attributes:
        height: Inches that they take.
    """

    def __init__(self, title: str, notes: Sequence[str], bars: LayerBars, width: float):
        self.title = title
        self.notes = ", ".join(notes)
        self.width = width
        present = {info.kind for info in bars.infos}
        self.entries = [(kind, color) for kind, color in bars.colors.items() if kind in present]
        column = 0.6 + LETTER * max((len(kind) for kind, _ in self.entries), default=0)
        text = max(0.13 * len(title), 0.078 * len(self.notes)) + 0.4
        beside, below = (int((width - 0.85 - used) / column) for used in (text, 0.0))
        self.is_beside = beside * 3 >= len(self.entries)
        self.columns = max(min(beside if self.is_beside else below, len(self.entries)), 1)
        rows = -(-len(self.entries) // self.columns)
        self.height = max(0.8, 0.18 + 0.19 * rows) if self.is_beside else 0.7 + 0.19 * rows

    def draw(self, figure: "Figure") -> None:
        """Write it at the top of a figure.

        Args:
            figure: The figure, whose height is set.
        """
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


def _numbers_that_fit(layers: Sequence[Layer], singles: Sequence[float], inches: float) -> list[tuple[float, str]]:
    """As many numbers of layers as fit beside one another and beside the labels of single parameters.

    Args:
        layers: From left to right.
        singles: Positions of the other labels, which are rotated and reach to the left, below the numbers.
        inches: Width of one unit of position.
    """
    taken = [(x - 0.17 / inches, x + 0.1 / inches) for x in singles]
    return [(x, number) for x, _, number in layers if _has_room(taken, x, (len(number) * LETTER / 2 + 0.025) / inches)]


def _stacks_that_fit(layers: Sequence[Layer], singles: Sequence[float], inches: float) -> list[tuple[float, str]]:
    """The name of each stack, else `layer`, for the line below the numbers: as near the stack's middle as fits."""
    taken = [(x - 0.4 / inches, x + 0.06 / inches) for x in singles]
    found = []
    for stack in dict.fromkeys(stack for _, stack, _ in layers):
        places = [x for x, of, _ in layers if of == stack]
        middle, name = float(np.mean(places)), stack or "layer"
        half = (len(name) * LETTER * 9 / 8 / 2 + 0.03) / inches
        nearest = sorted([middle, *places], key=lambda x: abs(x - middle))
        found += [(x, name) for x in nearest if _has_room(taken, x, half)][:1]
    return found


def _rotated_that_fit(layers: Sequence[Layer], singles: Sequence[float], inches: float) -> list[tuple[float, str]]:
    """As many labels `encoder.0 1 2 ... decoder.0 1 2` as fit where all are rotated, a stack's name first."""
    half = _ROTATED / 2 / inches
    taken = [(x - half, x + half) for x in singles]
    found: dict[float, str] = {}
    named: dict[str, float] = {}
    for x, stack, number in layers:
        if stack and stack not in named and _has_room(taken, x, half):
            found[x], named[stack] = f"{stack}.{number}", x
    for x, stack, number in layers:
        if x > named.get(stack, -math.inf) and (not stack or stack in named) and _has_room(taken, x, half):
            found[x] = number
    return sorted(found.items())


def _has_room(taken: list[tuple[float, float]], x: float, half: float) -> bool:
    """Whether a label of this half width fits at `x`, which is taken then."""
    free = all(x + half <= start or x - half >= end for start, end in taken)
    if free:
        taken.append((x - half, x + half))
    return free
