"""Runs a foreign training with and without monitoring, and keeps what really happened in each of its steps.

The oracle shares nothing with the package: it copies gradients and parameters around the optimizer's step, as the
optimizer's own hooks or Trainer's events give them, and computes every statistic from these copies in float64.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from float64_oracle import Step, check_gradients, check_update
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from benchmarks.fault_injection.healthy_programs.program import Ready, Setup
from bert_toolkit import GradientFlowCallback, TrainingHealthCallback, UpdateRatioCallback, watch, watch_loop

SEED = 5


def trained(model: Any) -> nn.Module:
    """What the optimizer holds; SetFit hands its callbacks a class of its own around that."""
    return model if isinstance(model, nn.Module) else model.model_body


def values(model: Any) -> dict[str, Tensor]:
    """Copies of all parameters, a tied one once."""
    return {name: parameter.detach().clone() for name, parameter in trained(model).named_parameters()}


def gradients(model: Any) -> dict[str, Tensor]:
    """Copies of all gradients."""
    return {
        name: (parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad).detach().clone()
        for name, parameter in trained(model).named_parameters()
        if parameter.grad is not None
    }


class StepSpy(TrainerCallback):
    """Keeps gradients and parameters around every step of Trainer."""

    def __init__(self) -> None:
        """Start with no steps."""
        self.steps: dict[int, Step] = {}
        self.grad_norms: dict[int, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Copy what the optimizer will use."""
        self.steps[state.global_step + 1] = Step(values(model), gradients=gradients(model))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Copy what the optimizer has made of it."""
        self.steps[state.global_step + 1].after = values(model)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep Trainer's own norm of the gradients before clipping."""
        if logs and "grad_norm" in logs:
            self.grad_norms[state.global_step] = float(logs["grad_norm"])

    def on_loop(self, model: nn.Module, optimizer: Any) -> None:
        """Do the same in a loop without Trainer."""
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner

        def before(*unused: Any) -> None:
            self.steps[len(self.steps) + 1] = Step(values(model), gradients=gradients(model))

        def after(*unused: Any) -> None:
            self.steps[len(self.steps)].after = values(model)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


@dataclass
class Watched:
    """What monitored one model, and what really happened.

    Args:
        flow: Its gradient flow.
        updates: Its update ratios.
        health: Its training health.
        spy: The oracle.
    """

    flow: GradientFlowCallback
    updates: UpdateRatioCallback
    health: TrainingHealthCallback
    spy: StepSpy

    def check(self, rtol: float = 1e-5) -> None:
        """Compare every record with the oracle."""
        steps = [step for step in self.spy.steps if self.flow.is_sampled(step)]
        assert steps
        assert [record.step for record in self.flow.records] == steps
        assert [record.step for record in self.updates.records] == steps
        for record in self.flow.records:
            check_gradients(record, self.spy.steps[record.step].gradients, rtol=rtol)
        for record in self.updates.records:
            check_update(record, self.spy.steps[record.step], rtol=rtol)

    def check_clipping(self, max_norm: float) -> None:
        """Compare the clip coefficient with what follows from the norm that Trainer logs."""
        for record in self.flow.records:
            if record.step in self.spy.grad_norms:
                expected = min(1.0, max_norm / (self.spy.grad_norms[record.step] + 1e-6))
                assert math.isclose(record.clip_coefficient, expected, rel_tol=1e-4), record.step

    def check_silence(self) -> None:
        """No finding is an error."""
        errors = [finding for finding in self.health.judge.report() if finding["severity"] == "error"]
        assert not errors, [f"{finding['rule']}: {finding['seen']}" for finding in errors]


@dataclass
class Outcome:
    """A training that is over.

    Args:
        ready: What ran.
        weights: Parameters and buffers at the end.
        watched: What monitored it, one for each model; empty where nothing did.
        complaints: What the package warned about beside findings.
    """

    ready: Ready
    weights: dict[str, Tensor]
    watched: list[Watched] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def complaints_of_the_package() -> Any:
    """Collects warnings of the package that are no findings."""
    texts: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.levelno >= logging.WARNING and not text.startswith("Training health"):
                texts.append(text)

    handler, logger = Handler(), logging.getLogger("bert_toolkit")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def new_callbacks() -> tuple[GradientFlowCallback, UpdateRatioCallback, TrainingHealthCallback]:
    """Callbacks that look at every second step, health at every one."""
    return (
        GradientFlowCallback(2, figures=False),
        UpdateRatioCallback(2, figures=False),
        TrainingHealthCallback(every_n_steps=1),
    )


def run(
    build: Callable[[Setup], Ready], folder: Path, how: str | None, steps: int | None = 4, **setup: Any
) -> Outcome:
    """Build and run a training.

    Args:
        build: Builds it.
        folder: Where it may write.
        how: None for nobody watches, "callbacks" for `callbacks=[...]`, "watch" for `watch(trainer)`; loops without
            Trainer are watched by `watch_loop` either way.
        steps: Number of optimizer steps, None for the training's own.
        setup: Further fields of `Setup`.
    """
    torch.set_num_threads(1)
    watched: list[Watched] = []

    def callbacks() -> list[TrainerCallback]:
        if how != "callbacks":
            return []
        watched.append(Watched(*new_callbacks(), StepSpy()))
        return [watched[-1].flow, watched[-1].updates, watched[-1].health, watched[-1].spy]

    def loop(model: nn.Module, optimizer: Any, **settings: Any) -> watch_loop:
        watching = watch_loop(
            model,
            optimizer,
            every_n_steps=2,
            health=TrainingHealthCallback(every_n_steps=1),
            output_dir=folder,
            figures=False,
            **settings,
        )
        assert watching.health is not None
        watched.append(Watched(watching.gradient_flow, watching.update_ratios, watching.health, StepSpy()))
        watched[-1].spy.on_loop(model, optimizer)
        return watching

    set_seed(SEED)
    with complaints_of_the_package() as complaints:
        ready = build(Setup(folder, callbacks, loop if how else None, steps, **setup))
        if how == "watch" and ready.trainer is not None:
            watching = watch(ready.trainer, 2, TrainingHealthCallback(every_n_steps=1), figures=False)
            assert watching.health is not None
            watched.append(Watched(watching.gradient_flow, watching.update_ratios, watching.health, StepSpy()))
            ready.trainer.add_callback(watched[-1].spy)
        ready.run()
    weights = {name: value.clone() for name, value in ready.model.state_dict().items() if isinstance(value, Tensor)}
    return Outcome(ready, weights, watched, complaints)


def check_bit_equal(one: Outcome, other: Outcome) -> None:
    """Both trainings ended with the very same numbers."""
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), f"{name} is not bit-equal"
