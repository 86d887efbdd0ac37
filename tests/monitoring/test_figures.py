"""Figures show what the records hold, in words that fit, also where values are missing or not finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.path import Path
from matplotlib.transforms import Affine2D
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

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


def outline(text, renderer) -> Path:
    """The rectangle around a text, turned as the text is."""
    angle = text.get_rotation()
    text.set_rotation(0)
    box = text.get_window_extent(renderer)
    text.set_rotation(angle)
    corners = Path([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1), (box.x0, box.y0)])
    anchor = text.get_transform().transform(text.get_position())
    return corners.transformed(Affine2D().rotate_deg_around(*anchor, angle)) if angle else corners


def tick_labels(axes) -> list[list]:
    """Labels of both axes that are drawn: ticks beyond the limits are not."""
    found = []
    for coordinate, axis in enumerate((axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        found.append([text for text in axis.get_ticklabels() if low <= text.get_position()[coordinate] <= high])
    return found


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of labels on one axis that overlap, and of notes and legend."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    groups = [labels for axes in figure.axes for labels in tick_labels(axes)]
    groups += [[*tick_labels(axes)[0], *axes.texts] for axes in figure.axes]
    groups.append([*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())])
    found = []
    for labels in groups:
        shown = [t for t in labels if t.get_text() and t.get_visible()]
        paths = [outline(t, renderer) for t in shown]
        found += [
            (shown[i].get_text(), shown[j].get_text())
            for i in range(len(paths))
            for j in range(i + 1, len(paths))
            if paths[i].intersects_path(paths[j], filled=True)
        ]
    return found


def cut_off(figure) -> list[str]:
    """Texts that reach beyond the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    axes_texts = [
        text
        for axes in figure.axes
        for text in (
            *(label for labels in tick_labels(axes) for label in labels),
            *axes.texts,
            axes.title,
            axes._left_title,
            axes.xaxis.label,
            axes.yaxis.label,
        )
    ]
    legend = [text for legend in figure.legends for text in legend.get_texts()]
    bounds = figure.bbox
    return [
        text.get_text()
        for text in (*axes_texts, *figure.texts, *legend)
        if text.get_text() and not all(bounds.contains(x, y) for x, y in outline(text, renderer).vertices)
    ]


def t5(layers: int) -> dict:
    with torch.device("meta"):
        config = T5Config(d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=layers, vocab_size=20)
        return describe_parameters(T5ForConditionalGeneration(config))


def bart(layers: int) -> dict:
    config = BartConfig(
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=20,
    )
    with torch.device("meta"):
        return describe_parameters(AutoModel.from_config(config))


