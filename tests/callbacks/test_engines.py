"""Two processes under DDP and FSDP2, each step against float64: bf16, accumulation, compiled, unused parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

pytestmark = pytest.mark.launch
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    config = BertConfig(
        vocab_size=31,
        num_labels=3,
        hidden_size=18,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=33,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "checkpoint")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "ACCELERATE_USE_CPU": "1"}
    subprocess.run([*command, str(HERE / "engines_worker.py"), str(folder)], check=True, env=environment)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    "case",
    [
        "inside backward",
        *("accumulation", "unused", "unused and accumulation", "compiled", "compiled and accumulation", "fsdp1"),
        *(
            f"{way} {precision} accumulation {accumulation}"
            for way in ("ddp", "fsdp2", "compiled ddp")
            for precision in ("fp32", "bf16")
            for accumulation in (1, 3)
        ),
    ],
)
def test_every_step_is_what_float64_computes(outcome, case):
    for rank in (0, 1):
        assert outcome[rank][case] == "right", outcome[rank][case]
