"""Optimizers that step inside the backward pass: gradients as they arrive, updates over the whole step, and health."""

import logging

import pytest
import torch
from float64_oracle import Classifier, Step, arguments, check_gradients, check_update, replay, rows
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from bert_toolkit import TrainingHealthCallback, watch

RATE = 0.05


class InsideBackward(torch.optim.Optimizer):
    """SGD that moves a parameter as soon as its gradient is there, as in PyTorch's tutorial; `step` does nothing."""

    def __init__(self, model: nn.Module, rate: float = RATE) -> None:
        super().__init__(list(model.parameters()), {"lr": rate})
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.move)

    @torch.no_grad()
    def move(self, parameter: Tensor) -> None:
        parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
        parameter.grad = None

    def step(self, closure=None) -> None:
        """The work is done."""


class StepSpy(TrainerCallback):
    """Keeps parameters at both ends of every step and the inputs between."""

    def __init__(self) -> None:
        self.steps: dict[int, Step] = {}
        self.last_batch: dict[int, dict[str, Tensor]] = {}

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.register_forward_pre_hook(self.see_inputs, with_kwargs=True)

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.step = self.steps[state.global_step + 1] = Step(values(model))

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self.step.after = values(model)

    def see_inputs(self, module, arguments, inputs):
        self.last_batch[len(self.steps)] = values(module)
        self.step.inputs.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()})


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(folder, callback=None, model=None, rate=RATE, steps=6, **changes):
    model, spy = model or Classifier(), StepSpy()
    optimizer = None if "optim" in changes else InsideBackward(model, rate)
    schedule = None if optimizer is None else torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    settings = arguments(folder, max_steps=steps, max_grad_norm=0.0, **changes)
    trainer = Trainer(model, settings, train_dataset=rows(), callbacks=[spy], optimizers=(optimizer, schedule))
    trainer._get_grad_norm = lambda *arguments, **keywords: None
    health = callback or TrainingHealthCallback(every_n_steps=1)
    watching = watch(trainer, every_n_steps=1, health=health, figures=False)
    trainer.train()
    return trainer, spy, watching


def check(trainer, spy, watching, steps):
    flow, update = watching.gradient_flow.records, watching.update_ratios.records
    assert [r.step for r in flow] == [r.step for r in update] == steps
    for gradients, change in zip(flow, update, strict=True):
        step = spy.steps[gradients.step]
        check_gradients(gradients, replay(trainer.model, step), of_fp32=True)
        check_update(change, step)
        assert gradients.missing == gradients.nonfinite == () and gradients.clip_coefficient == 1.0
        assert change.update_norm.all()


def test_own_optimizer(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="bert_toolkit"):
        trainer, spy, watching = train(tmp_path)
    check(trainer, spy, watching, [2, 3, 4, 5, 6])  # the first sample tells that it comes too late
    told = [r.getMessage() for r in caplog.records if "steps inside the backward pass" in r.getMessage()]
    assert sorted(t.split(":")[0] for t in told) == ["Gradient flow", "Training health", "Update ratios"]
    assert watching.health.verdict == "Training health: no fault found in 5 samples up to step 6."
    assert len(watching.health.history) == 5 and (watching.health.history.loss > 0).all()


def test_several_batches_of_a_step(tmp_path, caplog):
    """Each batch is a step of its own: the last one's gradients, at the weights it met, and the updates of all."""
    with caplog.at_level(logging.WARNING, logger="bert_toolkit"):
        _, spy, watching = train(tmp_path, steps=4, gradient_accumulation_steps=3)
    told = [r.getMessage() for r in caplog.records if "for each of the 3 batches of a step" in r.getMessage()]
    assert len(told) == 1
    for gradients, change in zip(watching.gradient_flow.records, watching.update_ratios.records, strict=True):
        step = spy.steps[gradients.step]
        check_update(change, step)
        assert len(step.inputs) == 3
        last = Step(spy.last_batch[gradients.step])
        last.inputs = step.inputs[-1:]
        check_gradients(gradients, {n: g / 3 for n, g in replay(Classifier(), last).items()}, of_fp32=True)


