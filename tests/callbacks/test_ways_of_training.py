"""The callbacks' numbers are right under every way of training: each against an oracle in float64."""

import logging

import numpy as np
import pytest
import torch
from float64_oracle import (
    Classifier,
    Spy,
    arguments,
    check_gradients,
    check_update,
    clip_coefficient,
    replay,
    rows,
    train,
)
from torch import nn
from transformers import Trainer, TrainerCallback

from bert_toolkit import GradientFlowCallback, UpdateRatioCallback


def monitors(**changes) -> tuple[GradientFlowCallback, UpdateRatioCallback]:
    settings = {"every_n_steps": 1, "figures": False, **changes}
    return GradientFlowCallback(**settings), UpdateRatioCallback(**settings)


def check_all(trainer, spy, flow, update, max_norm=0.5, rtol=1e-5, model=None):
    """Every record of every step: gradients and clip coefficient from the replay, updates from the parameters."""
    assert [r.step for r in flow.records] == [r.step for r in update.records] == list(spy.steps)
    for gradients, change in zip(flow.records, update.records, strict=True):
        step = spy.steps[gradients.step]
        replayed = replay(model or trainer.model, step)
        coefficient = clip_coefficient(replayed, max_norm)
        assert gradients.clip_coefficient == pytest.approx(coefficient, rel=rtol)
        check_gradients(gradients, replayed, coefficient, rtol)
        check_gradients(gradients, replayed, gradients.clip_coefficient, rtol)
        check_update(change, step)
        assert not gradients.skipped and not change.skipped
        assert gradients.nonfinite == gradients.missing == ()


@pytest.mark.parametrize("accumulation", [2, 3])
def test_gradient_accumulation(tmp_path, accumulation):
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], gradient_accumulation_steps=accumulation)
    assert all(len(step.inputs) == accumulation for step in spy.steps.values())
    check_all(trainer, spy, flow, update)


def test_clipping_on(tmp_path):
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], max_grad_norm=0.1)
    check_all(trainer, spy, flow, update, max_norm=0.1)
    coefficients = [record.clip_coefficient for record in flow.records]
    assert all(c < 0.9 for c in coefficients), "this run must really clip"
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    np.testing.assert_allclose(coefficients, [0.1 / (norm + 1e-6) for norm in logged], rtol=1e-6)
    np.testing.assert_allclose([np.linalg.norm(r.norm) / r.clip_coefficient for r in flow.records], logged, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 100.0], ids=["off", "never reached"])
def test_clipping_off(tmp_path, max_norm):
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], max_grad_norm=max_norm)
    check_all(trainer, spy, flow, update, max_norm=max_norm)
    assert [record.clip_coefficient for record in flow.records] == [1.0] * 4


class OverflowingClassifier(Classifier):
    """Its loss is infinite at one training step, which makes every gradient not finite."""

    bad_call = 3

    def forward(self, input_ids, labels):
        output = super().forward(input_ids, labels)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == self.bad_call:
            output["loss"] = output["loss"] * torch.inf
        return output


class Fp16WithoutAutocast(TrainerCallback):
    """Makes Accelerate treat the run as fp16 once the model is prepared, so that fp32 stays exact to compare."""

    def __init__(self, accelerator):
        self.accelerator = accelerator

    def on_train_begin(self, args, state, control, **kwargs):
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"

    def on_train_end(self, args, state, control, **kwargs):
        self.accelerator.state._mixed_precision = "no"


def train_with_scaler(folder, callbacks, model, **changes) -> tuple[Trainer, Spy]:
    """The path of fp16 with a gradient scaler, on CPU: the scaler is put where Accelerate has it on a GPU."""
    spy = Spy()
    trainer = Trainer(model, arguments(folder, **changes), train_dataset=rows(), callbacks=[*callbacks, spy])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    trainer.add_callback(Fp16WithoutAutocast(trainer.accelerator))
    trainer.train()
    return trainer, spy


