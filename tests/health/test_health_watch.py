"""What needs a Trainer, a scheduler or several processes: training health around them."""

import logging
from pathlib import Path

import pytest
import torch
from plain_loop import Loop, classifier, texts
from torch import nn
from transformers import (
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bert_toolkit import TrainingHealthCallback, watch_loop
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.settings import implausible_setting
from bert_toolkit.health.settings import RunSettings


def rows(count=160):
    batch = texts(torch.Generator().manual_seed(0), count)
    return [{name: value[i] for name, value in batch.items()} for i in range(count)]


def trained(tmp_path, *callbacks, trainer_class=Trainer, model=None, **settings):
    settings = {"max_steps": 24, "per_device_train_batch_size": 8, "learning_rate": 1e-3, **settings}
    arguments = TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", **settings
    )
    health = TrainingHealthCallback(every_n_steps=2)
    data = rows()
    trainer = trainer_class(
        model or classifier(), arguments, train_dataset=data, eval_dataset=data[:16], callbacks=[*callbacks, health]
    )
    trainer.train()
    return health


def rule_names(health):
    return {finding.rule for finding in health.findings}


def test_healthy_trainer_is_silent(tmp_path):
    assert rule_names(trained(tmp_path, eval_strategy="steps", eval_steps=8)) == set()


def test_label_smoothing_is_told_before_the_first_step(tmp_path):
    health = trained(tmp_path, label_smoothing_factor=0.99)
    assert rule_names(health) == {"implausible_setting"}
    assert health.findings[0].step == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_few_steps_with_a_warmup_from_zero_are_silent(tmp_path, steps):
    assert rule_names(trained(tmp_path, max_steps=steps, warmup_steps=1)) == set()


def test_dropout_is_doubted_unless_it_is_the_default_of_the_architecture():
    sizes = {"image_size": 32, "depth_multiplier": 0.25, "num_labels": 3}
    usual = MobileNetV1ForImageClassification(MobileNetV1Config(**sizes))
    assert usual.config.classifier_dropout_prob == 0.999
    assert implausible_setting(HealthHistory(usual, 10, RunSettings.of(usual))) is None
    changed = MobileNetV1ForImageClassification(MobileNetV1Config(**sizes, classifier_dropout_prob=0.99))
    assert "0.99" in implausible_setting(HealthHistory(changed, 10, RunSettings.of(changed))).seen


def test_schedule_that_ends_early_is_told_before_the_first_step(tmp_path):
    class Short(Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            return super().create_scheduler(num_training_steps // 4, optimizer)

    health = trained(tmp_path, trainer_class=Short)
    assert "implausible_setting" in rule_names(health)
    assert "rate of 0" in health.findings[0].seen


class StepsTheScheduler(TrainerCallback):
    def on_substep_end(self, args, state, control, lr_scheduler=None, **kwargs):
        lr_scheduler.step()


def test_scheduler_that_is_stepped_for_every_batch(tmp_path):
    health = trained(tmp_path, StepsTheScheduler(), gradient_accumulation_steps=2, lr_scheduler_type="constant")
    assert rule_names(health) == {"schedule_out_of_step"}


def test_evaluation_in_training_mode(tmp_path):
    class NoEval(Trainer):
        def prediction_step(self, model, *args, **kwargs):
            model.train()
            return super().prediction_step(model, *args, **kwargs)

    health = trained(tmp_path, trainer_class=NoEval, eval_strategy="steps", eval_steps=4)
    assert rule_names(health) == {"training_mode_in_evaluation"}


def test_gradients_that_are_cleared_before_the_step_are_named_in_a_trainer(tmp_path):
    class Clears(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            model.zero_grad()

    assert rule_names(trained(tmp_path, Clears())) == {"gradients_cleared"}


def test_stop_before_the_first_step(tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", max_steps=20
    )
    health = TrainingHealthCallback(on_finding="stop")
    trainer = Trainer(classifier(hidden_dropout_prob=0.95), arguments, train_dataset=rows(), callbacks=[health])
    trainer.train()
    assert trainer.state.global_step <= 1
    assert rule_names(health) == {"implausible_setting"}


@pytest.mark.parametrize(("greater", "expected"), [(None, set()), (True, {"implausible_setting"})])
def test_best_checkpoint_by_the_largest_loss(tmp_path, greater, expected):
    assert rule_names(trained(tmp_path, metric_for_best_model="loss", greater_is_better=greater)) == expected


def test_vmap_over_the_model_goes_on(tmp_path):
    """Gradients of single rows by torch.func, as for differential privacy, beside the training itself."""
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))

    def loss_of_row(parameters, row, label):
        logits = torch.func.functional_call(model, parameters, (row[None],))
        return nn.functional.cross_entropy(logits, label[None])

    with watch_loop(model, optimizer, every_n_steps=1, output_dir=tmp_path, health=TrainingHealthCallback(1)) as watch:
        for _ in range(6):
            parameters = {name: p.detach() for name, p in model.named_parameters()}
            rows = torch.func.vmap(torch.func.grad(loss_of_row), in_dims=(None, 0, 0))(parameters, x, y)
            assert rows["weight"].shape == (8, 3, 6)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(watch.health.history) == 6 and watch.health.findings == []


def test_scripted_parts_are_watched(tmp_path):
    model = nn.Sequential(torch.jit.script(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    with watch_loop(model, optimizer, every_n_steps=1, output_dir=tmp_path, health=TrainingHealthCallback(1)) as watch:
        for _ in range(3):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(watch.health.history) == 3


def test_notes_are_kept_and_never_told(tmp_path, caplog):
    from test_watched_loops import BareBody

    with caplog.at_level(logging.WARNING):
        health = trained(tmp_path, model=BareBody(), max_steps=24)
    assert rule_names(health) == set()
    assert [note.rule for note in health.judge.notes] == ["no_gradient"]
    assert "no fault" in health.verdict
    assert not any("no gradient" in record.message for record in caplog.records)
    assert '"severity": "note"' in (Path(tmp_path) / "monitoring" / "training_health.jsonl").read_text()


def test_watching_changes_nothing(tmp_path):
    weights = []
    for watched in (False, True):
        loop = Loop(steps=6)
        if watched:
            loop.run()
        else:
            torch.manual_seed(1)
            optimizer = torch.optim.AdamW(loop.model.parameters(), lr=loop.rate)
            for _, batch in zip(range(loop.steps), loop.data, strict=False):
                loop.model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        weights.append([parameter.detach().clone() for parameter in loop.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_of_a_few_steps(tmp_path, steps):
    assert rule_names(trained(tmp_path, max_steps=steps)) == set()
