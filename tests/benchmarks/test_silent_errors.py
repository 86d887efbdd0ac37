"""Silent errors: each names rules that exist, and runs end to end on one process and on two."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.fault_injection.silent_errors import __main__ as command
from benchmarks.fault_injection.silent_errors import report
from benchmarks.fault_injection.silent_errors.errors import ERRORS, NOT_MET
from bert_toolkit.data.cola import SAMPLE_DIR
from bert_toolkit.health.rules import RULES


def test_every_named_rule_exists() -> None:
    named = {rule for error in ERRORS.values() for rule in error.rules}
    assert named <= {rule.name for rule in RULES}


def test_the_list_of_the_paper_is_covered_or_its_rest_explained() -> None:
    known = " ".join([*(error.source for error in ERRORS.values()), *NOT_MET])
    for error in (
        "Accelerate-2665",
        "Baichuan2-86",
        "DeepSpeed-1801",
        "DeepSpeed-5794",
        "Lightning-Thunder-725",
        "MMPretrain-702",
        "PyTorch-104336",
        "PyTorch-115607",
        "PyTorch-51800",
        "PyTorch-84803",
        "PyTorch-96600",
        "PyTorch-Forum-84911",
        "StackOverflow-60335387",
        "StackOverflow-67180955",
        "Transformers-17877",
        "Transformers-23723",
        "Transformers-33844",
        "Transformers-34204",
        "x-jxmnop",
    ):
        assert error in known


@pytest.fixture
def call(newsgroups_archive: Path, tmp_path: Path, monkeypatch):
    results = tmp_path / "silent_errors.jsonl"
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")

    def run(name: str, *flags: str) -> list[dict]:
        sources = ["--cola", str(SAMPLE_DIR), "--newsgroups", str(newsgroups_archive)]
        monkeypatch.setattr(sys, "argv", ["silent_errors", name, *sources, "--results", str(results), *flags])
        command.main()
        return [json.loads(line) for line in results.read_text().splitlines()]

    return run


def test_an_error_is_found_and_a_healthy_run_is_not(call, tmp_path: Path) -> None:
    wanted = ["--only", "gradients_never_cleared|schedule_ends_early", "--seeds", "0"]
    rows = call("run", *wanted)
    assert [row["name"] for row in rows] == ["gradients_never_cleared", "schedule_ends_early"]
    assert all(report.named(row) for row in rows)
    assert call("run", *wanted) == rows
    call("report")
    page = (tmp_path / "page.md").read_text()
    assert "| gradients_never_cleared | StackOverflow-60335387: no zero_grad() | 1 | 1 of 1 | 1 of 1 |" in page


@pytest.mark.launch
def test_errors_of_ranks_run_on_two_processes(call) -> None:
    (row,) = call("run", "--only", "wrapper_bypassed", "--seeds", "0")
    assert row["ranks"] == 2
    assert report.named(row)