@pytest.mark.parametrize("max_norm", [0.0, 0.1])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_fp16_grad_scaler(tmp_path, optim, max_norm):
    flow, update = monitors()
    trainer, spy = train_with_scaler(tmp_path, [flow, update], Classifier(), optim=optim, max_grad_norm=max_norm)
    assert trainer.accelerator.scaler.get_scale() == 1000.0, "the scaler must have been in use"
    check_all(trainer, spy, flow, update, max_norm=max_norm)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_fp16_overflow_skipped_step(tmp_path, optim):
    flow, update = monitors()
    trainer, spy = train_with_scaler(tmp_path, [flow, update], OverflowingClassifier(), optim=optim)
    assert trainer.accelerator.scaler.get_scale() < 1000.0, "the scaler must have seen the overflow"
    assert [r.step for r in flow.records if r.skipped] == [3]
    assert [r.step for r in update.records if r.skipped] == [3]
    bad, still = flow.records[2], update.records[2]
    assert set(bad.nonfinite) == set(bad.names)
    assert np.isnan(still.update_norm).all() and np.isnan(still.ratio).all(), "not a zero update"
    for number in (1, 2, 4):
        step = spy.steps[number]
        check_update(update.records[number - 1], step)
        check_gradients(flow.records[number - 1], step.gradients)


def test_zero_learning_rate_is_not_a_skipped_step(tmp_path):
    flow, update = monitors()
    train(tmp_path, [flow, update], learning_rate=0.0)
    assert not any(r.skipped for r in update.records)
    assert all((r.ratio == 0).all() and (r.changed_share == 0).all() for r in update.records)


def test_nan_gradient_is_named_before_clipping_spreads_it(tmp_path):
    class Broken(Classifier):
        def forward(self, input_ids, labels):
            self.layers[1].weight.register_hook(lambda g: g * torch.nan) if not hasattr(self, "hooked") else None
            self.hooked = True
            return super().forward(input_ids, labels)

    flow, update = monitors()
    train(tmp_path, [flow, update], model=Broken(), max_steps=1)
    assert flow.records[0].nonfinite == ("layers.1.weight",)
    assert not flow.records[0].skipped, "without a scaler the step was made"


@pytest.mark.parametrize("accumulation", [1, 3])
def test_bf16_autocast(tmp_path, accumulation):
    flow, update = monitors()
    trainer, spy = train(
        tmp_path, [flow, update], bf16=True, max_grad_norm=0.1, gradient_accumulation_steps=accumulation
    )
    for record, change in zip(flow.records, update.records, strict=True):
        step = spy.steps[record.step]
        check_gradients(record, step.gradients, rtol=1e-5)  # of the gradients that there are
        check_update(change, step)
        # bf16 keeps 8 bits, so a loss in bf16 has gradients that are right to about 2 %.
        replayed = replay(trainer.model, step)
        assert record.clip_coefficient == pytest.approx(clip_coefficient(replayed, 0.1), rel=2e-2)
        expected = [float(g.abs().mean()) * record.clip_coefficient for g in replayed.values()]
        np.testing.assert_allclose(record.mean, expected, rtol=5e-2)


def test_pure_bf16(tmp_path):
    flow, update = monitors()
    model = Classifier().to(torch.bfloat16)
    trainer, spy = train(tmp_path, [flow, update], model=model, learning_rate=1e-4, max_grad_norm=0.1)
    for record, change in zip(flow.records, update.records, strict=True):
        step = spy.steps[record.step]
        assert all(g.dtype == torch.bfloat16 for g in step.gradients.values())
        check_gradients(record, step.gradients, rtol=1e-5)
        check_update(change, step)
        replayed = replay(trainer.model, step)
        # The norm, the coefficient and the product are each rounded to bf16 (2^-9 = 0.2 %) by clipping itself.
        assert record.clip_coefficient == pytest.approx(clip_coefficient(replayed, 0.1), rel=3e-2)
    matrix = update.records[0].names.index("layers.0.weight")
    assert update.records[0].changed_share[matrix] < 0.9, "small updates must be rounded away in this run"
    exact = (spy.steps[1].before["layers.0.weight"] != spy.steps[1].after["layers.0.weight"]).double().mean()
    assert update.records[0].changed_share[matrix] == float(exact)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "rmsprop"])
