"""In two processes, under DDP and under FSDP2, the callbacks give what one process gives on the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bert_toolkit.monitoring import GradientFlowRecord, UpdateRatioRecord
from bert_toolkit.monitoring.record_file import load_records

pytestmark = pytest.mark.launch
WORKER = Path(__file__).parent / "two_processes_worker.py"


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def runs(request, tmp_path_factory):
    """Folders of a run in one process and of a run in two."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=31,
        num_labels=3,
        hidden_size=18,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=33,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "checkpoint")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [sys.executable, *launcher, str(WORKER), str(folder / name), request.param]
        subprocess.run(command, check=True, env=environment)
    return folder / "one", folder / "two"


@pytest.mark.parametrize("rank", [0, 1])
def test_values_equal_those_of_one_process_on_the_joined_batch(runs, rank):
    one, two = runs
    for expected, found in zip(
        load_records(one / "rank0" / "gradients.npz", GradientFlowRecord),
        load_records(two / f"rank{rank}" / "gradients.npz", GradientFlowRecord),
        strict=True,
    ):
        assert found.step == expected.step and found.names == expected.names
        assert found.clip_coefficient == pytest.approx(expected.clip_coefficient, rel=1e-5)
        assert expected.clip_coefficient < 0.9, "this run must clip"
        # Gradients of key biases are zero but for rounding.
        noise = 1e-5 * expected.max.max()
        for statistic in ("mean", "max", "std"):
            np.testing.assert_allclose(getattr(found, statistic), getattr(expected, statistic), rtol=1e-4, atol=noise)
        real = expected.max > noise
        np.testing.assert_allclose(found.zero_share[real], expected.zero_share[real], atol=1e-3)
        np.testing.assert_array_equal(found.count, expected.count)
    for expected, found in zip(
        load_records(one / "rank0" / "updates.npz", UpdateRatioRecord),
        load_records(two / f"rank{rank}" / "updates.npz", UpdateRatioRecord),
        strict=True,
    ):
        np.testing.assert_allclose(found.update_norm, expected.update_norm, rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(found.parameter_norm, expected.parameter_norm, rtol=1e-5, atol=1e-9)


def test_only_rank_0_writes(runs):
    for folder in runs:
        files = sorted(p.name for p in (folder / "run" / "monitoring").iterdir())
        assert files == [
            "gradient_flow.npz",
            "gradients.png",
            "gradients_over_time.png",
            "run.json",
            "update_ratio.npz",
            "update_ratios.png",
            "update_ratios_over_time.png",
        ]
        events = [p.parent.name for p in (folder / "run" / "runs").rglob("events.out.tfevents.*")]
        assert len(events) == 2 and "monitoring" in events, "Trainer's own file and one that both callbacks share"
