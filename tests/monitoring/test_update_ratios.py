"""The update ratio monitor in a plain PyTorch loop, its two modes, and its errors."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bert_toolkit import InputError, UpdateRatioMonitor
from bert_toolkit.monitoring.tensor_statistics import local_tensor
from bert_toolkit.monitoring.update_ratios import SAMPLE_SIZE, update_ratio_scalars


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(60, 200), nn.Tanh(), nn.LayerNorm(200), nn.Linear(200, 100))


def step(model: nn.Module, optimizer, *monitors, number: int = 1):
    """One step of the optimizer: records of the monitors and the parameters before it in float64."""
    optimizer.zero_grad()
    model(torch.randn(9, 60)).square().mean().backward()
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for monitor in monitors:
        monitor.before_step()
    optimizer.step()
    return [monitor.after_step(number) for monitor in monitors], before


OPTIMIZERS = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_real_update_of_any_optimizer(name):
    model = build()
    optimizer = OPTIMIZERS[name](model.parameters())
    monitor = UpdateRatioMonitor(model)
    for number in (1, 2, 3):
        (record,), before = step(model, optimizer, monitor, number=number)
        assert record.step == number
        for i, (parameter_name, parameter) in enumerate(model.named_parameters()):
            old = before[parameter_name]
            update = float((parameter.detach().double() - old).norm())
            assert record.update_norm[i] == pytest.approx(update, rel=1e-5)
            assert record.parameter_norm[i] == pytest.approx(float(old.norm()), rel=1e-5)
            if float(old.norm()) > 0:
                assert record.ratio[i] == pytest.approx(update / float(old.norm()), rel=1e-5)
            assert record.changed_share[i] == float((parameter.detach().double() != old).double().mean())


def test_zero_norm_parameters_have_no_ratio():
    model = build()
    torch.nn.init.zeros_(model[3].bias)
    (record,), _ = step(model, torch.optim.SGD(model.parameters(), lr=0.1), UpdateRatioMonitor(model))
    i = record.names.index("3.bias")
    assert record.parameter_norm[i] == 0 and record.update_norm[i] > 0 and math.isnan(record.ratio[i])
    (record,), _ = step(model, torch.optim.SGD(model.parameters(), lr=0.0), UpdateRatioMonitor(model))
    assert (record.ratio == 0).all() and not record.skipped


def test_sampled_mode_estimates_within_its_stated_error():
    """On Gaussian updates of Gaussian parameters the ratio has a relative standard deviation of 1.6 %."""
    errors = []
    for seed in range(40):
        model = nn.Linear(400, 300, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            model.weight.copy_(torch.randn(300, 400, generator=generator))
        monitor = UpdateRatioMonitor(model, mode="sampled", seed=seed)
        monitor.before_step()
        with torch.no_grad():
            before = model.weight.clone()
            model.weight += 1e-3 * torch.randn(300, 400, generator=generator)
        record = monitor.after_step(1)
        exact = float((model.weight.detach() - before).norm() / before.norm())
        errors.append(record.ratio[0] / exact - 1)
        assert record.parameter_norm[0] == pytest.approx(float(before.norm()), rel=0.06)
    assert abs(np.mean(errors)) < 3 * 0.016 / math.sqrt(40)
    assert 0.010 < np.std(errors) < 0.022


def test_sampled_mode_reads_small_tensors_completely():
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    (exact, sampled), _ = step(model, optimizer, UpdateRatioMonitor(model), UpdateRatioMonitor(model, mode="sampled"))
    sizes = np.array([p.numel() for p in model.parameters()])
    np.testing.assert_allclose(sampled.ratio[sizes <= SAMPLE_SIZE], exact.ratio[sizes <= SAMPLE_SIZE], rtol=1e-7)
    np.testing.assert_allclose(sampled.ratio, exact.ratio, rtol=0.1)


def test_sampled_positions_are_fixed_spread_out_and_without_repeats():
    model = nn.Linear(1000, 300)
    one, same, other = (UpdateRatioMonitor(model, mode="sampled", seed=seed) for seed in (1, 1, 2))
    positions = [monitor._draw("weight", local_tensor(model.weight)) for monitor in (one, same, other)]
    assert torch.equal(positions[0], positions[1]) and not torch.equal(positions[0], positions[2])
    for drawn in positions:
        assert len(drawn.unique()) == SAMPLE_SIZE
        assert (drawn.diff() > 0).all() and int(drawn.max()) < 300_000
        counts = torch.histc(drawn.float(), bins=10, min=0, max=300_000)
        assert (counts - SAMPLE_SIZE / 10).abs().max() <= 2


def test_sampled_mode_of_bert_base_holds_less_than_10_mebibytes():
    with torch.device("meta"):
        from transformers import BertConfig, BertModel

        model = BertModel(BertConfig())
    held = 0
    for parameter in model.parameters():
        kept = min(parameter.numel(), SAMPLE_SIZE)
        held += kept * (4 + 4 * (parameter.numel() > SAMPLE_SIZE))
    assert held < 10 * 2**20
    monitor = UpdateRatioMonitor(nn.Linear(3000, 100, bias=False), mode="sampled")
    monitor.before_step()
    ((_, _, values),), (positions,) = monitor._before, monitor._positions.values()
    assert values.numel() == positions.numel() == SAMPLE_SIZE and positions.itemsize == 4


def test_copy_is_freed_after_the_step():
    model = build()
    monitor = UpdateRatioMonitor(model)
    monitor.before_step()
    assert sum(v.numel() for _, _, v in monitor._before) == sum(p.numel() for p in model.parameters())
    monitor.after_step(1)
    assert monitor._before == []


def test_overflow_is_a_skipped_step_and_not_a_zero_update():
    model = build()
    monitor = UpdateRatioMonitor(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.randn(9, 60)).square().mean() * math.inf).backward()
    monitor.before_step()
    scaler.step(optimizer)
    scaler.update()
    record = monitor.after_step(1)
    assert record.skipped and np.isnan(record.ratio).all() and np.isnan(record.changed_share).all()
    assert (record.parameter_norm > 0).any()


def test_parameters_without_any_gradient_are_not_a_skipped_step():
    model = build()
    monitor = UpdateRatioMonitor(model)
    monitor.before_step()
    assert not monitor.after_step(1).skipped


def test_scalars_by_block():
    model = build()
    monitor = UpdateRatioMonitor(model)
    (record,), before = step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), monitor)
    scalars = update_ratio_scalars(record, monitor.parameters)
    update = float((model[0].weight.detach().double() - before["0.weight"]).norm())
    blocks = ["update_ratio/layer.0", "update_ratio/layer.2", "update_ratio/layer.3"]
    assert list(scalars) == ["update_ratio/all/largest", "update_ratio/all/median", *blocks]
    ratios = sorted(scalars[block] for block in blocks)
    assert scalars["update_ratio/all/largest"] == ratios[-1] and scalars["update_ratio/all/median"] == ratios[1]
    assert scalars["update_ratio/layer.0"] == pytest.approx(update / float(before["0.weight"].norm()), rel=1e-5)
    single = update_ratio_scalars(record, monitor.parameters, per_parameter=True)
    assert "update_ratio/0.bias" in single and len(single) == 5 + 2, "the norm's bias is zero: no ratio"


def test_after_step_without_before_step():
    monitor = UpdateRatioMonitor(build())
    with pytest.raises(InputError, match=r"after_step\(\) needs before_step\(\)"):
        monitor.after_step(1)
    monitor.before_step()
    monitor.after_step(1)
    with pytest.raises(InputError, match=r"after_step\(\) needs before_step\(\)"):
        monitor.after_step(2)


def test_unknown_mode():
    with pytest.raises(InputError, match="mode must be one of exact, sampled, got 'half'"):
        UpdateRatioMonitor(build(), mode="half")


def test_no_trainable_parameter():
    with pytest.raises(InputError, match="at least one trainable parameter"):
        UpdateRatioMonitor(build().requires_grad_(False))
