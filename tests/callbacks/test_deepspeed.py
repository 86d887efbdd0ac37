"""Under DeepSpeed two processes record what one float64 process computes, for every stage, precision and accumulation.

Skipped without the extra `deepspeed`.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed_cases import MAX_NORM, MEASURED, OVERFLOWING, REFUSED, SAMPLED, model_of, variant_of
from float64_oracle import Step, check_gradients, check_update, clip_coefficient, replay
from safetensors.torch import load_file

from bert_toolkit.monitoring import GradientFlowRecord, UpdateRatioRecord
from bert_toolkit.monitoring.record_file import load_records

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.launch
HERE = Path(__file__).parent
RANKS = (0, 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all cases, trained one after the other by the same two processes."""
    folder = tmp_path_factory.mktemp("deepspeed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    subprocess.run([*command, str(HERE / "deepspeed_worker.py"), str(folder)], check=True, env=environment, cwd=HERE)
    return folder


def records(folder: Path, rank: int) -> tuple[list[GradientFlowRecord], list[UpdateRatioRecord]]:
    flow = load_records(folder / f"rank{rank}" / "gradients.npz", GradientFlowRecord)
    update = load_records(folder / f"rank{rank}" / "updates.npz", UpdateRatioRecord)
    assert [r.step for r in flow] == [r.step for r in update] == [1, 2, 3]
    return flow, update


def seen(folder: Path, step: int, what: str, rank: int = 0) -> dict[str, torch.Tensor]:
    """What DeepSpeed itself held, by name of the parameter."""
    tensors = load_file(folder / f"rank{rank}" / "seen.safetensors")
    prefix = f"{step}/{what}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def in_order(case: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name, p in model_of(case).named_parameters() if p.requires_grad}


def without_unused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("unused")}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("case", MEASURED)
def test_gradients_that_deepspeed_uses(runs, case, rank):
    """To 1e-6 the statistics of DeepSpeed's own gradients, clipped in float64."""
    for record in records(runs / case, rank)[0]:
        found = in_order(case, seen(runs / case, record.step, "gradient"))
        gradients = {name: gradient.double() for name, gradient in without_unused(found).items()}
        coefficient = clip_coefficient(gradients, limit(case))
        assert coefficient < 0.9 or limit(case) == 0.0, "this run must clip"
        assert record.clip_coefficient == pytest.approx(coefficient, rel=1e-6)
        check_gradients(record, gradients, coefficient, rtol=1e-6)
        assert record.nonfinite == () and not record.skipped
        assert set(record.missing) == set(found) - set(gradients)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("case", [case for case in MEASURED if "fp32" in case])
def test_gradients_of_one_float64_process(runs, case, rank):
    """The same from the rows of both processes alone."""
    for record in records(runs / case, rank)[0]:
        step = Step(in_order(case, seen(runs / case, record.step, "before")))
        for batch in range(int(case.split("accumulation")[1][0])):
            parts = [
                {k: seen(runs / case, record.step, f"input {k} {batch}", r)[""] for k in ("input_ids", "labels")}
                for r in RANKS
            ]
            step.inputs.append({k: torch.cat([part[k] for part in parts]) for k in parts[0]})
        model = model_of(case)
        step.before |= {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
        gradients = replay(model, step)
        coefficient = clip_coefficient(gradients, limit(case))
        assert record.clip_coefficient == pytest.approx(coefficient, rel=1e-6)
        check_gradients(record, gradients, coefficient, rtol=1e-6, of_fp32=True)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("case", MEASURED)
def test_updates_of_the_parameters_that_deepspeed_steps(runs, case, rank):
    for record in records(runs / case, rank)[1]:
        step = Step(in_order(case, seen(runs / case, record.step, "before")))
        step.after = in_order(case, seen(runs / case, record.step, "after"))
        assert record.names == tuple(step.before)
        check_update(record, step, rtol=1e-6)
        used = [not name.startswith("unused") for name in record.names]
        assert (record.changed_share[used] > 0).all() and record.learning_rate == pytest.approx(1e-2)


@pytest.mark.parametrize("case", SAMPLED)
def test_sampled_updates(runs, case):
    """Small parameters are read whole, so that nothing is estimated here."""
    for record in records(runs / case, 0)[1]:
        step = Step(in_order(case, seen(runs / case, record.step, "before")))
        step.after = in_order(case, seen(runs / case, record.step, "after"))
        check_update(record, step, rtol=1e-6)


@pytest.mark.parametrize("case", OVERFLOWING)
def test_a_step_whose_gradients_are_not_finite(runs, case):
    """ZeRO skips it; without ZeRO the weights are lost. No loss scaler is to blame, so nothing counts as skipped."""
    flow, update = records(runs / case, 0)
    assert [record.step for record in flow if record.nonfinite][0] == 2
    assert set(flow[1].nonfinite) == set(flow[1].names) and math.isnan(flow[1].clip_coefficient)
    assert not any(record.skipped for record in (*flow, *update))
    assert update[0].changed_share.all()
    if "zero0" not in case:
        assert not update[1].update_norm.any() and update[1].parameter_norm.all()
        assert not flow[2].nonfinite and update[2].changed_share.all()
    for rank in RANKS:
        assert "nonfinite" in (runs / case / f"rank{rank}" / "verdict.txt").read_text()


@pytest.mark.parametrize("case", REFUSED)
def test_one_notice_where_values_are_out_of_sight(runs, case):
    for rank in RANKS:
        notices = (runs / case / f"rank{rank}" / "notices.txt").read_text()
        for title in ("Gradient flow", "Update ratios"):
            assert notices.count(f"{title}: nothing is observed. ") == (rank == 0)
        assert (REFUSED[case] in notices) == (rank == 0)
        assert not (runs / case / f"rank{rank}" / "gradients.npz").exists()


@pytest.mark.parametrize("case", [case for case in MEASURED if "unused" not in case])
def test_health_finds_nothing_in_a_healthy_run(runs, case):
    for rank in RANKS:
        verdict = (runs / case / f"rank{rank}" / "verdict.txt").read_text()
        assert verdict == "Training health: no fault found in 3 samples up to step 3."
        assert not (runs / case / f"rank{rank}" / "notices.txt").read_text()


def limit(case: str) -> float:
    return 0.0 if variant_of(case) == "unclipped" else MAX_NORM


@pytest.mark.parametrize("case", MEASURED)
def test_ranks_agree(runs, case):
    for one, two in zip(*(records(runs / case, rank)[0] for rank in RANKS), strict=True):
        for statistic in ("count", "mean", "max", "std", "zero_share"):
            np.testing.assert_array_equal(getattr(one, statistic), getattr(two, statistic))
