"""Tables and figures of labels take any names and any number of classes."""

import numpy as np
import pytest

from bert_toolkit.reporting import figures, overview

STRANGE = ["[bold]", "[/x]", ":smile:", "$a_{$", "日本語", "a" * 200, "{0}", "100 %"]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def test_names_are_printed_as_they_are(capsys):
    overview.print_class_balance({"train [1]": [0, 1, 1, 7]}, STRANGE)
    overview.print_class_scores({name: {"precision": 0, "recall": 0, "f1": 0, "rows": 1} for name in STRANGE})
    overview.print_settings({"[/x]": "[bold] :smile:"}, "[/x]")
    printed = capsys.readouterr().out
    for name in STRANGE:
        assert printed.count(name) >= 2, name
    assert "2 (50.0%)" in printed


def test_balance_of_several_labels_at_once(capsys):
    overview.print_class_balance({"train": [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]}, ["x", "y"])
    printed = capsys.readouterr().out
    assert "3 (75.0%)" in printed
    assert "1 (25.0%)" in printed


def test_many_classes_are_cut_and_it_is_said(capsys):
    names = [f"class {i}" for i in range(150)]
    overview.print_class_balance({"train": list(range(150))}, names)
    printed = capsys.readouterr().out
    assert "class 39" in printed
    assert "class 40" not in printed
    assert "and 110 more classes" in printed


def test_spread_of_numbers(capsys):
    overview.print_number_spread({"train": [1.0, 2.0, 6.0], "test": [0.5]})
    printed = capsys.readouterr().out
    for value in ("3", "2.16", "2", "6", "0.5"):
        assert f" {value} " in printed


def drawn(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png", dpi=50)
    return figure


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_take_strange_names(tmp_path):
    matrix = np.arange(64).reshape(8, 8)
    axes = drawn(figures.draw_confusion_matrix(matrix, STRANGE, "$a_{$"), tmp_path).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()][:4] == STRANGE[:4]
    assert axes.get_title() == "$a_{$"
    scores = {name: {"precision": 0.1, "recall": 0.5, "f1": 0.2} for name in STRANGE}
    drawn(figures.draw_class_scores(scores, "$a_{$"), tmp_path)
    drawn(
        figures.draw_learning_curves([{"step": 1, "loss": 1.0}, {"step": 1, "eval_f1": 1.0}], ["f1"], "$a_{$"),
        tmp_path,
    )


def test_of_many_classes_those_with_most_rows_are_drawn():
    matrix = np.diag(np.arange(100))
    axes = figures.draw_confusion_matrix(matrix, [str(i) for i in range(100)], "title").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(i) for i in range(70, 100)]
    assert axes.get_title() == "title (30 of 100 classes)"


def test_shares_of_a_confusion_matrix_are_of_all_rows_of_the_class_also_where_columns_are_cut():
    matrix = np.zeros((40, 40), dtype=int)
    matrix[np.arange(1, 31), np.arange(1, 31)] = 1
    matrix[np.arange(1, 31), 0] = 1  # half of the rows are taken for class 0, which itself has none
    axes = figures.draw_confusion_matrix(matrix, [str(i) for i in range(40)], "title").axes[0]
    assert axes.texts[0].get_text() == "1\n50%"


def test_running_mean_of_losses_stands_at_its_last_batch():
    losses = [float(i) for i in range(200)]
    batch, mean = figures.draw_batch_losses(losses, first_batch=1000, title="title").axes[0].get_lines()
    assert list(batch.get_xdata()) == list(range(1000, 1200))
    for x, y in zip(mean.get_xdata(), mean.get_ydata(), strict=True):
        window = losses[x - 1000 - 3 : x - 1000 + 1]
        assert y == pytest.approx(np.mean(window))


def test_predictions_are_drawn_against_the_diagonal(tmp_path):
    labels, predictions = np.array([0.0, 1.0, 4.0]), np.array([-1.0, 1.5, 3.0])
    axes = drawn(figures.draw_predictions(labels, predictions, "title"), tmp_path).axes[0]
    assert list(axes.get_lines()[0].get_xdata()) == [-1.0, 4.0] == list(axes.get_lines()[0].get_ydata())
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), np.stack([labels, predictions], axis=1))
