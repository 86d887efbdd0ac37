"""Files that a run leaves can be read back by other programs."""

import csv
import json

import numpy as np
import pytest

from bert_toolkit.reporting.results import write_predictions, write_results


def test_results_are_strict_json(tmp_path):
    values = {"array": np.arange(3), "nan": float("nan"), "number": np.float32(0.5), "nested": {"x": (1, np.inf)}}
    path = write_results(tmp_path, values)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["array"] == [0, 1, 2]
    assert read["nan"] is None
    assert read["number"] == 0.5
    assert read["nested"] == {"x": [1, None]}
    assert {"python", "torch", "transformers"} <= set(read["versions"])
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path):
    write_results(tmp_path, {"value": 1})
    with pytest.raises(TypeError):
        write_results(tmp_path, {"value": object()})
    assert json.loads((tmp_path / "results.json").read_text())["value"] == 1


def test_predictions_with_tabs_quotes_and_line_breaks_keep_their_rows(tmp_path):
    texts = ['a "quoted" text', "a\ttab", "two\nlines", "ünïcode"]
    path = write_predictions(tmp_path, {"text": texts, "probability": [0.5, 1.0, 0.25, 1e-9]})
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == ["text", "probability"]
    assert [row[0] for row in rows[1:]] == ['a "quoted" text', "a tab", "two lines", "ünïcode"]
    assert [float(row[1]) for row in rows[1:]] == [0.5, 1.0, 0.25, 1e-9]
