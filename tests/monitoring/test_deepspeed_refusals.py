"""Set-ups of DeepSpeed that are refused before anything is read; callbacks/test_deepspeed.py has those that train."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bert_toolkit.monitoring.deepspeed_shards import shards_of
from bert_toolkit.monitoring.deepspeed_step import DeepSpeedStep
from bert_toolkit.monitoring.observability import unsupported_reason
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor


class DeepSpeedOptimizerWrapper:
    """Called like Accelerate's wrapper."""

    def __init__(self, engine) -> None:
        self.optimizer = engine


class Engine:
    """DeepSpeed's own wrapper of the optimizer."""

    def __init__(self, **attributes) -> None:
        self.__dict__ |= attributes


def engine(model: nn.Module, **attributes) -> Engine:
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    inner.param_groups[0] |= attributes.pop("group", {})
    return Engine(optimizer=inner, **attributes)


@pytest.mark.parametrize(
    "attributes, told",
    [
        ({"zenflow": True, "cpu_offload": True}, "ZenFlow updates parameters outside the step"),
        ({"cpu_offload": True}, "offloads to CPU or NVMe"),
        ({"offload_optimizer": True}, "offloads to CPU or NVMe"),
        ({"offload_param": True}, "offloads to CPU or NVMe"),
        ({"group": {"use_muon": True}}, "Muon replaces gradients"),
    ],
)
def test_settings(attributes, told):
    model = nn.Linear(3, 2)
    assert told in unsupported_reason(model, DeepSpeedOptimizerWrapper(engine(model, **attributes)), by_trainer=True)


def test_a_loop_does_not_tell_when_a_step_is_taken():
    model = nn.Linear(3, 2)
    assert "train with Trainer" in unsupported_reason(model, DeepSpeedOptimizerWrapper(engine(model)))


@pytest.mark.parametrize(
    "mark, told",
    [
        ({"ds_id": 0}, "DeepSpeed is not made as expected (AttributeError"),
        ({"_hp_mapping": SimpleNamespace()}, "DeepSpeed is not made as expected (AttributeError"),
    ],
    ids=["ZeRO 3", "ZeRO 1 and 2"],
)
def test_another_version(mark, told):
    """Parameters are marked as today, and what they lead to is gone."""
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        for name, value in mark.items():
            setattr(parameter, name, value)
    wrapper = DeepSpeedOptimizerWrapper(engine(model, param_groups=[{"params": list(model.parameters())}]))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert told in unsupported_reason(model, wrapper, by_trainer=True)
    finally:
        torch.distributed.destroy_process_group()


def test_values_that_the_optimizer_does_not_hold():
    """A wrapper that steps copies whose place is not known."""
    model, copies = nn.Linear(3, 2), nn.Linear(3, 2)
    wrapper = DeepSpeedOptimizerWrapper(engine(copies, param_groups=[{"params": list(model.parameters())}]))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert "keeps what it steps where it cannot be seen" in unsupported_reason(model, wrapper, by_trainer=True)
    finally:
        torch.distributed.destroy_process_group()


def test_parts_over_some_of_the_processes(monkeypatch):
    model, part = nn.Linear(3, 2), object()
    model.weight._dp_group = part
    wrapper = DeepSpeedOptimizerWrapper(engine(model, param_groups=[{"params": list(model.parameters())}]))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1 if group is part else 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 0)
    assert "over some of the processes only" in unsupported_reason(model, wrapper, by_trainer=True)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def stepped(model: nn.Module, made: Engine | None = None, gradients: bool = True, **attributes) -> DeepSpeedStep:
    """One step of an engine that is a wrapper of its own around the torch optimizer."""
    made = made or engine(model, param_groups=[{"params": list(model.parameters())}], **attributes)
    step = DeepSpeedStep(model, DeepSpeedOptimizerWrapper(made))
    step.watch(gradients, [UpdateRatioMonitor(model)])
    model(torch.ones(4, 3)).square().sum().backward()
    made.optimizer.step()
    step.close()
    step.check()
    step.gather()
    return step