def test_optimizer(tmp_path, optim):
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], optim=optim, weight_decay=0.1)
    check_all(trainer, spy, flow, update)


@pytest.mark.parametrize("foreach", [False, True])
def test_several_learning_rates_and_weight_decay(tmp_path, foreach):
    model = Classifier()
    groups = [
        {"params": model.embed.parameters(), "lr": 1e-5, "weight_decay": 0.0},
        {"params": model.layers.parameters(), "lr": 1e-2, "weight_decay": 0.5},
        {"params": [*model.norm.parameters(), *model.head.parameters()], "lr": 1e-3},
    ]
    optimizer = torch.optim.AdamW(groups, foreach=foreach)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], model=model, optimizers=(optimizer, schedule))
    check_all(trainer, spy, flow, update)


def test_tied_weights_counted_once(tmp_path):
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], model=Classifier(tied=True))
    check_all(trainer, spy, flow, update)
    assert sum(name.endswith("embed.weight") for name in flow.records[0].names) == 1
    assert "head.weight" not in flow.records[0].names
    assert flow.parameters["embed.weight"].role == "embedding"


def test_frozen_parameters_named_once(tmp_path, caplog):
    model = Classifier()
    model.embed.requires_grad_(False)
    model.layers[0].weight.requires_grad_(False)
    flow, update = monitors()
    with caplog.at_level(logging.INFO, logger="bert_toolkit"):
        trainer, spy = train(tmp_path, [flow, update], model=model)
    check_all(trainer, spy, flow, update)
    named = [r.getMessage() for r in caplog.records if "frozen" in r.getMessage()]
    assert len(named) == 2, "one line from each callback"
    assert all("embed.weight, layers.0.weight" in line for line in named)
    assert "embed.weight" not in flow.records[0].names and "embed.weight" not in update.records[0].names


def test_parameter_that_never_gets_a_gradient(tmp_path):
    class Unused(Classifier):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3)

    flow, update = monitors()
    train(tmp_path, [flow, update], model=Unused())
    assert flow.records[0].missing == ("unused.weight", "unused.bias")
    assert "unused.weight" not in flow.records[0].names
    assert update.records[0].ratio[update.records[0].names.index("unused.weight")] == 0.0


def test_peft_lora(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        Classifier(), peft.LoraConfig(r=4, target_modules=r"layers\.\d", init_lora_weights=True)
    )
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], model=model)
    names = flow.records[0].names
    assert len(names) == 4 and all(flow.parameters[name].role == "adapter" for name in names)
    for record, change in zip(flow.records, update.records, strict=True):
        step = spy.steps[record.step]
        check_gradients(record, step.gradients)
        check_update(change, step)
    first = update.records[0]
    b = [i for i, name in enumerate(first.names) if "lora_B" in name]
    assert (first.parameter_norm[b] == 0).all() and (first.update_norm[b] > 0).all()
    assert np.isnan(first.ratio[b]).all(), "B starts at zero: no ratio rather than a division by zero"
    assert np.isfinite(update.records[1].ratio).all()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_torch_compile_in_bf16(tmp_path, accumulation):
    flow, update = monitors()
    settings = {"torch_compile": True, "torch_compile_backend": "aot_eager", "bf16": True, "max_grad_norm": 0.1}
    _, spy = train(tmp_path, [flow, update], gradient_accumulation_steps=accumulation, **settings)
    for record, change in zip(flow.records, update.records, strict=True):
        check_gradients(record, spy.steps[record.step].gradients, rtol=1e-5)  # of the gradients that there are
        check_update(change, spy.steps[record.step])
        assert record.clip_coefficient < 0.9


