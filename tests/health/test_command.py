"""`python -m bert_toolkit.health RUN` and where findings go besides the log."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from plain_loop import classifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_health_watch import trained

from bert_toolkit.health.__main__ import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a fault."""
    folder = tmp_path_factory.mktemp("run")
    trained(folder, model=classifier(hidden_dropout_prob=0.95), max_steps=8)
    return folder


def test_findings_are_printed(run, capsys):
    assert main([str(run)]) == 1
    printed = capsys.readouterr().out
    assert "implausible setting" in printed and "remedy" in printed
    assert printed.splitlines()[-1].startswith("Training health: 1 fault")


def test_json_for_machines(run):
    command = [sys.executable, "-m", "bert_toolkit.health", str(run), "--json"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    seen = json.loads(process.stdout)
    assert [finding["rule"] for finding in seen["findings"]] == ["implausible_setting"]
    assert seen["findings"][0]["severity"] == "error"


def test_healthy_run(tmp_path, capsys):
    trained(tmp_path, max_steps=8)
    assert main([str(tmp_path)]) == 0
    assert "no fault" in capsys.readouterr().out


def test_folder_without_findings(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "TrainingHealthCallback" in error


def test_alerts(tmp_path, monkeypatch):
    sent = []
    wandb = SimpleNamespace(
        run=object(), alert=lambda **alert: sent.append(("wandb", alert)), log=lambda *a, **k: None
    )
    trackio = SimpleNamespace(
        context_vars=SimpleNamespace(current_run=SimpleNamespace(get=lambda: object())),
        AlertLevel=SimpleNamespace(ERROR="error", WARN="warn"),
        alert=lambda **alert: sent.append(("trackio", alert)),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    trained(tmp_path, model=classifier(hidden_dropout_prob=0.95), max_steps=8)
    assert [(name, alert["level"]) for name, alert in sent] == [("wandb", "ERROR"), ("trackio", "error")]
    assert all(alert["title"] == "Training health: implausible setting" for _, alert in sent)
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent)).Reload()
    assert "training_health/finding/text_summary" in events.Tags()["tensors"]
