"""The gradient flow monitor in a plain PyTorch loop, its scalars, and its errors."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bert_toolkit import GradientFlowMonitor, InputError
from bert_toolkit.monitoring.gradient_flow import gradient_flow_scalars


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2))


def backward(model: nn.Module, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    (model(torch.randn(5, 6, generator=generator)).square().mean() * scale).backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters()}


def test_total_norm_gives_values_before_clipping():
    model = build()
    raw = backward(model)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    record = GradientFlowMonitor(model).observe(7, total_norm=total, max_norm=0.1)
    assert record.step == 7 and record.names == tuple(raw)
    expected = math.sqrt(sum(float(g.square().sum()) for g in raw.values()))
    assert record.clip_coefficient == pytest.approx(0.1 / (expected + 1e-6), rel=1e-6)
    for i, gradient in enumerate(raw.values()):
        before = record.mean[i] / record.clip_coefficient
        assert before == pytest.approx(float(gradient.abs().mean()), rel=1e-5)
    assert np.linalg.norm(record.norm) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("as_number", [False, True])
def test_total_norm_below_the_limit(as_number):
    model = build()
    backward(model)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
    record = GradientFlowMonitor(model).observe(1, total_norm=float(total) if as_number else total, max_norm=100.0)
    assert record.clip_coefficient == 1.0


def test_loss_scale_is_removed():
    plain, scaled = build(), build()
    backward(plain)
    backward(scaled, scale=1024.0)
    expected = GradientFlowMonitor(plain).observe(1)
    record = GradientFlowMonitor(scaled).observe(1, loss_scale=1024.0)
    np.testing.assert_allclose(record.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(record.max, expected.max, rtol=1e-6)
    np.testing.assert_allclose(record.std, expected.std, rtol=1e-6)
    assert not record.skipped


def test_overflow_with_a_loss_scale_is_a_skipped_step():
    model = build()
    backward(model, scale=math.inf)
    record = GradientFlowMonitor(model).observe(1, loss_scale=1024.0)
    assert record.skipped and record.nonfinite


def test_watching_works_for_any_kind_of_clipping_and_accumulation():
    model = build()
    monitor = GradientFlowMonitor(model)
    monitor.watch_backward()
    for _ in range(3):
        raw = backward(model)
    for parameter in model.parameters():
        parameter.grad.mul_(0.37)
    pending = monitor.start(max_norm=1e-9)
    assert pending.finish(1).clip_coefficient == pytest.approx(0.37, rel=1e-6)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert float(raw["0.weight"].norm()) > 0


def test_forget_removes_hooks():
    model = build()
    monitor = GradientFlowMonitor(model)
    monitor.watch_backward()
    assert all(p._post_accumulate_grad_hooks for p in model.parameters())
    monitor.forget()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_parameter_that_starts_to_train_later():
    model = build()
    model[0].requires_grad_(False)
    monitor = GradientFlowMonitor(model)
    assert monitor.frozen == ("0.weight", "0.bias")
    model[0].requires_grad_(True)
    backward(model)
    assert "0.weight" in monitor.observe(1).names


def test_gradients_are_left_alone():
    model = build()
    raw = backward(model)
    GradientFlowMonitor(model).observe(1)
    assert all(torch.equal(p.grad.double(), raw[name]) for name, p in model.named_parameters())


def test_scalars_by_block_and_per_parameter():
    model = build()
    raw = backward(model)
    monitor = GradientFlowMonitor(model)
    record = monitor.observe(1)
    scalars = gradient_flow_scalars(record, monitor.parameters)
    first = raw["0.weight"].abs()
    assert scalars["gradient_flow/mean/layer.0"] == pytest.approx(float(first.mean()), rel=1e-5)
    assert scalars["gradient_flow/std/layer.0"] == pytest.approx(float(first.std(correction=0)), rel=1e-5)
    assert scalars["gradient_flow/max/layer.0"] == pytest.approx(float(first.max()), rel=1e-6)
    assert scalars["gradient_flow/zero_share/layer.0"] == pytest.approx(float((first == 0).double().mean()))
    assert scalars["gradient_flow/clip_coefficient"] == 1.0
    assert all(type(value) is float for value in scalars.values())
    # A block of nothing but a norm is told by its norm and bias taken together.
    norm = torch.cat([raw["2.weight"], raw["2.bias"]]).abs()
    assert scalars["gradient_flow/mean/layer.2"] == pytest.approx(float(norm.mean()), rel=1e-5)
    assert scalars["gradient_flow/std/layer.2"] == pytest.approx(float(norm.std(correction=0)), rel=1e-5)
    single = gradient_flow_scalars(record, monitor.parameters, per_parameter=True)
    assert single["gradient_flow/max/3.bias"] == pytest.approx(float(raw["3.bias"].abs().max()), rel=1e-6)
    assert len(single) == 4 * 6 + 4


def test_block_of_several_matrices_is_one_vector():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 6)

        def forward(self, x):
            return self.b(self.a(x))

    model = nn.Module()
    model.layers = nn.ModuleList([Layer()])
    model.forward = model.layers[0].forward
    raw = backward(model)
    monitor = GradientFlowMonitor(model)
    scalars = gradient_flow_scalars(monitor.observe(1), monitor.parameters)
    joined = torch.cat([raw["layers.0.a.weight"].flatten(), raw["layers.0.b.weight"].flatten()]).abs()
    assert scalars["gradient_flow/mean/layer.0"] == pytest.approx(float(joined.mean()), rel=1e-5)
    assert scalars["gradient_flow/std/layer.0"] == pytest.approx(float(joined.std(correction=0)), rel=1e-5)


def test_scalars_that_no_tracker_can_draw_are_left_out():
    model = build()
    backward(model, scale=math.nan)
    monitor = GradientFlowMonitor(model)
    scalars = gradient_flow_scalars(monitor.observe(1), monitor.parameters)
    assert set(scalars) == {f"gradient_flow/zero_share/layer.{i}" for i in (0, 2, 3)} | {
        "gradient_flow/clip_coefficient"
    }


def test_observed_after_the_gradients_were_cleared():
    model = build()
    backward(model)
    model.zero_grad()
    with pytest.raises(InputError, match=r"after backward\(\) and before optimizer.zero_grad\(\)"):
        GradientFlowMonitor(model).observe(1)


def test_no_trainable_parameter():
    with pytest.raises(InputError, match="at least one trainable parameter"):
        GradientFlowMonitor(build().requires_grad_(False))