def test_training_is_the_same_without_monitoring(tmp_path):
    watched, _, _ = train(tmp_path / "watched")
    model = Classifier()
    optimizer = InsideBackward(model)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    alone = Trainer(
        model,
        arguments(tmp_path / "alone", max_steps=6, max_grad_norm=0.0),
        train_dataset=rows(),
        optimizers=(optimizer, schedule),
    )
    alone._get_grad_norm = lambda *arguments, **keywords: None
    alone.train()
    for ours, theirs in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(p._backward_hooks for p in watched.model.parameters()), "no hook is left"


def test_health_finds_what_it_finds_elsewhere(tmp_path):
    """A rate of almost zero moves nothing; a loss is no number."""
    _, _, watching = train(tmp_path / "still", rate=1e-12, steps=12)
    assert "not_updated" in watching.health.verdict

    class Broken(Classifier):
        calls = 0

        def forward(self, input_ids, labels):
            output = super().forward(input_ids, labels)
            self.calls += 1
            if self.calls == 4:
                output["loss"] = output["loss"] * torch.nan
            return output

    _, _, watching = train(tmp_path / "broken", model=Broken())
    assert "nonfinite since step 4" in watching.health.verdict


@pytest.mark.parametrize(
    "optim, settings",
    [
        ("lomo", {}),
        ("adalomo", {}),
        ("galore_adamw_layerwise", {"optim_args": "rank=4, update_proj_gap=2, scale=0.1"}),
        ("apollo_adamw_layerwise", {"optim_args": "proj=random,rank=4,scale=1.0,scale_type=channel"}),
    ],
)
def test_real_ones(tmp_path, caplog, optim, settings):
    pytest.importorskip({"ga": "galore_torch", "ap": "apollo_torch"}.get(optim[:2], "lomo_optim"))
    if settings:
        settings["optim_target_modules"] = ["layers"]
    with caplog.at_level(logging.WARNING, logger="bert_toolkit"):
        try:
            trainer, spy, watching = train(tmp_path, optim=optim, learning_rate=1e-3, **settings)
        except AssertionError as error:
            if "CUDA" not in str(error):
                raise
            pytest.skip(f"does not train here: {error}")  # AdaLomo
    check(trainer, spy, watching, [1, 2, 3, 4, 5, 6])
    assert not [record for record in caplog.records if record.name.startswith("bert_toolkit")]
    assert watching.health.verdict == "Training health: no fault found in 6 samples up to step 6."


@pytest.mark.parametrize("bf16", [False, True])
def test_several_batches_a_step(tmp_path, bf16):
    """Each batch moves the parameters; the record holds the last one's gradient, the update all of them."""
    trainer, spy, watching = train(tmp_path, gradient_accumulation_steps=3, bf16=bf16)
    assert [r.step for r in watching.update_ratios.records] == [2, 3, 4, 5, 6]
    for gradients, change in zip(watching.gradient_flow.records, watching.update_ratios.records, strict=True):
        step = spy.steps[gradients.step]
        assert len(step.inputs) == 3
        check_update(change, step)
        last = {n: (p - step.after[n]) / RATE for n, p in spy.last_batch[gradients.step].items()}
        for i, name in enumerate(gradients.names):  # what SGD subtracted, but for the rounding of its difference
            assert gradients.max[i] == pytest.approx(float(last[name].abs().max()), rel=1e-2, abs=1e-5)


def test_a_warm_up_from_zero_tells_nothing_yet(tmp_path):
    """The first step moves nothing, so that gradients look cleared; nothing is concluded from it."""
    model, spy = Classifier(), StepSpy()
    optimizer = InsideBackward(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2, 1.0))
    settings = arguments(tmp_path, max_steps=5, max_grad_norm=0.0)
    trainer = Trainer(model, settings, train_dataset=rows(), callbacks=[spy], optimizers=(optimizer, schedule))
    trainer._get_grad_norm = lambda *arguments, **keywords: None
    watching = watch(trainer, every_n_steps=1, health=TrainingHealthCallback(every_n_steps=1), figures=False)
    trainer.train()
    check(trainer, spy, watching, [3, 4, 5])
    assert "no fault" in watching.health.verdict
