"""Faults of data-parallel runs, on two CPU processes; every rank comes to the same findings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("replicas_worker.py")
EXPECTED = {
    "none": [],
    "moved_on_one_rank": ["replicas_differ"],
    "not_wrapped": ["gradients_not_averaged"],
    "same_rows": ["ranks_share_rows"],
}


@pytest.mark.launch
@pytest.mark.parametrize("fault", EXPECTED)
def test_two_ranks(fault):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.run([*launcher, str(WORKER), fault], capture_output=True, text=True, timeout=300)
    lines = [line for line in process.stdout.splitlines() if line.startswith("[")]
    assert lines, process.stderr[-3000:]
    found = json.loads(lines[-1])
    assert found[0] == found[1]
    if fault == "not_wrapped":  # parameters drift apart as soon as the first step is taken
        assert set(found[0]) & {"gradients_not_averaged", "replicas_differ"}
    else:
        assert found[0] == EXPECTED[fault]
