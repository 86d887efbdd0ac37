"""Scalars arrive at every reporter that Trainer knows and that is installed, at their steps and with their values."""

import csv
import json
import math

import pytest
from float64_oracle import Classifier, arguments, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback

from bert_toolkit import TrainingHealthCallback, watch
from bert_toolkit.monitoring.gradient_flow import gradient_flow_scalars


def train(folder, report_to, callbacks=(), **changes):
    trainer = Trainer(
        Classifier(),
        arguments(folder, report_to=report_to, **changes),
        train_dataset=rows(),
        callbacks=list(callbacks),
    )
    watching = watch(trainer, 2, TrainingHealthCallback(every_n_steps=1), figures=changes.pop("figures", False))
    trainer.train()
    return trainer, watching


def expected(watching) -> dict[str, dict[int, float]]:
    """Scalars of gradient flow by name and step, from the records."""
    found: dict[str, dict[int, float]] = {}
    flow = watching.gradient_flow
    for record in flow.records:
        for name, value in gradient_flow_scalars(record, flow.parameters, False).items():
            found.setdefault(name, {})[record.step] = value
    assert found and all(list(steps) == [1, 2, 4] for steps in found.values())
    return found


def check(found: dict[str, dict[int, float]], watching) -> None:
    for name, steps in expected(watching).items():
        assert found[name].keys() == steps.keys(), name
        for step, value in steps.items():
            assert math.isclose(found[name][step], value, rel_tol=1e-5, abs_tol=1e-12), (name, step)
    assert any(name.startswith("update_ratio/") for name in found)


def test_tensorboard(tmp_path):
    _, watching = train(tmp_path, "tensorboard")
    found: dict[str, dict[int, float]] = {}
    for file in (tmp_path / "runs").rglob("events.out.tfevents.*"):
        reader = EventAccumulator(str(file), size_guidance={"scalars": 0})
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            found[tag] = {event.step: event.value for event in reader.Scalars(tag)}
    check(found, watching)


class CsvReporter(TrainerCallback):
    """What people write who want a table: every number of `on_log`, one row each."""

    def __init__(self, path):
        self.path = path

    def on_log(self, args, state, control, logs=None, **kwargs):
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(
                (state.global_step, name, value) for name, value in logs.items() if isinstance(value, float)
            )


def test_table(tmp_path):
    path = tmp_path / "table.csv"
    _, watching = train(tmp_path / "run", "none", [CsvReporter(path)])
    found: dict[str, dict[int, float]] = {}
    with path.open(newline="") as file:
        for step, name, value in csv.reader(file):
            found.setdefault(name, {})[int(step)] = float(value)
    check(found, watching)
    assert found["loss"].keys() == {1, 2, 3, 4}, "Trainer's own records are whole"


def test_log_history(tmp_path):
    trainer, watching = train(tmp_path, "none", save_strategy="steps", save_steps=4)
    saved = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    for history in (trainer.state.log_history, saved["log_history"]):
        found: dict[str, dict[int, float]] = {}
        for entry in history:
            for name, value in entry.items():
                if "/" in name:
                    found.setdefault(name, {})[entry["step"]] = value
        check(found, watching)


@pytest.mark.foreign
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: dict[str, dict[int, float]] = {}

    _, watching = train(tmp_path / "run", "wandb")
    run = wandb.run
    assert run is not None
    summary = dict(run.summary)
    run.finish()
    for name, steps in expected(watching).items():
        key = next(key for key in summary if key.endswith(name))
        logged[name] = {max(steps): summary[key]}
        assert math.isclose(summary[key], steps[max(steps)], rel_tol=1e-5, abs_tol=1e-12), name
    assert logged and list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.foreign
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    _, watching = train(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["0"])
    found = {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    check(found, watching)


@pytest.mark.foreign
@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, when trackio is imported
    pytest.importorskip("trackio")
    _, watching = train(tmp_path / "run", "trackio", project="foreign", run_name="run")
    import sqlite3

    (database,) = (tmp_path / "trackio").rglob("foreign*.db")
    with sqlite3.connect(database) as connection:
        points = connection.execute("select step, metrics from metrics").fetchall()
    found: dict[str, dict[int, float]] = {}
    for _, text in points:
        numbers = json.loads(text)
        step = int(numbers.get("train/global_step", 0))
        for name, value in numbers.items():
            if isinstance(value, float):
                found.setdefault(name.removeprefix("train/"), {})[step] = value
    check(found, watching)
