"""Charts of a run as plotly.js takes them: plain dictionaries of data and layout."""

from __future__ import annotations

import html
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bert_toolkit.health import finding_html
from bert_toolkit.health.findings_file import Case
from bert_toolkit.run_page.run_files import RunFiles, Series

Chart = dict[str, Any]

MOST_POINTS = 2000  # of a curve or a row of a heat map; more cannot be told apart on a screen
COLORS = ("#3566a5", "#d1752b", "#3f8f5f", "#8a5aa8", "#a8324a", "#6b6b6b")
NO_VALUE = "#c9cdd3"


def curves(runs: Sequence[RunFiles], names: Mapping[str, str], axis: str, logarithmic: bool = False) -> Chart | None:
    """Draw numbers over the steps, with the findings of the first run marked.

    Args:
        runs: One run, or two whose curves lie over each other, the second dashed.
        names: Logged name to what the legend calls it.
        axis: Name and unit of the values.
        logarithmic: Draw the values on a logarithmic scale.

    Returns:
        The chart; None where no run has logged any of these.
    """
    data = []
    for number, run in enumerate(runs):
        whose = f", {run.folder.name}" if len(runs) > 1 else ""
        for at, (name, label) in enumerate(names.items()):
            color = COLORS[(number * len(names) + at) % len(COLORS)]
            points = thinned(run.logged.get(name, []))
            if points:
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers" if len(points) <= 60 else "lines",
                        "name": as_text(f"{label}{whose}"),
                        "x": [step for step, _ in points],
                        "y": [_finite(value) for _, value in points],
                        "line": {"color": color, "dash": "dash" if number else "solid", "width": 2},
                        "marker": {"size": 5},
                    }
                )
    if not data:
        return None
    layout = _layout(axis)
    layout["showlegend"] = len(data) > 1
    if logarithmic:
        # plotly.js would label ticks between powers of ten by their first digit: 5 for 0.5
        layout["yaxis"] |= {"type": "log", "tickformat": ".3~g"}
    _mark(layout, runs[0].cases)
    return {"data": data, "layout": layout}


def heat_map(blocks: Mapping[str, Series], cases: Sequence[Case], meaning: str) -> Chart:
    """Draw layers over the steps, color being the logarithm of a number; hovering shows the number.

    Every sample is as wide as another: the first steps, where samples are dense, would be slivers on a scale of steps.

    Args:
        blocks: Layer to its number at each sampled step, the first layer on top.
        cases: Findings to mark where and when they were first seen.
        meaning: What the number is.

    Returns:
        The chart.
    """
    names = list(blocks)
    steps = [step for step, _ in thinned(next(iter(blocks.values())))]
    values = np.array([[value for _, value in thinned(points)] for points in blocks.values()])
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log10(values)
    finite = logarithms[np.isfinite(logarithms)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (-1.0, 0.0)
    heat: Chart = {
        "type": "heatmap",
        "x": steps,
        "y": [as_text(name) for name in names],
        "z": [[_finite(value) for value in row] for row in logarithms.tolist()],
        "customdata": [[_finite(value) for value in row] for row in values.tolist()],
        "hovertemplate": f"step %{{x}}<br>%{{y}}<br>{as_text(meaning)} %{{customdata:.3g}}<extra></extra>",
        "colorscale": "Viridis",
        "zmin": float(low),
        "zmax": float(max(high, low + 0.1)),
        "colorbar": {"title": {"text": "log10"}, "thickness": 12},
    }
    layout = _layout("")
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "showgrid": False}
    layout["xaxis"] |= {"type": "category", "showgrid": False}
    layout["height"] = 130 + 22 * len(names)
    layout["plot_bgcolor"] = NO_VALUE
    elsewhere = [case for case in cases if not set(case.finding.layers) & set(names)]
    _mark(layout, elsewhere, lambda step: float(np.interp(step, steps, range(len(steps)))))
    placed = [(case, layer) for case in cases for layer in case.finding.layers if layer in blocks]
    crosses = {
        "type": "scatter",
        "mode": "markers",
        # at the first sample that could show it
        "x": [steps[min(bisect_left(steps, case.finding.step), len(steps) - 1)] for case, _ in placed],
        "y": [as_text(layer) for _, layer in placed],
        "text": [f"step {case.finding.step}<br>{as_text(layer)}<br>{as_text(_rule(case))}" for case, layer in placed],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "x", "size": 10, "color": "#e5383b", "line": {"color": "white", "width": 1}},
        "showlegend": False,
    }
    return {"data": [heat, crosses] if placed else [heat], "layout": layout}


def bars(values: Sequence[float], total: float | None, axis: str) -> Chart:
    """Draw a number for each batch as bars, with that of all rows as a line.

    Args:
        values: One for each batch, in order.
        total: That of all rows, None where it is not known.
        axis: Name of the number.

    Returns:
        The chart.
    """
    batches = list(range(1, len(values) + 1))
    bar = {"type": "bar", "x": batches, "y": [_finite(value) for value in values], "marker": {"color": COLORS[0]}}
    layout = _layout(axis)
    layout["xaxis"]["title"]["text"] = "batch"
    layout |= {"meta": "not over steps", "showlegend": False}
    if total is not None:
        line = {"color": COLORS[1], "width": 2}
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": total, "y1": total, "line": line}
        ]
    return {"data": [{**bar, "name": "batch"}], "layout": layout}


def thinned(points: Series) -> Series:
    """Return evenly chosen points where there are more than can be drawn, the first and the last among them.

    Args:
        points: Any number.

    Returns:
        At most `MOST_POINTS`.
    """
    if len(points) <= MOST_POINTS:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]


def as_text(text: str) -> str:
    """Return text that plotly.js shows as it is: it reads a part of HTML in labels.

    Args:
        text: Any text.
    """
    return html.escape(text, quote=False)


def _layout(axis: str) -> Chart:
    return {
        "height": 260,
        "margin": {"l": 70, "r": 20, "t": 34, "b": 62},
        "xaxis": {"title": {"text": "step", "standoff": 4}, "gridcolor": "#e8eaed"},
        "yaxis": {"title": {"text": as_text(axis)}, "gridcolor": "#e8eaed", "automargin": True, "exponentformat": "e"},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.3},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 12},
    }


def _mark(layout: Chart, cases: Sequence[Case], place_of: Callable[[float], float] = lambda step: step) -> None:
    """A line at the step at which each finding was first seen, and a shade up to where it was last seen."""
    shapes, notes = [], []
    for row, case in enumerate(case for case in cases if case.finding.severity != "note"):
        color = finding_html.COLORS[case.finding.severity]
        first, last = place_of(case.finding.step), place_of(case.last_step)
        place = {"xref": "x", "yref": "paper", "x0": first, "y0": 0, "y1": 1}
        shapes.append({**place, "type": "line", "x1": first, "line": {"color": color, "dash": "dot"}})
        if last > first:
            shade = {"fillcolor": color, "opacity": 0.06, "line": {"width": 0}}
            shapes.append({**place, "type": "rect", "x1": last, **shade})
        notes.append(
            {
                "x": first,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "left",
                "yshift": 12 * (row % 3),
                "text": as_text(_rule(case)),
                "showarrow": False,
                "font": {"color": color, "size": 10},
            }
        )
    layout["shapes"], layout["annotations"] = shapes, notes


def _rule(case: Case) -> str:
    return case.finding.rule.replace("_", " ")


def _finite(value: float) -> float | None:
    """The value, None where JSON has no word for it."""
    return value if math.isfinite(value) else None
