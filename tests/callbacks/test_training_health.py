"""The health callback in real trainers: what it says, writes, stops and keeps."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator, set_seed

from bert_toolkit import InputError, TrainingHealthCallback
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.judge import HealthJudge

STEPS = 40


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x, labels=None):
        for layer in self.layers:
            x = x + layer(x)
        logits = self.head(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(count=512):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator)
    return [{"x": v, "labels": int(v[:3].argmax())} for v in x]


def make_trainer(folder, callback, model=None, **settings):
    set_seed(0)
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        **settings,
    }
    callbacks = callback if isinstance(callback, list) else [callback]
    return Trainer(
        model=model or Net(), args=TrainingArguments(**arguments), train_dataset=rows(), callbacks=callbacks
    )


def broken_net():
    """A layer is cut from the graph."""
    set_seed(0)
    model = Net()
    model.layers[1].register_forward_hook(lambda module, args, output: output.detach())
    return model


class PoisonAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                model.head.weight[0, 0] = math.nan


def findings_file(folder: Path) -> list[dict]:
    text = (folder / "monitoring" / "training_health.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_healthy_training_is_silent(tmp_path, caplog):
    health = TrainingHealthCallback(every_n_steps=1)
    with caplog.at_level(logging.INFO, logger="bert_toolkit"):
        make_trainer(tmp_path, health).train()
    assert health.findings == []
    assert len(health.history) == STEPS
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert "no fault found in 40 samples up to step 40" in caplog.text
    assert findings_file(tmp_path) == [{"event": "verdict", "verdict": health.verdict}]


def test_fault_is_named_once_in_log_and_file(tmp_path, caplog):
    health = TrainingHealthCallback(every_n_steps=2)
    make_trainer(tmp_path, health, broken_net()).train()
    (finding,) = health.findings
    assert finding.rule == "no_gradient"
    assert finding.parameters == ("layers.1.0.weight", "layers.1.0.bias")
    assert finding.layers == ("layer.1",)
    blocks = [r.message for r in caplog.records if "no gradient" in r.message and "cause" in r.message]
    assert len(blocks) == 1
    for part in ("layer.1", "layers.1.0.weight", finding.cause, finding.remedy, "threshold"):
        assert part in blocks[0]
    entry, verdict = findings_file(tmp_path)
    assert entry["event"] == "finding"
    assert entry["rule"] == "no_gradient"
    assert entry["parameters"] == list(finding.parameters)
    assert entry["last_step"] == STEPS
    assert verdict["verdict"] == health.verdict
    assert "1 fault in" in health.verdict


def test_nan_is_found_though_logged_losses_hide_it(tmp_path):
    health = TrainingHealthCallback(every_n_steps=4)
    trainer = make_trainer(tmp_path, [PoisonAt(10), health])
    trainer.train()
    (finding,) = health.findings
    assert finding.rule == "nonfinite"
    assert finding.step == 12
    assert all(math.isfinite(record["loss"]) for record in trainer.state.log_history if "loss" in record)


def test_stop_ends_training_and_keeps_a_checkpoint(tmp_path):
    health = TrainingHealthCallback(every_n_steps=2, on_finding="stop")
    trainer = make_trainer(tmp_path, health, broken_net())
    trainer.train()
    assert trainer.state.global_step == health.findings[0].step == 8
    assert (tmp_path / "checkpoint-8" / "model.safetensors").exists()


def test_stop_does_not_replace_good_checkpoints_by_lost_weights(tmp_path):
    health = TrainingHealthCallback(every_n_steps=2, on_finding="stop")
    settings = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1}
    trainer = make_trainer(tmp_path, [PoisonAt(10), health], **settings)
    trainer.train()
    assert trainer.state.global_step == 10
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-8"]


@pytest.mark.parametrize("answer", [None, True])
def test_callable_gets_each_finding_once_and_may_stop(tmp_path, answer):
    got = []

    def on_finding(finding):
        got.append(finding.rule)
        return answer

    trainer = make_trainer(tmp_path, TrainingHealthCallback(every_n_steps=2, on_finding=on_finding), broken_net())
    trainer.train()
    assert got == ["no_gradient"]
    assert trainer.state.global_step == (8 if answer else STEPS)


def test_resumed_run_equals_uninterrupted_one(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 20}
    whole = TrainingHealthCallback(every_n_steps=3)
    make_trainer(tmp_path / "whole", whole, broken_net(), **settings).train()
    first = TrainingHealthCallback(every_n_steps=3)
    make_trainer(tmp_path / "parts", first, broken_net(), **settings).train()
    second = TrainingHealthCallback(every_n_steps=3)
    trainer = make_trainer(tmp_path / "parts", second, broken_net(), **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-20"))
    assert second.history.step.tolist() == whole.history.step.tolist()
    np.testing.assert_allclose(second.history.gradient, whole.history.gradient, rtol=1e-5)
    np.testing.assert_allclose(second.history.prior_loss, whole.history.prior_loss)
    assert second.findings == whole.findings
    assert findings_file(tmp_path / "parts") == findings_file(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_damaged_state_starts_anew_with_a_notice(tmp_path, caplog, damage):
    settings = {"save_strategy": "steps", "save_steps": 20}
    make_trainer(tmp_path, TrainingHealthCallback(every_n_steps=4), **settings).train()
    file = tmp_path / "monitoring" / "training_health.npz"
    file.write_bytes({"empty": b"", "cut": file.read_bytes()[:500], "missing": b""}[damage])
    if damage == "missing":
        file.unlink()
    health = TrainingHealthCallback(every_n_steps=4)
    trainer = make_trainer(tmp_path, health, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert "Training health starts anew at step 21" in caplog.text
    assert health.history.step.tolist() == [24, 28, 32, 36, 40]
    assert health.findings == []


def test_new_run_in_the_same_folder_starts_afresh(tmp_path):
    make_trainer(tmp_path, TrainingHealthCallback(every_n_steps=2), broken_net()).train()
    health = TrainingHealthCallback(every_n_steps=2)
    make_trainer(tmp_path, health).train()
    assert health.findings == []
    assert len(findings_file(tmp_path)) == 1


def test_replaying_the_stored_history_gives_the_same_findings(tmp_path):
    health = TrainingHealthCallback(every_n_steps=1)
    trainer = make_trainer(tmp_path, [PoisonAt(30), health], broken_net())
    trainer.train()
    history, judge = HealthHistory(trainer.model, STEPS), HealthJudge()
    assert history.load(tmp_path / "monitoring" / "training_health.npz", STEPS)
    for length in range(1, len(history) + 1):
        history.shorten(length)
        judge.judge(history)
    assert judge.report() == health.judge.report()
    assert len(judge.cases) > 1


def test_no_work_between_samples(tmp_path, monkeypatch):
    from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor
    from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor

    calls = []
    for owner, name in (
        (GradientFlowMonitor, "start"),
        (GradientFlowMonitor, "watch_backward"),
        (UpdateRatioMonitor, "before_step"),
        (UpdateRatioMonitor, "after_step"),
        (HealthJudge, "judge"),
    ):
        original = getattr(owner, name)

        def counted(*args, original=original, name=name, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    hooks = []

    class CountHooks(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            on_parameters = any(p._post_accumulate_grad_hooks for p in model.parameters())
            hooks.append((state.global_step + 1, bool(model._forward_hooks) or on_parameters))

    make_trainer(tmp_path, [CountHooks(), TrainingHealthCallback(every_n_steps=10)]).train()
    sampled = [1, 10, 20, 30, 40]
    assert [step for step, found in hooks if found] == sampled
    assert sorted(calls) == sorted(["start", "watch_backward", "before_step", "after_step", "judge"] * len(sampled))


def test_gradient_accumulation_counts_all_micro_batches(tmp_path):
    health = TrainingHealthCallback(every_n_steps=1)
    make_trainer(tmp_path, health, gradient_accumulation_steps=4, per_device_train_batch_size=4, max_steps=6).train()
    assert np.isfinite(health.history.loss).all()
    assert len(health.history) == 6
    assert health.history._stored["label_counts"][5].sum() == 6 * 16
    # Entropy of 96 labels: at most that of three classes, and the correction for their number.
    assert 0.8 < health.history.prior_loss[-1] <= math.log(3) + 2 / (2 * 96) + 1e-9


def test_two_evaluations_without_correlation_are_a_constant_prediction(tmp_path):
    class Evaluated(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (16, 24):
                trainer.callback_handler.on_evaluate(args, state, control, {"eval_matthews_correlation": 0.0})

    health = TrainingHealthCallback(every_n_steps=2)
    trainer = make_trainer(tmp_path, [Evaluated(), health])
    trainer.train()
    assert [finding.rule for finding in health.findings] == ["constant_prediction"]


def test_model_without_loss_in_its_output_uses_the_logged_one(tmp_path):
    class OwnLoss(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            labels = inputs.pop("labels")
            return nn.functional.cross_entropy(model(**inputs), labels)

    class Plain(Net):
        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return self.head(x)

    health = TrainingHealthCallback(every_n_steps=1)
    trainer = make_trainer(tmp_path, health)
    own = OwnLoss(model=Plain(), args=trainer.args, train_dataset=rows(), callbacks=[health])
    own.train()
    assert np.isnan(health.history.loss[:5]).all()
    logged = [record["loss"] for record in own.state.log_history if "loss" in record]
    assert health.history.loss[5] == pytest.approx(logged[0])
    assert health.findings == []


def test_wrong_arguments():
    with pytest.raises(InputError, match="every_n_steps"):
        TrainingHealthCallback(every_n_steps=0)
    with pytest.raises(InputError, match="on_finding must be 'warn', 'stop' or a callable"):
        TrainingHealthCallback(on_finding="ignore")


@pytest.mark.launch
def test_all_ranks_stop_at_the_same_step(tmp_path):
    # Only rank 1 gets the bad inputs; both must stop, at the same step, with the same finding.
    script = Path(__file__).parent / "training_health_worker.py"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    answers = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank*.json"))]
    assert len(answers) == 2, done.stderr[-2000:]
    assert answers[0] == answers[1]
    assert answers[0]["rules"] == ["loss_diverging"]
    assert answers[0]["step"] < answers[0]["planned"]
    assert (tmp_path / f"checkpoint-{answers[0]['step']}").exists()


@pytest.mark.parametrize("remove_unused_columns", [True, False])
def test_special_tokens_are_known_by_the_collators_tokenizer(tmp_path, remove_unused_columns):
    """Where Trainer was not given a processing class."""

    class Collator:
        tokenizer = SimpleNamespace(pad_token_id=7, mask_token_id=9)

        def __call__(self, features):
            return default_data_collator(features)

    health = TrainingHealthCallback(every_n_steps=2)
    trainer = make_trainer(tmp_path, health, max_steps=2, remove_unused_columns=remove_unused_columns)
    trainer.data_collator = Collator()
    trainer.train()
    assert health.history.settings.special_tokens == {"pad": 7, "mask": 9}
