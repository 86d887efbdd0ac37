"""Observers of one step share one reading of gradients and parameters, and leave nothing between steps."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from bert_toolkit.monitoring import gradient_flow, update_ratios
from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor
from bert_toolkit.monitoring.step_reading import StepReader
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 80), nn.ReLU(), nn.Linear(80, 100), nn.LayerNorm(100))


def train_step(model, optimizer, readings):
    model(torch.randn(5, 6)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    for reading in readings:
        reading.before_step(optimizer, max_norm=0.1)
    optimizer.step()
    for reading in readings:
        reading.after_step()
    optimizer.zero_grad()


@pytest.fixture
def reads(monkeypatch):
    """How often memory is read: statistics of gradients, their norms at the end of backward, and of updates."""
    counts = {"absolute_rows": 0, "local_norms": 0, "update_rows": 0}
    for module in (gradient_flow, update_ratios):
        for name in counts:
            if hasattr(module, name):
                original = getattr(module, name)

                def counted(*args, name=name, original=original, **kwargs):
                    counts[name] += 1
                    return original(*args, **kwargs)

                monkeypatch.setattr(module, name, counted)
    return counts


def test_three_observers_cause_one_read(reads):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    observers = [StepReader.of(model) for _ in range(3)]
    readings = [reader.begin(1) for reader in observers]
    for reading, wanted in zip(readings, ("exact", "any", None), strict=True):
        reading.join(gradients=True, updates=wanted)
    train_step(model, optimizer, readings)
    assert readings[0].gradients is readings[1].gradients is readings[2].gradients
    assert readings[0].updates("exact") is readings[1].updates("any")
    assert reads == {"absolute_rows": 1, "local_norms": 1, "update_rows": 1}


def test_values_are_those_of_observers_on_their_own():
    records = []
    for shared in (True, False):
        torch.manual_seed(1)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if shared:
            reading = StepReader.of(model).begin(3)
            reading.join(gradients=True, updates="exact")
            train_step(model, optimizer, [reading])
            records.append((reading.gradients, reading.updates()))
        else:
            flow, ratios = GradientFlowMonitor(model), UpdateRatioMonitor(model)
            flow.watch_backward()
            model(torch.randn(5, 6)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            pending = flow.start(max_norm=0.1)
            ratios.before_step(optimizer)
            optimizer.step()
            records.append((pending.finish(3), ratios.after_step(3)))
    for one, other in zip(*records, strict=True):
        for field, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, field), err_msg=field)


@pytest.mark.parametrize(
    ("wanted", "copies"),
    [
        (["any"], [("sampled", 0)]),
        (["any", ("sampled", 7)], [("sampled", 7)]),
        ([("sampled", 1), ("sampled", 2)], [("sampled", 1), ("sampled", 2)]),
        ([("sampled", 1), "exact", "any"], [("exact", 0)]),
        ([None], []),
    ],
)
def test_fewest_copies_that_serve_all(wanted, copies):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = StepReader.of(model)
    reading = reader.begin(1)
    asked = [w if isinstance(w, tuple) else (w, 0) for w in wanted]
    for mode, seed in asked:
        reading.join(updates=mode, seed=seed)
    train_step(model, optimizer, [reading])
    assert list(reader._update_ratios) == copies
    for mode, seed in asked:
        record = reading.updates(mode, seed) if mode else None
        assert (record is None) == (mode is None)


def test_learning_rates_by_name():
    model = build()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.3}]
    optimizer = torch.optim.SGD(groups)
    reading = StepReader.of(model).begin(1)
    reading.join(updates="any")
    train_step(model, optimizer, [reading])
    assert reading.learning_rates == {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.3, "2.bias": 0.3}


def test_nothing_is_held_between_readings_and_the_reader_goes_with_its_observers():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = StepReader.of(model)
    assert StepReader.of(torch.nn.DataParallel(model)) is reader, "wrappers are seen through"
    readings = [reader.begin(1), reader.begin(1)]
    for reading in readings:
        reading.join(gradients=True, updates="exact")
    readings[0].leave()
    assert any(p._post_accumulate_grad_hooks for p in model.parameters()), "another observer still needs it"
    train_step(model, optimizer, readings[1:])
    readings[1].leave()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert all(monitor._before == [] for monitor in reader._update_ratios.values())
    held = weakref.ref(readings[1])
    del readings, reading
    gc.collect()
    assert held() is None
    alive, of_model = weakref.ref(reader), weakref.ref(model)
    del reader
    assert alive() is None
    del model, optimizer
    gc.collect()
    assert of_model() is None


def test_memory_of_the_copy_is_kept_while_every_step_is_read():
    """From the third step in a row; values stay those of plain float64, and a gap frees it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 200)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = StepReader.of(model)
    monitor = reader._update_monitor("exact", 0)
    places = {}
    for step in (1, 2, 3, 4, 5, 10, 20):
        reading = reader.begin(step)
        reading.join(updates="exact")
        model(torch.randn(8, 300)).square().sum().backward()
        before = model.weight.detach().double()
        reading.before_step(optimizer)
        places[step] = monitor._before[0][2].data_ptr()
        optimizer.step()
        reading.after_step()
        ratio = (model.weight.detach().double() - before).norm() / before.norm()
        assert reading.updates().ratio[0] == pytest.approx(float(ratio), rel=1e-6)
        optimizer.zero_grad()
        reading.leave()
        assert bool(monitor._kept) == (step in (3, 4, 5)), step
    assert places[3] == places[4] == places[5] == places[10]


