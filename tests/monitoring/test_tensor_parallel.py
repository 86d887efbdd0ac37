"""Tensor parallelism: two processes see the statistics of whole tensors, as one float64 process computes them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensor_parallel_model import MAX_NORM, OWN, PLANNED, STEPS, Net, batches, save_llama, token_batches
from torch import Tensor
from transformers import AutoModelForCausalLM

from bert_toolkit.monitoring import GradientFlowRecord, UpdateRatioRecord
from bert_toolkit.monitoring.record_file import load_records

pytestmark = pytest.mark.launch
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensor_parallel")
    save_llama(folder / "llama")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    subprocess.run([*command, str(HERE / "tensor_parallel_worker.py"), str(folder)], check=True, env=environment)
    return folder


def float64_gradients(run: Path, which: str, before: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    model = Net() if which == "own" else AutoModelForCausalLM.from_pretrained(run / "llama")
    model.load_state_dict(before, strict=False)
    model.double()
    if which == "own":
        x, y = batches()[step - 1]
        torch.nn.functional.mse_loss(model(x.double()), y.double()).backward()
    else:
        ids = token_batches()[step - 1]
        model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def around(run: Path, rank: int, which: str, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Whole parameters before and after a step."""
    tensors = load_file(run / f"rank{rank}" / which / "whole.safetensors")
    parts = (f"{step}/before/", f"{step}/after/")
    return tuple({k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in parts)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("which", ["own", "transformers"])
def test_gradients(run, which, rank):
    records = load_records(run / f"rank{rank}" / which / "gradients.npz", GradientFlowRecord)
    assert len(records) == STEPS
    for record in records:
        raw = float64_gradients(run, which, around(run, rank, which, record.step)[0], record.step)
        assert set(record.names) == set(raw) and record.missing == ()
        coefficient = MAX_NORM / (math.sqrt(sum(float(g.square().sum()) for g in raw.values())) + 1e-6)
        assert record.clip_coefficient == pytest.approx(coefficient, rel=1e-5) and coefficient < 0.9
        for i, name in enumerate(record.names):
            magnitude = raw[name].abs() * coefficient
            noise = 1e-6 * float(magnitude.max())
            assert record.count[i] == magnitude.numel()
            assert record.mean[i] == pytest.approx(float(magnitude.mean()), rel=1e-5, abs=noise)
            assert record.max[i] == pytest.approx(float(magnitude.max()), rel=1e-5, abs=noise)
            assert record.std[i] == pytest.approx(float(magnitude.std(correction=0)), rel=1e-5, abs=noise)
            assert record.zero_share[i] == pytest.approx(float((magnitude == 0).double().mean()), abs=1e-12)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("which", [*OWN, "transformers", *PLANNED])
def test_gradients_that_the_optimizer_uses(run, which, rank):
    tensors = load_file(run / f"rank{rank}" / which / "whole.safetensors")
    for record in load_records(run / f"rank{rank}" / which / "gradients.npz", GradientFlowRecord):
        for i, name in enumerate(record.names):
            magnitude = tensors[f"{record.step}/gradient/{name}"].double().abs()
            assert record.mean[i] == pytest.approx(float(magnitude.mean()), rel=1e-6)
            assert record.max[i] == pytest.approx(float(magnitude.max()), rel=1e-6)
            assert record.std[i] == pytest.approx(float(magnitude.std(correction=0)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("which", [*OWN, "transformers", *PLANNED])
@pytest.mark.parametrize("file", ["updates", "samples"])
def test_updates(run, which, rank, file):
    for record in load_records(run / f"rank{rank}" / which / f"{file}.npz", UpdateRatioRecord):
        before, after = around(run, rank, which, record.step)
        for i, name in enumerate(record.names):
            old, new = before[name].double(), after[name].double()
            if file == "samples" and old.numel() > 4096:
                continue
            assert record.parameter_norm[i] == pytest.approx(float(old.norm()), rel=1e-6)
            assert record.update_norm[i] == pytest.approx(float((new - old).norm()), rel=1e-6)
            assert record.changed_share[i] == float((new != old).double().mean())


def test_a_gradient_that_nobody_has_summed_yet(run):
    whole = 2 * torch.arange(6.0) - 5.0
    for rank in (0, 1):
        (record,) = load_records(run / f"rank{rank}" / "partial.npz", GradientFlowRecord)
        assert record.count.tolist() == [6.0]
        assert record.mean[0] == pytest.approx(float(whole.abs().mean()), rel=1e-6)
        assert record.max[0] == float(whole.abs().max())
