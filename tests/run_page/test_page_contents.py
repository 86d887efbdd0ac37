"""The page holds what the run's files say: every number against a reading of its own, every text as text."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
from hostile_text import HOSTILE
from sklearn.metrics import confusion_matrix

from bert_toolkit import InputError
from bert_toolkit.__main__ import main
from bert_toolkit.health.findings import Finding
from bert_toolkit.health.findings_file import Case
from bert_toolkit.run_page import write_run_page
from bert_toolkit.run_page.charts import heat_map

pytest.importorskip("plotly")

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Elements of a page, and what stands in those that have an id or hold code."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.sections, self.scripts, self.tables, self.text = [], {}, {}, [], ""
        self._open, self._section, self._script = [], None, None
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        assert not any(name.startswith("on") for name in attributes)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = attributes["id"]
            self.sections[self._section] = ""
        if tag == "script":
            self._script = attributes.get("id", "code")
            self.scripts[self._script] = ""
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"closed in the wrong order: {tag}"
        if tag == "script":
            self._script = None
        if tag == "section":
            self._section = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] += data
            return
        self.text += data
        if self._section is not None:
            self.sections[self._section] += data
        if any(tag in ("td", "th") for tag in self._open):
            self.tables[-1][-1][-1] += data

    @property
    def charts(self):
        drawn = json.loads(self.scripts["charts"])
        places = [attributes["data-chart"] for tag, attributes in self.tags if tag == "figure"]
        assert places == list(drawn), "every chart has one place"
        return list(drawn.values())

    def heat_map(self, word):
        (heat,) = [
            trace
            for chart in self.charts
            for trace in chart["data"]
            if trace["type"] == "heatmap" and word in trace["hovertemplate"]
        ]
        return heat


@pytest.fixture(scope="module")
def faulty_page(faulty_run):
    return Page((faulty_run / "report.html").read_text(encoding="utf-8"))


def test_a_plain_trainer_script_gets_its_sections(faulty_page):
    assert set(faulty_page.sections) == {"findings", "curves", "layers", "data-and-settings"}
    assert "not updated" in faulty_page.sections["findings"] and "let Trainer build it" in faulty_page.text
    assert "torch" in faulty_page.sections["data-and-settings"]
    assert "per_device_train_batch_size" in faulty_page.sections["data-and-settings"]


def test_nothing_is_fetched(faulty_page):
    for tag, attributes in faulty_page.tags:
        assert "src" not in attributes and attributes.get("href", "#").startswith(("#", "data:,")), (tag, attributes)
    assert sorted(faulty_page.scripts) == ["charts", "code", "plotly"]


def test_update_ratios_are_those_of_the_record_file(faulty_run, faulty_page):
    with np.load(faulty_run / "monitoring" / "update_ratio.npz", allow_pickle=False) as file:
        heat = faulty_page.heat_map("update")
        assert heat["x"] == file["step"].tolist() == [1, 2, 5, 6, 12, 18, 24, 30, 36, 42, 48]
        for block, shown in zip(heat["y"], heat["customdata"], strict=True):
            weights = (file["blocks"] == block) & ~np.isin(file["roles"], ["bias", "norm"])
            moved = np.sqrt((file["update_norm"][:, weights] ** 2).sum(1))
            size = np.sqrt((file["parameter_norm"][:, weights] ** 2).sum(1))
            np.testing.assert_allclose(shown, moved / size, rtol=1e-12)
    assert heat["y"] == ["embeddings", "layer.0", "layer.1", "layer.2", "head"]
    assert set(heat["customdata"][2]) == {0.0} and set(heat["z"][2]) == {None}


def test_gradients_are_those_of_the_record_file(faulty_run, faulty_page):
    with np.load(faulty_run / "monitoring" / "gradient_flow.npz", allow_pickle=False) as file:
        heat = faulty_page.heat_map("gradient")
        for block, shown in zip(heat["y"], heat["customdata"], strict=True):
            weights = (file["blocks"] == block) & ~np.isin(file["roles"], ["bias", "norm"])
            count = file["count"][:, weights]
            np.testing.assert_allclose(shown, (file["mean"][:, weights] * count).sum(1) / count.sum(1), rtol=1e-12)
            np.testing.assert_allclose(heat["z"][heat["y"].index(block)], np.log10(shown), rtol=1e-12)


def test_curves_are_what_was_logged(faulty_run, faulty_page):
    log = json.loads((faulty_run / "monitoring" / "run.json").read_text())["log_history"]
    for key, name in (("loss", "training"), ("eval_loss", "evaluation"), ("learning_rate", "learning rate")):
        (trace,) = [trace for chart in faulty_page.charts for trace in chart["data"] if trace.get("name") == name]
        assert [list(point) for point in zip(trace["x"], trace["y"], strict=True)] == [
            [entry["step"], entry[key]] for entry in log if key in entry
        ]


def test_the_moment_of_a_finding_is_marked_in_every_chart(faulty_run, faulty_page):
    finding = json.loads((faulty_run / "monitoring" / "training_health.jsonl").read_text().splitlines()[0])
    charts = faulty_page.charts
    assert len(charts) == 5
    for chart in charts:
        crosses = [trace for trace in chart["data"] if trace.get("marker", {}).get("symbol") == "x"]
        if crosses:
            assert (crosses[0]["x"], crosses[0]["y"]) == ([finding["step"]], ["layer.1"])
            assert f"step {finding['step']}<br>" in crosses[0]["text"][0]
        else:
            assert {shape["x0"] for shape in chart["layout"]["shapes"]} == {finding["step"]}
            assert [note["text"] for note in chart["layout"]["annotations"]] == ["not updated"]


def test_heat_maps_place_what_was_found_between_their_samples():
    blocks = {"layer.0": [(step, 0.5) for step in (1, 2, 5, 10, 50)]}
    cases = [
        Case(Finding(step, "gradient_spike", (), layers, 1.0, 0.5, "seen", "cause", "remedy"), 1, last_step=step)
        for step, layers in ((2, ()), (30, ()), (30, ("layer.0",)), (60, ("layer.0",)))
    ]
    chart = heat_map(blocks, cases, "number")
    heat, crosses = chart["data"]
    assert heat["x"] == [1, 2, 5, 10, 50] and chart["layout"]["xaxis"]["type"] == "category"
    lines = [shape["x0"] for shape in chart["layout"]["shapes"]]
    assert lines == [1, 3.5], "samples are counted from 0, and step 30 is half way from 10 to 50"
    assert crosses["x"] == [50, 50], "a cross is at the first sample that could show it"


def test_confusion_matrix_and_worst_rows(hostile_run, tmp_path):
    page = Page(write_run_page(hostile_run, output=tmp_path / "page.html").read_text(encoding="utf-8"))
    table = pandas.read_csv(hostile_run / "predictions.tsv", sep="\t", quoting=3)
    classes = sorted(set(table.label))
    (shown,) = [rows for rows in page.tables if rows[0][0].startswith("true")]
    assert shown[0][1:] == classes
    counted = [[int(cell) for cell in row[1:]] for row in shown[1:]]
    assert counted == confusion_matrix(table.label, table.prediction, labels=classes).tolist()
    wrong = table[table.label != table.prediction].sort_values("probability", ascending=False)
    (worst,) = [rows for rows in page.tables if rows[0][0] == "sentence"]
    assert [row[0] for row in worst[1:]] == wrong.sentence[:20].tolist()
    (bars,) = [trace for chart in page.charts for trace in chart["data"] if trace["type"] == "bar"]
    assert bars["y"] == [0.2, -0.1, 0.0]
    assert f"{len(wrong)} of 30 test rows" in page.text


def test_whatever_stands_in_the_files_is_text(hostile_run, healthy_run, tmp_path):
    for other in (None, healthy_run):
        text = write_run_page(hostile_run, other, tmp_path / "page.html").read_text(encoding="utf-8")
        page = Page(text)
        assert sorted(page.scripts) == ["charts", "code", "plotly"]
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert text.count("<script") == 3 and "<" not in page.scripts["charts"]
        # as text it is there, wherever it was put
        for place in (f"a {HOSTILE}", f"fact {HOSTILE}", f"score {HOSTILE}", f"python {HOSTILE}", f"remedy {HOSTILE}"):
            assert place in page.text, place
        labels = [trace.get("name", "") for chart in page.charts for trace in chart["data"]]
        labels += [note["text"] for chart in page.charts for note in chart["layout"].get("annotations", [])]
        assert any("&lt;script&gt;" in label for label in labels)
        assert not any("<" in label for label in labels), "plotly.js reads HTML in labels"


def test_two_runs_side_by_side(faulty_run, healthy_run, tmp_path):
    output = tmp_path / "both.html"
    assert main(["report", str(faulty_run), str(healthy_run), "--output", str(output)]) == 0
    page = Page(output.read_text(encoding="utf-8"))
    settings, parted = page.tables[:2]
    assert ["learning_rate", "0.001", "0.0005"] in settings
    assert not [row for row in settings if row[0] == "output_dir"]
    assert [row for row in settings if row[0] == "parameters that the optimizer does not hold" and "layer.1" in row[1]]
    assert ["parameter group 1: lr", "0.001", "0.0005"] in settings
    assert not [row for row in settings if "seen: " in row[0] or "groups." in row[0]]
    parts_at = {row[0]: row[1:] for row in parted[1:]}
    assert parts_at["update ratio layer.1"][:3] == ["1", "1", "0"]
    assert parts_at["gradient layer.1"][0] == "2", "the first gradient is that of the same weights and rows"
    assert parts_at["learning_rate"][:2] == ["4", "4"]


def test_a_recipe_without_callbacks(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"accuracy": 0.75, "log_history": [{"loss": 1.5, "step": 3}]}))
    page = Page(write_run_page(tmp_path).read_text(encoding="utf-8"))
    assert page.charts[0]["data"][0]["x"] == [3] and "0.75" in page.sections["scores"]
    assert "Training health was not watched" in page.text


def test_trainer_alone_leaves_its_newest_checkpoint(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        log = [{"loss": float(step), "step": step}, {"loss": float("nan"), "step": step + 1}]
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    trace = Page(write_run_page(tmp_path).read_text(encoding="utf-8")).charts[0]["data"][0]
    assert (trace["x"], trace["y"]) == ([10, 11], [10.0, None])


@pytest.mark.parametrize("name", ["update_ratio.npz", "run.json", "training_health.jsonl", "training_health.npz"])
@pytest.mark.parametrize("damage", [b"", b"\x80\x04.", b"{}", b"[1]"], ids=repr)
def test_a_damaged_file_is_named_and_the_rest_is_shown(faulty_run, tmp_path, name, damage):
    run = tmp_path / "run"
    shutil.copytree(faulty_run / "monitoring", run / "monitoring")
    (run / "monitoring" / name).write_bytes(damage)
    page = Page(write_run_page(run).read_text(encoding="utf-8"))
    if name != "training_health.jsonl" or damage:  # findings of a run that has just begun are an empty file
        assert f"Not shown: {run / 'monitoring' / name}" in page.text
    assert page.heat_map("gradient")


def test_arrays_are_never_unpickled(tmp_path):
    (tmp_path / "monitoring").mkdir()
    with (tmp_path / "monitoring" / "gradient_flow.npz").open("wb") as file:
        np.savez(file, names=np.array([lambda: None, None][1:], dtype=object))
    with pytest.raises(InputError, match="gradient_flow.npz is damaged or no npz file of plain arrays"):
        write_run_page(tmp_path)


def test_a_folder_without_a_run_is_one_clear_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "holds no file of a run" in error and "results.json" in error
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_one_clear_line(faulty_run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["report", str(faulty_run), "--output", str(tmp_path / "file" / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--output" in error


def test_health_is_the_same_command(faulty_run, capsys):
    assert main(["health", str(faulty_run)]) == 1
    assert "not updated" in capsys.readouterr().out


def test_flags_of_a_recipe_are_compared_and_equal_numbers_folded(tmp_path, healthy_run):
    pages = []
    for rows in (256, 128):
        run = tmp_path / f"rows-{rows}"
        shutil.copytree(healthy_run, run)
        record = json.loads((run / "monitoring" / "run.json").read_text())
        record["command"] = f"python recipes/cola.py --max_train_samples {rows} --output_dir {run}"
        (run / "monitoring" / "run.json").write_text(json.dumps(record))
        pages.append(run)
    page = Page(write_run_page(*pages, tmp_path / "both.html").read_text(encoding="utf-8"))
    assert ["max_train_samples", "256", "128"] in page.tables[0]
    assert not [row for row in page.tables[0] if row[0] == "output_dir"]
    assert "Never: " in page.text and "update ratio layer.1" in page.text


def test_a_model_that_predicts_one_class_is_told(tmp_path, healthy_run):
    run = tmp_path / "run"
    shutil.copytree(healthy_run, run)
    (run / "predictions.tsv").write_text("label\tprediction\tprobability\ngood\tbad\t0.6\nbad\tbad\t0.7\n")
    page = Page(write_run_page(run).read_text(encoding="utf-8"))
    assert "Every row was predicted as 'bad': the model has learned nothing." in page.text


def test_steps_of_rate_zero_are_left_out_and_the_rate_is_drawn(tmp_path, trained):
    trained(tmp_path / "run", False, warmup_steps=4, logging_strategy="no")
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    gradients, ratios = (chart["data"][0]["x"] for chart in page.charts if chart["data"][0]["type"] == "heatmap")
    assert 1 in gradients and 1 not in ratios and 2 in ratios
    assert any(chart["layout"]["yaxis"]["title"]["text"] == "learning rate" for chart in page.charts)
