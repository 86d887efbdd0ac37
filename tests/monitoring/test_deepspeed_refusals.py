"""Set-ups of DeepSpeed that are refused before anything is read; callbacks/test_deepspeed.py has those that train."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bert_toolkit.monitoring.observability import unsupported_reason


class DeepSpeedOptimizerWrapper:
    """Called like Accelerate's wrapper."""

    def __init__(self, engine) -> None:
        self.optimizer = engine


def engine(model: nn.Module, **attributes) -> SimpleNamespace:
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    inner.param_groups[0] |= attributes.pop("group", {})
    return SimpleNamespace(optimizer=inner, **attributes)


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
