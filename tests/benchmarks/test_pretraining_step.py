"""The pre-training benchmark end to end, on a size that takes seconds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretraining_step.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("pretraining_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_arms_have_the_same_losses_and_sizes_add_up(benchmark, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "result.json"
    common = ["--steps", "1", "--rounds", "1", "--threads", "1", "--output", str(output)]
    for size, padding in (("1/64/2/16", "0"), ("1/64/2/24", "0.3")):
        monkeypatch.setattr(sys, "argv", ["pretraining_step.py", "--sizes", size, "--padding", padding, *common])
        benchmark.main()
    results = json.loads(output.read_text())["results"]
    assert [result["size"] for result in results] == ["1/64/2/16", "1/64/2/24"]
    assert results[0]["padding"] == 0 and 0 < results[1]["padding"] < 0.6
    for result in results:
        ours = result["arms"]["bert_toolkit"]
        assert len(ours["losses"]) == 4 and ours["largest_loss_difference"] < 1e-5
        assert ours["seconds_per_step"] > 0 and ours["mfu"] > 0
    assert capsys.readouterr().out.count("| bert_toolkit |") == 3  # one row, then both


def test_padding_share_is_what_was_asked_for(benchmark) -> None:
    rows = benchmark.examples(400, 512, 0.5)
    share = 1 - sum(int(row["attention_mask"].sum()) for row in rows) / (400 * 512)
    assert share == pytest.approx(0.5, abs=0.04)
    for row in rows:
        real, chosen = int(row["attention_mask"].sum()), row["labels"] != -100
        assert chosen.sum() == max(1, round(0.15 * real)) and not chosen[real:].any() and not chosen[0]