def test_a_new_step_frees_one_that_was_interrupted():
    model = build()
    reader = StepReader.of(model)
    interrupted = reader.begin(1)
    interrupted.join(gradients=True, updates="exact")
    reading = reader.begin(2)
    assert reading is not interrupted and reading.step == 2
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize(
    ("owner", "name", "gradients"),
    [
        (GradientFlowMonitor, "start", True),
        (UpdateRatioMonitor, "before_step", False),
        (UpdateRatioMonitor, "after_step", False),
    ],
)
def test_only_those_who_wanted_it_hear_of_a_failure(monkeypatch, owner, name, gradients):
    def broken(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(owner, name, broken)
    model = build()
    reading = StepReader.of(model).begin(1)
    reading.join(gradients=True, updates="exact")
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), [reading])
    reading.check(gradients=not gradients, updates=gradients)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            reading.check(gradients=gradients, updates=not gradients)
        with pytest.raises(MemoryError, match="no room"):
            _ = reading.gradients if gradients else reading.updates()
    assert (reading.updates() if gradients else reading.gradients) is not None
    assert all(monitor._before == [] for monitor in reading._reader._update_ratios.values()) or name == "after_step"


def test_parameters_that_come_and_go():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = StepReader.of(model)

    def read(step):
        reading = reader.begin(step)
        reading.join(gradients=True, updates="exact")
        train_step(model, optimizer, [reading])
        found = reading.gradients, reading.updates()
        reading.leave()
        return found

    read(1)
    model.append(nn.Linear(100, 4))
    optimizer.add_param_group({"params": model[4].parameters()})
    gradients, updates = read(2)
    assert gradients.names == updates.names == tuple(name for name, _ in model.named_parameters())
    assert reader.parameters["4.weight"].role == "matrix" and reader.parameters["4.weight"].block == "layer.4"
    del model[4]
    model[2] = nn.Linear(80, 100)  # another tensor under a name that is known
    optimizer.add_param_group({"params": model[2].parameters()})
    gradients, updates = read(3)
    assert gradients.names == updates.names == tuple(name for name, _ in model.named_parameters())
    assert "4.weight" in reader.parameters, "records of earlier steps still mention it"
    assert (updates.ratio > 0).any()