@pytest.mark.parametrize(
    "attributes, coefficient, told",
    [
        ({"clip_grad": 0.0, "_global_grad_norm": 4.0}, 1.0, 0),
        ({"clip_grad": 1.0, "_global_grad_norm": 4.0}, 0.25, 0),
        ({"clip_grad": 8.0, "_global_grad_norm": 4.0}, 1.0, 0),
        ({"clip_grad": 1.0}, math.nan, 1),  # another version: the norm is called otherwise
        ({"_global_grad_norm": 4.0}, math.nan, 1),
        ({}, math.nan, 1),
    ],
)
def test_clipping_that_is_not_told_is_not_recorded(one_process, caplog, attributes, coefficient, told):
    """Told once in each training."""
    for _ in range(2):
        caplog.clear()
        model = nn.Linear(3, 2)
        made = engine(model, param_groups=[{"params": list(model.parameters())}], **attributes)
        for _ in range(2):
            record = stepped(model, made).gradients.finish(1)
            assert record.clip_coefficient == pytest.approx(coefficient, rel=1e-6, nan_ok=True)
            assert np.isfinite(record.mean).all()
        assert sum("clip_coefficient is not recorded" in message for message in caplog.messages) == told


def shards_with(monkeypatch, **changes) -> None:
    """The first part is not where DeepSpeed is believed to have it."""
    real = shards_of

    def moved(model, optimizer):
        first, *rest = real(model, optimizer)
        return [replace(first, **{name: change(first) for name, change in changes.items()}), *rest]

    monkeypatch.setattr("bert_toolkit.monitoring.deepspeed_step.shards_of", moved)


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "updates alone"])
@pytest.mark.parametrize(
    "changes, told",
    [
        ({"length": lambda first: first.length - 1}, "0 to 5"),
        ({"length": lambda first: 0}, "none"),
        ({"begin": lambda first: 1}, "1 to 7"),
        ({"begin": lambda first: 1, "length": lambda first: 5}, "1 to 6"),
    ],
)
def test_parts_that_are_not_the_whole_are_refused(one_process, monkeypatch, changes, told, gradients):
    shards_with(monkeypatch, **changes)
    with pytest.raises(RuntimeError, match=rf"of weight .*\({told}\) are not the whole parameter, .* 6 elements"):
        stepped(nn.Linear(3, 2), clip_grad=0.0, gradients=gradients)


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "updates alone"])
def test_parts_that_lie_elsewhere_are_refused(one_process, monkeypatch, gradients):
    """As many elements as it should be, of something else."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shards_with(monkeypatch, holder=lambda first: model[1].weight)
    with pytest.raises(RuntimeError, match="steps for 0.weight are not the values that the model computes with"):
        stepped(model, clip_grad=0.0, gradients=gradients)


def test_a_gradient_whose_parameter_is_not_stepped_is_refused(one_process, monkeypatch):
    shards_with(monkeypatch, holder=lambda first: nn.Parameter(torch.randn(2, 3)))
    with pytest.raises(RuntimeError, match="weight got a gradient, .* stepped 0 of its 6 elements"):
        stepped(nn.Linear(3, 2), clip_grad=0.0).gradients.finish(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_in_full_precision_are_the_same_values(one_process, dtype):
    low, high = nn.Linear(300, 200).to(dtype), nn.Linear(300, 200)
    with torch.no_grad():
        for ours, copy in zip(low.parameters(), high.parameters(), strict=True):
            ours.copy_(copy)
    made = engine(high, fp16_groups=[list(low.parameters())], fp32_groups=[list(high.parameters())], clip_grad=0.0)
    assert not any(shard.is_elsewhere() for shard in shards_of(low, DeepSpeedOptimizerWrapper(made)))
