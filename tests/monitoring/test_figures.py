"""Figures show what the records hold, in words that fit, also where values are missing or not finite."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from transformers import BertConfig, BertForSequenceClassification

from bert_toolkit.monitoring import GradientFlowRecord, UpdateRatioRecord, describe_parameters
from bert_toolkit.monitoring.figures import drawn_names, gradients_figure, heat_map_figure, update_ratios_figure


def bert(layers: int) -> dict:
    config = BertConfig(
        hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=layers, vocab_size=20
    )
    return describe_parameters(BertForSequenceClassification(config))


def gradients(parameters, step=5, **changes) -> GradientFlowRecord:
    values = np.random.default_rng(step).uniform(1e-6, 1e-2, (5, len(parameters)))
    return GradientFlowRecord(step, tuple(parameters), *values, **changes)


def updates(parameters, step=5, **changes) -> UpdateRatioRecord:
    values = np.random.default_rng(step).uniform(1e-5, 1e-2, (4, len(parameters)))
    return UpdateRatioRecord(step, tuple(parameters), *values, **changes)


def texts(figure) -> list[str]:
    labels = [t.get_text() for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    return (
        [t.get_text() for t in figure.texts]
        + [axes.get_title(loc) for axes in figure.axes for loc in ("left", "center")]
        + labels
    )


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of upright labels on one axis whose boxes overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = []
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            shown = [t for t in labels if t.get_text() and t.get_visible() and t.get_rotation() == 0]
            boxes = [t.get_window_extent(canvas.get_renderer()) for t in shown]
            for i in range(len(boxes) - 1):
                if boxes[i].overlaps(boxes[i + 1]):
                    found.append((shown[i].get_text(), shown[i + 1].get_text()))
    return found


@pytest.mark.parametrize("layers", [6, 24])
def test_labels_do_not_overlap(layers):
    parameters = bert(layers)
    names = drawn_names(parameters)
    flow, ratio = gradients(parameters), updates(parameters)
    for figure in (
        gradients_figure(flow, parameters, names),
        update_ratios_figure(ratio, parameters, names),
        heat_map_figure([flow], "mean", parameters, "mean", names),
    ):
        assert overlaps(figure) == []
        assert figure.get_figwidth() <= 22 and figure.get_figheight() <= 14


def test_one_bar_per_layer_with_its_value():
    parameters = bert(2)
    names = drawn_names(parameters)
    record = gradients(parameters)
    panels = gradients_figure(record, parameters, names).axes
    assert len(panels) == 3
    shares = [record.zero_share[record.names.index(name)] for name in names]
    bars = panels[0].collections[0].get_paths()
    np.testing.assert_allclose([path.vertices[:, 1].max() for path in bars], shares)
    stds = [record.std[record.names.index(name)] for name in names]
    np.testing.assert_allclose([p.vertices[:, 1].max() for p in panels[1].collections[0].get_paths()], stds)


def test_biases_and_skipped_layers_are_left_out():
    parameters = bert(2)
    assert not any(parameters[name].role == "bias" for name in drawn_names(parameters))
    assert drawn_names(parameters, include_biases=True) == list(parameters)
    assert drawn_names(parameters, include_biases=True, skip_probability=1.0) == []
    half = drawn_names(parameters, skip_probability=0.5, seed=1)
    assert 0 < len(half) < len(drawn_names(parameters))
    assert half == drawn_names(parameters, skip_probability=0.5, seed=1)
    assert half != drawn_names(parameters, skip_probability=0.5, seed=2)


def test_bands_differ_by_role():
    from bert_toolkit.monitoring.update_ratios import TYPICAL_RATIOS

    parameters = bert(2)
    figure = update_ratios_figure(updates(parameters), parameters, drawn_names(parameters))
    assert [axes.get_title() for axes in figure.axes] == ["matrices", "embeddings", "norms"]
    for axes, role in zip(figure.axes, ("matrix", "embedding", "norm"), strict=True):
        band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        np.testing.assert_allclose([band.y0, band.y1], TYPICAL_RATIOS[role], rtol=1e-6)
        assert axes.get_yscale() == "log"


def test_what_went_wrong_is_said():
    parameters = bert(2)
    first = next(iter(parameters))
    figure = gradients_figure(gradients(parameters, clip_coefficient=0.25, missing=(first,)), parameters)
    assert any("clipped to 0.25" in t and "1 parameters without gradient" in t for t in texts(figure))
    assert any(
        f"first {first}" in t for t in texts(gradients_figure(gradients(parameters, nonfinite=(first,)), parameters))
    )
    assert any("SKIPPED" in t for t in texts(gradients_figure(gradients(parameters, skipped=True), parameters)))
    assert any("SKIPPED" in t for t in texts(update_ratios_figure(updates(parameters, skipped=True), parameters)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_values_that_a_logarithm_does_not_like(value):
    parameters = bert(2)
    record, ratio = gradients(parameters), updates(parameters)
    for values in (record.mean, record.std, record.max, ratio.ratio):
        values[3] = value
    for figure in (
        gradients_figure(record, parameters),
        update_ratios_figure(ratio, parameters),
        heat_map_figure([record, record], "mean", parameters, "mean"),
    ):
        FigureCanvasAgg(figure).draw()
    for values in (record.mean, record.std, record.max, ratio.ratio):
        values[:] = value
    FigureCanvasAgg(gradients_figure(record, parameters)).draw()
    FigureCanvasAgg(update_ratios_figure(ratio, parameters)).draw()
    figure = heat_map_figure([record], "mean", parameters, "mean")
    FigureCanvasAgg(figure).draw()
    if value == 0.0:
        assert any("black: zero" in t for t in texts(figure))


def test_heat_map_marks_findings_and_tells_missing_values():
    parameters = bert(2)
    names = list(parameters)
    partial = {name: parameters[name] for name in names[:-1]}
    records = [gradients(partial, step=1), gradients(parameters, step=10)]
    figure = heat_map_figure(records, "mean", parameters, "mean", markers=[(10, names[0]), (10, "unknown")])
    (marks,) = figure.axes[0].lines
    assert marks.get_xdata().tolist() == [1] and len(marks.get_ydata()) == 1
    assert any("grey: no value" in t and "finding" in t for t in texts(figure))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "10"]


def test_figures_of_other_architectures():
    from torch import nn

    parameters = describe_parameters(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    for figure in (
        gradients_figure(gradients(parameters), parameters),
        update_ratios_figure(updates(parameters), parameters),
        heat_map_figure([gradients(parameters)], "mean", parameters, "mean"),
    ):
        FigureCanvasAgg(figure).draw()
