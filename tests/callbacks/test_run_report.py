"""The page at the end of a training: there when it is asked for, and never a reason for a training to fail."""

import importlib.metadata
import json
import logging

import pytest
import torch
from float64_oracle import Classifier, arguments, rows
from transformers import Trainer

import bert_toolkit
from bert_toolkit import InputError, ReportCallback, TrainingHealthCallback
from bert_toolkit.callbacks import run_report
from bert_toolkit.run_page.run_record import read_run_record

pytest.importorskip("plotly")


def trained(folder, callbacks=(), **settings):
    trainer = Trainer(Classifier(), arguments(folder, **settings), train_dataset=rows(), callbacks=list(callbacks))
    trainer.train()
    return trainer


def test_callback_and_watch_write_the_page(tmp_path, capsys):
    trained(tmp_path / "callbacks", [TrainingHealthCallback(2), ReportCallback()])
    trainer = Trainer(Classifier(), arguments(tmp_path / "watch"), train_dataset=rows())
    bert_toolkit.watch(trainer, every_n_steps=2, report=True)
    bert_toolkit.watch(trainer, every_n_steps=2, report=True)  # twice is once
    trainer.train()
    printed = capsys.readouterr().out
    for how in ("callbacks", "watch"):
        assert "no fault found" in (tmp_path / how / "report.html").read_text(encoding="utf-8")
        assert printed.count(f"Report: {tmp_path / how / 'report.html'}\n") == 1


def test_without_being_asked_nothing_is_written(tmp_path):
    trained(tmp_path, [TrainingHealthCallback(2)])
    assert not (tmp_path / "report.html").exists()


def test_loops_without_trainer(tmp_path):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = {"input_ids": torch.randint(0, 20, (8, 5)), "labels": torch.randint(0, 3, (8,))}

    def run(first_step):
        settings = {"every_n_steps": 2, "output_dir": tmp_path, "first_step": first_step, "report": True}
        with bert_toolkit.watch_loop(model, optimizer, **settings) as watching:
            for _ in range(4):
                loss = model(**batch)["loss"]
                watching.log(loss)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            watching.log_evaluation({"accuracy": 0.25})

    run(0)
    run(4)  # resumed
    assert '"eval_accuracy"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
    log = read_run_record(tmp_path / "monitoring" / "run.json").log_history
    assert [entry["step"] for entry in log if "eval_accuracy" in entry] == [4, 8]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 4, 6, 8]


def test_record_holds_settings_and_log_and_no_token(tmp_path):
    trainer = trained(tmp_path, [TrainingHealthCallback(2)], hub_token="hf_secret", logging_steps=1)
    text = (tmp_path / "monitoring" / "run.json").read_text()
    assert "hf_secret" not in text
    record = json.loads(text)
    assert record["log_history"] == trainer.state.log_history
    assert record["settings"]["learning_rate"] == trainer.args.learning_rate
    assert record["versions"]["torch"] == importlib.metadata.version("torch")


def test_page_that_fails_is_one_warning(tmp_path, monkeypatch, caplog):
    def broken(folder):
        raise MemoryError("no memory\nat all")

    monkeypatch.setattr(run_report, "write_run_page", broken)
    with caplog.at_level(logging.WARNING):
        trainer = trained(tmp_path, [ReportCallback()])
    assert trainer.state.global_step == trainer.state.max_steps
    warnings = [record.message for record in caplog.records if record.name.startswith("bert_toolkit")]
    assert warnings == ["Report: none was written. MemoryError: no memory at all"]


def test_folder_that_cannot_be_written_is_one_warning_each(tmp_path, caplog):
    (tmp_path / "monitoring").write_text("a file where a folder should be")
    (tmp_path / "report.html.partial").mkdir()
    with caplog.at_level(logging.WARNING):
        trainer = trained(tmp_path, [ReportCallback()], save_strategy="no")
    assert trainer.state.global_step == trainer.state.max_steps
    assert len([record for record in caplog.records if record.name.startswith("bert_toolkit")]) == 2


def test_without_plotly_it_is_told_before_training(monkeypatch):
    monkeypatch.setattr("bert_toolkit.run_page.page.find_spec", lambda name: None)
    for ask in (ReportCallback, lambda: bert_toolkit.watch_loop(None, None, report=True)):
        with pytest.raises(InputError, match="pip install"):
            ask()
