"""The CoLA recipe as people run it: through `accelerate launch`, on small data with a tiny model."""

import csv
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, matthews_corrcoef
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bert_toolkit import InputError

RECIPE = Path(__file__).parents[2] / "recipes" / "cola.py"
cola_main = runpy.run_path(str(RECIPE))["main"]


def flags(cola_dir, tiny_bert_dir, output_dir, **changes):
    return {
        "data_dir": cola_dir,
        "model_name_or_path": tiny_bert_dir,
        "output_dir": output_dir,
        "num_train_epochs": 10,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "max_length": 16,
        "cpu_threads": 1,
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launch, cola_dir, tiny_bert_dir):
    output_dir = tmp_path_factory.mktemp("run") / "cola"
    process = launch("cola", flags(cola_dir, tiny_bert_dir, output_dir))
    assert process.returncode == 0, process.stderr[-3000:]
    return output_dir, process.stdout


pytestmark = pytest.mark.launch


def test_scores_are_those_of_scikit_learn_on_the_written_predictions(finished):
    output_dir, _ = finished
    results = json.loads((output_dir / "results.json").read_text())
    with (output_dir / "predictions.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    labels, predictions = [row["label"] for row in rows], [row["prediction"] for row in rows]
    assert results["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-12)
    assert results["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert results["matthews_correlation"] > 0.5, "the rule of the test data must be learned"
    assert len(results["matthews_correlation_by_batch"]) == -(-len(rows) // 32)
    low, high = results["matthews_correlation_interval_95"]
    assert low <= results["matthews_correlation"] <= high
    for key in ("data", "model", "training seconds", "tokens per second", "padding share", "versions", "command"):
        assert results[key]


def check_predictions_stand_beside_their_own_sentences(output_dir, cola_dir):
    rows = [line.split("\t") for line in (cola_dir / "out_of_domain_dev.tsv").read_text().splitlines()]
    with (output_dir / "predictions.tsv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = ("unacceptable", "acceptable")
    assert [(row["sentence"], row["label"]) for row in written] == [(row[3], names[int(row[1])]) for row in rows]


def test_predictions_stand_beside_their_own_sentences(finished, cola_dir):
    check_predictions_stand_beside_their_own_sentences(finished[0], cola_dir)


def test_training_health_is_in_the_results_and_can_be_turned_off(finished, tmp_path, launch, cola_dir, tiny_bert_dir):
    output_dir, printed = finished
    results = json.loads((output_dir / "results.json").read_text())
    assert results["training health"].startswith("no fault found") and "no fault found" in printed
    assert isinstance(results["training_health_findings"], list)
    assert (output_dir / "monitoring" / "training_health.jsonl").exists()
    few = {"max_steps": 2, "training_health": False, "train_sampling_strategy": "group_by_length"}
    process = launch("cola", flags(cola_dir, tiny_bert_dir, tmp_path / "off", **few))
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads((tmp_path / "off" / "results.json").read_text())["training health"] == "not watched"
    assert not (tmp_path / "off" / "monitoring" / "training_health.jsonl").exists()
    check_predictions_stand_beside_their_own_sentences(tmp_path / "off", cola_dir)


def test_everything_promised_is_written(finished):
    output_dir, _ = finished
    expected = {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "modeling_toolkit_bert.py",
        "configuration_toolkit_bert.py",
        "fast_paths_toolkit_bert.py",
        "README.md",
        "results.json",
        "predictions.tsv",
        "figures",
        "monitoring",
        "runs",
    }
    assert expected <= {path.name for path in output_dir.iterdir()}
    for name in ("learning_curves", "matthews_correlation_by_batch", "confusion_matrix"):
        assert (output_dir / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "CoLA acceptability" in (output_dir / "README.md").read_text()


def test_tensorboard_reads_scalars_and_figures(finished):
    output_dir, _ = finished
    (folder,) = {path.parent for path in (output_dir / "runs").rglob("events*")}  # one run per training
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert {"train/loss", "train/learning_rate", "eval/matthews_correlation", "eval/loss"} <= set(tags["scalars"])
    assert {"gradient_flow/mean/layer.0", "update_ratio/layer.1"} <= set(tags["scalars"])
    assert {"learning_curves", "confusion_matrix", "matthews_correlation_by_batch"} <= set(tags["images"])


def test_overview_is_printed_once(finished):
    _, printed = finished
    for words in ("CoLA fine-tuning", "Tokens per row", "Parameters", "layer.1", "truncated", "Saved and reloaded"):
        assert printed.count(words) >= 1, words
    assert printed.count("Tokens per row") == 1


def test_last_lines_lead_to_report_curves_and_model(finished, tmp_path):
    """Each is done as it is printed."""
    pytest.importorskip("plotly")
    output_dir, printed = finished
    report, curves, load, use = (line.split(maxsplit=1) for line in printed.splitlines()[-4:])
    assert [report[0], curves[0], load[0], use[0]] == ["report", "curves", "model", "next"]
    text = Path(report[1]).read_text(encoding="utf-8")
    assert "no fault found" in text and "Confusion matrix" in text
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inspected = subprocess.run(
        [*shlex.split(curves[1]), "--inspect"], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert inspected.returncode == 0 and "first_step" in inspected.stdout, inspected.stderr[-2000:]
    command = use[1].removeprefix("label new texts: ")
    done = {"AutoModelForSequenceClassification": AutoModelForSequenceClassification}
    exec(load[1].replace("AutoModel", "model = AutoModel", 1), done)
    model = done["model"]
    assert model.config.label2id["acceptable"] == 1
    (tmp_path / "new.csv").write_text("text\nthe dog sleeps today .\nsleeps the dog today .\n")
    python, *arguments = shlex.split(command)
    labeled = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert python == "python" and labeled.returncode == 0, labeled.stderr[-2000:]
    rows = [line.split("\t") for line in (tmp_path / "labeled.tsv").read_text().splitlines()]
    assert [row[1] for row in rows] == ["prediction", "acceptable", "unacceptable"]


def test_saved_model_loads_with_label_names(finished):
    output_dir, _ = finished
    model = AutoModelForSequenceClassification.from_pretrained(output_dir)
    assert model.config.id2label == {0: "unacceptable", 1: "acceptable"}
    classify = pipeline(
        "text-classification", model=str(output_dir), tokenizer=AutoTokenizer.from_pretrained(output_dir)
    )
    good, bad = classify(["the dog sleeps today .", "sleeps the dog today ."])
    assert (good["label"], bad["label"]) == ("acceptable", "unacceptable")


def test_second_run_into_a_finished_one_is_refused_and_changes_nothing(finished, launch, cola_dir, tiny_bert_dir):
    output_dir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*") if path.is_file()}
    process = launch("cola", flags(cola_dir, tiny_bert_dir, output_dir))
    assert process.returncode != 0
    assert "holds a finished run" in process.stderr
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*") if path.is_file()} == before


def test_transformers_implementation_and_layer_wise_decay(tmp_path, launch, cola_dir, tiny_bert_dir):
    process = launch(
        "cola",
        flags(
            cola_dir,
            tiny_bert_dir,
            tmp_path / "run",
            num_train_epochs=1,
            implementation="transformers",
            layer_wise_decay=0.9,
        ),
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == "bert"


def test_constant_prediction_is_said(tmp_path, launch, cola_dir, tiny_bert_dir):
    process = launch("cola", flags(cola_dir, tiny_bert_dir, tmp_path / "run", num_train_epochs=1, learning_rate=1e-12))
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["matthews_correlation"] == 0) == ("every row was predicted as" in process.stdout)
    assert results["matthews_correlation"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": "/absent"}, "/absent"),
        ({"model_name_or_path": "/absent/model"}, "/absent/model"),
        ({"max_length": 100}, "`max_length` must lie in 5 to 64"),
        ({"dataset": "hub", "data_dir": None}, "hub"),
        ({"implementation": "mine"}, "`implementation` must be auto, toolkit or transformers, got mine"),
        ({"lerning_rate": 1}, "unknown argument `--lerning_rate`; did you mean `--learning_rate`"),
        ({"output_dir": "/proc/self/fdinfo/run"}, "is not writable"),
    ],
    ids=["no-data", "no-model", "max-length", "hub-unreachable", "implementation", "flag", "output-dir"],
)
def test_bad_input_is_one_line_and_writes_no_results(tmp_path, monkeypatch, cola_dir, tiny_bert_dir, changes, message):
    values = flags(cola_dir, tiny_bert_dir, **{"output_dir": tmp_path / "run", **changes})
    arguments = [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["cola.py", *arguments])
    with pytest.raises(InputError, match=re.escape(message)) as error:
        cola_main()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "results.json").exists()


def test_model_folder_without_weights_ends_with_one_line_and_status_2(tmp_path, cola_dir, tiny_bert_dir):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny_bert_dir / "config.json").read_text())
    values = flags(cola_dir, tmp_path / "model", tmp_path / "run")
    arguments = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    process = subprocess.run([sys.executable, str(RECIPE), *arguments], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert "weights" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_several_processes_that_the_launcher_ignores_are_refused(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    process = subprocess.run(
        [*launcher, str(RECIPE), "--output_dir", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert process.returncode != 0
    assert "several processes were asked for but the launcher started one" in process.stderr
