"""The plain Accelerate loop learns, saves and monitors as the Trainer recipe does."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification

import bert_toolkit  # noqa: F401  registers the model that the recipe saves

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
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config.label2id["acceptable"] == 1
    scalars = EventAccumulator(str(tmp_path / "run" / "runs")).Reload()
    ratios = scalars.Scalars("update_ratio/bert.encoder.layer.0.attention.self.query.weight")
    assert [event.step for event in ratios] == list(range(10, 10 * len(ratios) + 1, 10))
    assert all(0 < event.value < 1 for event in ratios)
    coefficients = [event.value for event in scalars.Scalars("gradient_flow/clip_coefficient")]
    assert len(coefficients) == len(ratios)
    assert all(0 < value <= 1 for value in coefficients) and min(coefficients) < 0.999, "gradients are clipped"


def test_monitor_every_zero_watches_nothing(tmp_path, launch, cola_dir, tiny_bert_dir):
    flags = {"data_dir": cola_dir, "model_name_or_path": tiny_bert_dir, "output_dir": tmp_path / "run"}
    flags |= {"num_train_epochs": 1, "max_train_samples": 16, "batch_size": 8, "cpu_threads": 1, "monitor_every": 0}
    process = launch("cola_no_trainer", flags)
    assert process.returncode == 0, process.stderr[-3000:]
    tags = EventAccumulator(str(tmp_path / "run" / "runs")).Reload().Tags()["scalars"]
    assert tags and not any(tag.startswith(("gradient_flow", "update_ratio")) for tag in tags)


def test_finished_run_is_not_overwritten(tmp_path, launch, cola_dir, tiny_bert_dir):
    (tmp_path / "results.json").write_text("{}")
    process = launch("cola_no_trainer", {"data_dir": cola_dir, "output_dir": tmp_path})
    assert process.returncode != 0
    assert "holds a finished run" in process.stderr