MODELS = {
    "bert 6": lambda: bert(6),
    "bert 24": lambda: bert(24),
    "t5 2": lambda: t5(2),
    "t5 6": lambda: t5(6),
    "t5 24": lambda: t5(24),
    "bart 12": lambda: bart(12),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("include_biases", [False, True])
def test_labels_neither_overlap_nor_are_cut_off(model, include_biases):
    parameters = MODELS[model]()
    names = drawn_names(parameters, include_biases)
    flow = gradients(parameters, clip_coefficient=0.123)
    ratio = updates(parameters, learning_rate=2.5e-5, peak_learning_rate=1e-4)
    for figure in (
        gradients_figure(flow, parameters, names),
        update_ratios_figure(ratio, parameters, names),
        heat_map_figure([flow], "mean", parameters, "mean", names),
    ):
        assert overlaps(figure) == []
        assert cut_off(figure) == []
        assert figure.get_figwidth() <= 22 and figure.get_figheight() <= 14


@pytest.mark.parametrize("model", ["bert 24", "t5 6", "bart 12"])
def test_no_color_means_two_things(model):
    parameters = MODELS[model]()
    for figure in (
        gradients_figure(gradients(parameters), parameters),
        update_ratios_figure(updates(parameters), parameters),
    ):
        (legend,) = figure.legends
        colors = [patch.get_facecolor() for patch in legend.get_patches()]
        assert len(colors) > 6 and len(set(colors)) == len(colors)


@pytest.mark.parametrize("model", ["t5 2", "t5 6", "t5 24", "bart 12"])
def test_every_stack_has_its_name_once(model):
    parameters = MODELS[model]()
    flow, ratio = gradients(parameters), updates(parameters)
    figures = gradients_figure(flow, parameters), update_ratios_figure(ratio, parameters)
    for axes in (figures[0].axes[-1], figures[1].axes[0], figures[1].axes[-1]):
        assert [text.get_text() for text in axes.texts] == ["encoder", "decoder"]


@pytest.mark.parametrize(("model", "layers"), [("t5 2", 2), ("t5 6", 6), ("bart 12", 12)])
def test_every_layer_of_every_stack_has_its_number(model, layers):
    """Also in the panel of norms, where a norm of its own stands between the stacks."""
    parameters = MODELS[model]()
    names = drawn_names(parameters)
    ratios = update_ratios_figure(updates(parameters), parameters, names)
    for axes in (ratios.axes[0], ratios.axes[-1], gradients_figure(gradients(parameters), parameters, names).axes[-1]):
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert [label for label in labels if label.isdigit()] == [str(i) for i in range(layers)] * 2


def test_a_panel_too_narrow_for_names_below_rotates_them():
    parameters = MODELS["t5 6"]()
    axes = update_ratios_figure(updates(parameters), parameters).axes[1]
    assert axes.get_title() == "embeddings" and not axes.texts
    assert [label.get_text() for label in axes.get_xticklabels()] == ["encoder.0", "decoder.0", "shared"]


def test_many_kinds_still_have_colors_of_their_own():
    from bert_toolkit.monitoring.layer_bars import _distinct_colors

    for count in (1, 9, 10, 18, 27, 28, 60):
        assert len(set(_distinct_colors(count))) == count


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


@pytest.mark.parametrize(
    ("rate", "peak", "scale", "words"),
    [
        (2.5e-5, 1e-4, 0.25, "at this learning rate (2.5e-05, 25% of its peak)"),
        (1e-4, 1e-4, 1.0, "at this learning rate (0.0001, its peak so far)"),
        (np.nan, np.nan, 1.0, "at their full learning rate"),
        (0.0, 1e-4, None, "learning rate 0: nothing can move"),
    ],
)
def test_band_follows_the_learning_rate(rate, peak, scale, words):
    from bert_toolkit.monitoring.update_ratios import TYPICAL_RATIOS

    parameters = bert(2)
    figure = update_ratios_figure(updates(parameters, learning_rate=rate, peak_learning_rate=peak), parameters)
    assert any(words in text for text in texts(figure))
    patches = figure.axes[0].patches
    assert len(patches) == (scale is not None)
    if scale is not None:
        band = patches[0].get_extents().transformed(figure.axes[0].transData.inverted())
        np.testing.assert_allclose([band.y0, band.y1], np.array(TYPICAL_RATIOS["matrix"]) * scale, rtol=1e-6)


def test_heat_map_of_ratios_leaves_out_steps_at_which_nothing_can_move():
    parameters = bert(2)
    still = updates(parameters, step=1, learning_rate=0.0)
    still = replace(still, ratio=np.zeros_like(still.ratio))
    records = [still, updates(parameters, step=5, learning_rate=1e-3), updates(parameters, step=10)]
    figure = heat_map_figure(records, "ratio", parameters, "ratio")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["5", "10"]
    assert any("1 step of learning rate 0 left out" in text for text in texts(figure))
    assert not any("black" in text for text in texts(figure))
    alone = heat_map_figure([still], "ratio", parameters, "ratio")
    assert [label.get_text() for label in alone.axes[0].get_xticklabels()] == ["1"], "a run that never moves shows it"


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
    assert any("gray: no value" in t and "finding" in t for t in texts(figure))
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
