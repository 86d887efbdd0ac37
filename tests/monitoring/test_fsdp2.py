"""Sharded parameters: two processes see the statistics of the whole tensors, as one float64 process computes them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fsdp2_model import LEARNING_RATE, MAX_NORM, Net, batches

from bert_toolkit.monitoring import GradientFlowRecord, UpdateRatioRecord
from bert_toolkit.monitoring.record_file import load_records

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["shard", "replicate and shard"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(HERE / "fsdp2_worker.py"), str(folder), request.param], check=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def oracle():
    """(gradients before clipping, coefficient, parameters before, parameters after) of each step in float64."""
    model = Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    steps = []
    for x, y in batches():
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x.double()), y.double()).backward()
        raw = {n: p.grad.clone() for n, p in model.named_parameters()}
        total = math.sqrt(sum(float(g.square().sum()) for g in raw.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
        after = {n: p.detach().clone() for n, p in model.named_parameters()}
        steps.append((raw, min(1.0, MAX_NORM / (total + 1e-6)), before, after))
    return steps


@pytest.mark.launch
@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_of_whole_tensors_on_every_rank(run, oracle, rank):
    records = load_records(run / f"rank{rank}" / "gradients.npz", GradientFlowRecord)
    assert len(records) == len(oracle)
    raw, coefficient, *_ = oracle[0]
    record = records[0]
    assert record.names == tuple(raw)
    assert record.clip_coefficient == pytest.approx(coefficient, rel=1e-5)
    for i, gradient in enumerate(raw.values()):
        magnitude = gradient.abs() * coefficient
        assert record.count[i] == magnitude.numel()
        assert record.mean[i] == pytest.approx(float(magnitude.mean()), rel=1e-5)
        assert record.max[i] == pytest.approx(float(magnitude.max()), rel=1e-5)
        assert record.std[i] == pytest.approx(float(magnitude.std(correction=0)), rel=1e-5, abs=1e-12)
        assert record.zero_share[i] == pytest.approx(float((magnitude == 0).double().mean()), abs=1e-12)


@pytest.mark.launch
@pytest.mark.parametrize("rank", [0, 1])
def test_updates_of_whole_tensors_on_every_rank(run, oracle, rank):
    exact = load_records(run / f"rank{rank}" / "updates.npz", UpdateRatioRecord)
    sampled = load_records(run / f"rank{rank}" / "samples.npz", UpdateRatioRecord)
    *_, before, after = oracle[0]
    for i, name in enumerate(exact[0].names):
        size = float(before[name].norm())
        assert exact[0].parameter_norm[i] == pytest.approx(size, rel=1e-6)
        # AdamW's first step is lr * g / (|g| + eps): exact in float32 but for gradients near eps = 1e-8.
        assert exact[0].update_norm[i] == pytest.approx(float((after[name] - before[name]).norm()), rel=1e-4)
    for whole, part in zip(exact, sampled, strict=True):
        np.testing.assert_allclose(part.ratio, whole.ratio, rtol=0.02)
        # Up to 4,096 elements on a rank are read completely.
        small = [i for i, name in enumerate(whole.names) if before[name].numel() <= 4096]
        np.testing.assert_allclose(part.ratio[small], whole.ratio[small], rtol=1e-6)
    ends = [np.load(run / f"rank{r}" / "updates.npz")["ratio"] for r in (0, 1)]
    np.testing.assert_array_equal(*ends, err_msg="ranks must agree")


@pytest.mark.launch
def test_replicated_tensor_is_counted_once(run):
    for rank in (0, 1):
        found = np.load(run / f"rank{rank}" / "replicated.npz")
        assert found["count"].tolist() == [6.0]
        assert found["mean"].tolist() == [1.5]


@pytest.mark.launch
def test_one_collective_per_observation_on_every_rank(run):
    for rank in (0, 1):
        calls = np.load(run / f"rank{rank}" / "replicated.npz")["calls"]
        assert calls.tolist() == [1] * len(calls)
