"""Two processes under DistributedDataParallel, each step against float64, compiled and with parameters left unused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.launch
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "ACCELERATE_USE_CPU": "1"}
    subprocess.run([*command, str(HERE / "ddp_worker.py"), str(folder)], check=True, env=environment)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    "case",
    ["accumulation", "unused", "unused and accumulation", "compiled", "compiled and accumulation", "fsdp1"],
)
def test_every_step_is_what_float64_computes(outcome, case):
    for rank in (0, 1):
        assert outcome[rank][case] == "right", outcome[rank][case]