def test_torch_compile(tmp_path):
    flow, update = monitors()
    model = Classifier()
    spy = Spy()
    settings = arguments(tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    trainer = Trainer(model, settings, train_dataset=rows(), callbacks=[flow, update, spy])
    trainer.train()
    assert not any("_orig_mod" in name for name in (*flow.records[0].names, *update.records[0].names))
    check_all(trainer, spy, flow, update, model=model)


def test_torch_compiled_model_in_a_plain_loop():
    from bert_toolkit import GradientFlowMonitor, UpdateRatioMonitor

    model = Classifier()
    compiled = torch.compile(model, backend="aot_eager")
    batch = {k: torch.stack([torch.as_tensor(r[k]) for r in rows(8)]) for k in ("input_ids", "labels")}
    compiled(**batch)["loss"].backward()
    record = GradientFlowMonitor(compiled).observe(1)
    check_gradients(record, {n: p.grad for n, p in model.named_parameters()})
    monitor = UpdateRatioMonitor(compiled)
    monitor.before_step()
    assert monitor.after_step(1).names == record.names


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(tmp_path, reentrant):
    from transformers import BertConfig, BertForSequenceClassification

    def build():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=30,
            num_labels=3,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return BertForSequenceClassification(config)

    records = []
    for checkpointing in (False, True):
        flow, update = monitors()
        trainer, spy = train(
            tmp_path,
            [flow, update],
            model=build(),
            max_grad_norm=0.1,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant} if checkpointing else None,
        )
        for record, change in zip(flow.records, update.records, strict=True):
            check_gradients(record, spy.steps[record.step].gradients)
            check_update(change, spy.steps[record.step])
        logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        expected = [min(1.0, 0.1 / (norm + 1e-6)) for norm in logged]
        np.testing.assert_allclose([r.clip_coefficient for r in flow.records], expected, rtol=1e-5)
        records.append(flow.records[0])
    np.testing.assert_allclose(records[0].max, records[1].max, rtol=1e-4, atol=1e-9)


class DeepSpeedOptimizerWrapper:
    """Called like Accelerate's wrapper, which steps inside backward()."""


@pytest.mark.parametrize("callback", [GradientFlowCallback, UpdateRatioCallback])
def test_deepspeed_gives_one_notice(tmp_path, caplog, callback):
    args, state = arguments(tmp_path), _state()
    monitor = callback(every_n_steps=1)
    with caplog.at_level(logging.WARNING):
        monitor.on_train_begin(args, state, None, model=Classifier(), optimizer=DeepSpeedOptimizerWrapper())
        for event in ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_train_end"):
            getattr(monitor, event)(args, state, None, model=None, optimizer=None)
    assert [("DeepSpeed" in r.getMessage()) for r in caplog.records] == [True]
    assert monitor.records == []


def test_absent_gradients_give_one_notice(tmp_path, caplog):
    class Swallowing(torch.optim.SGD):
        """Takes gradients away before anyone can see them, as engines with their own storage do."""

    model = Classifier()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    flow, update = monitors()
    optimizer = Swallowing(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    with caplog.at_level(logging.WARNING, logger="bert_toolkit"):
        trainer = Trainer(
            model,
            arguments(tmp_path, max_grad_norm=0.0),
            train_dataset=rows(),
            callbacks=[flow, update],
            optimizers=(optimizer, schedule),
        )
        trainer._get_grad_norm = lambda *a, **k: None
        trainer.train()
    assert flow.records == []
    assert len([r for r in caplog.records if "no parameter has a gradient" in r.getMessage()]) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_on_a_gpu(tmp_path, precision):
    flow, update = monitors()
    trainer, spy = train(tmp_path, [flow, update], use_cpu=False, max_grad_norm=0.1, **{precision: True})
    made = [r for r in flow.records if not r.skipped]
    assert made, "at least one step must be made"
    for record in made:
        step = spy.steps[record.step]
        check_gradients(record, {n: g.cpu() for n, g in step.gradients.items()}, rtol=1e-4)
        replayed = replay(trainer.model, step)
        assert record.clip_coefficient == pytest.approx(clip_coefficient(replayed, 0.1), rel=3e-2)


def _state():
    from transformers import TrainerState

    return TrainerState(max_steps=1, is_world_process_zero=True)
