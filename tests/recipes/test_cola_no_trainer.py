"""The plain Accelerate loop learns, saves and monitors as the Trainer recipe does."""

import csv
import json
import re
from importlib.util import find_spec

import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification

from bert_toolkit import GradientFlowRecord
from bert_toolkit.monitoring.record_file import load_records

pytestmark = pytest.mark.launch


@pytest.mark.parametrize("config", ["cpu", "cpu_2_processes"])
def test_loop_learns_and_what_it_saved_loads(tmp_path, launch, cola_dir, tiny_bert_dir, config):
    flags = {
        "data_dir": cola_dir,
        "model_name_or_path": tiny_bert_dir,
        "output_dir": tmp_path / "run",
        "num_train_epochs": 12,
        "batch_size": 4 if config == "cpu_2_processes" else 8,
        "learning_rate": 3e-3,
        "max_grad_norm": 0.1,
        "max_length": 16,
        "monitor_every": 10,
        "cpu_threads": 1,
    }
    process = launch("cola_no_trainer", flags, config)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Saved and reloaded with identical predictions" in process.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["matthews_correlation"] > 0.5
    check_it_ends_as_the_other_recipes_do(tmp_path / "run", results, process.stdout)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config.label2id["acceptable"] == 1
    scalars = EventAccumulator(str(tmp_path / "run" / "runs")).Reload()
    ratios = scalars.Scalars("update_ratio/layer.0")
    steps = [event.step for event in ratios]
    # the warm-up begins at a rate of 0, which moves nothing
    assert steps == sorted({2, 5, 10, 20, 50} | set(range(10, steps[-1] + 1, 10)))
    assert all(0 < event.value < 1 for event in ratios)
    assert {"train/loss", "train/learning_rate", "eval/accuracy"} <= set(scalars.Tags()["scalars"])
    records = load_records(tmp_path / "run" / "monitoring" / "gradient_flow.npz", GradientFlowRecord)
    coefficients = [record.clip_coefficient for record in records]
    assert [record.step for record in records] == [1, *steps]
    assert all(0 < value <= 1 for value in coefficients) and min(coefficients) < 0.9, "gradients are clipped"


def check_it_ends_as_the_other_recipes_do(folder, results, printed):
    with (folder / "predictions.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    labels, predictions = [row["label"] for row in rows], [row["prediction"] for row in rows]
    assert results["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-12)
    assert results["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    precision, recall, f1, counts = precision_recall_fscore_support(labels, predictions, labels=["acceptable"])
    of_class = {"precision": precision[0], "recall": recall[0], "f1": f1[0], "rows": counts[0]}
    assert results["classes"]["acceptable"] == pytest.approx(of_class)
    assert results["device"] in ("CPU, 1 process, 1 thread, fp32", "CPU, 2 processes, 1 thread each, fp32")
    assert "Test scores by class" in printed and results["training health"] in " ".join(printed.split())

    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "text-classification" and card.data.model_name == folder.name
    scores = {(of.metric_name, of.dataset_split): of.metric_value for of in card.data.eval_results}
    assert scores["matthews_correlation", "test"] == results["matthews_correlation"]
    assert scores["matthews_correlation", "validation"] == results["validation_matthews_correlation"]
    assert f"## Training health\n\n{results['training health']}" in card.text
    assert "| learning rate | 0.003 |" in card.text and f"| steps | {results['steps']} |" in card.text

    evaluations = [entry for entry in results["log_history"] if "eval_accuracy" in entry]
    assert len(evaluations) == 12 and evaluations[-1]["step"] == results["steps"]
    assert evaluations[-1]["eval_matthews_correlation"] == results["validation_matthews_correlation"]
    assert [entry["step"] for entry in results["log_history"] if "loss" in entry][:2] == [10, 20]
    for figure in ("learning_curves", "confusion_matrix", "class_scores"):
        assert (folder / "figures" / f"{figure}.png").stat().st_size > 1000
    if find_spec("plotly") is not None:
        page = (folder / "report.html").read_text(encoding="utf-8")
        headings = re.findall(r"<h2[^>]*>([^<]+)", page)
        assert headings == ["Findings", "Curves", "Layers", "Scores", "Predictions", "Data and settings"]


@pytest.mark.parametrize("health", [True, False])
def test_monitor_every_zero_watches_health_alone(tmp_path, launch, cola_dir, tiny_bert_dir, health):
    flags = {"data_dir": cola_dir, "model_name_or_path": tiny_bert_dir, "output_dir": tmp_path / "run"}
    flags |= {"num_train_epochs": 1, "max_train_samples": 16, "batch_size": 8, "cpu_threads": 1, "monitor_every": 0}
    flags["training_health"] = health
    process = launch("cola_no_trainer", flags)
    assert process.returncode == 0, process.stderr[-3000:]
    tags = EventAccumulator(str(tmp_path / "run" / "runs")).Reload().Tags()["scalars"]
    assert tags and not any(tag.startswith(("gradient_flow", "update_ratio")) for tag in tags)
    assert (tmp_path / "run" / "monitoring" / "training_health.jsonl").exists() == health
    assert not list((tmp_path / "run").rglob("*.npz")) or health
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert (results["training health"] == "not watched") != health


def test_finished_run_is_not_overwritten(tmp_path, launch, cola_dir, tiny_bert_dir):
    (tmp_path / "results.json").write_text("{}")
    process = launch("cola_no_trainer", {"data_dir": cola_dir, "output_dir": tmp_path})
    assert process.returncode != 0
    assert "holds a finished run" in process.stderr
