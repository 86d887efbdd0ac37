"""What was sampled of a program is judged again as it was judged in training; the page keeps groups apart."""

import pytest

from benchmarks.fault_injection import stored_samples
from benchmarks.fault_injection.healthy_programs.__main__ import run_program
from benchmarks.fault_injection.healthy_programs.catalogue import PROGRAMS
from benchmarks.fault_injection.healthy_programs.page import page, table
from bert_toolkit.errors import InputError
from bert_toolkit.health.history import HealthHistory


@pytest.mark.parametrize("name", ["closure_of_lbfgs", "adversarial_pair", "three_steps"])
def test_stored_samples_are_judged_as_in_training(name, tmp_path):
    row = run_program(PROGRAMS[name], histories=tmp_path)
    assert "failed" not in row, row
    assert row["findings"] or name != "closure_of_lbfgs"  # its batch is always the same: a note
    forgotten = {**row, "findings": [], "symptoms": [], "rules": "others", "group": "another"}
    assert run_program(PROGRAMS[name], histories=tmp_path, known=forgotten) == row


def test_samples_of_another_program_are_refused(tmp_path):
    run_program(PROGRAMS["closure_of_lbfgs"], histories=tmp_path)
    model = PROGRAMS["parity"]
    with pytest.raises(InputError, match="another model"):
        stored_samples.rejudge(HealthHistory(_model_of(model, tmp_path), 10), tmp_path / "closure_of_lbfgs.0.npz")


def _model_of(program, folder):
    from benchmarks.fault_injection.healthy_programs.program import Setup

    return program(Setup(folder)).model


def rows():
    def row(name, group, healthy, *severities):
        findings = [{"severity": s, "rule": f"rule_of_{s}", "seen": "something"} for s in severities]
        score = {"name": "loss", "value": 1.0, "bound": 2.0, "higher": False}
        return {
            "program": name,
            "group": group,
            "healthy": healthy,
            "findings": findings,
            "score": score,
            "samples": [3],
        }

    return [
        row("a", "tuning", True, "note"),
        row("b", "tuning", False, "error"),
        row("c", "held_out", True, "warning", "note"),
        {"program": "d", "group": "held_out", "failed": "ValueError()"},
    ]


def test_numbers_of_each_group():
    assert table(rows())[2:] == ["| tuning | 2 | 2 | 1 | 0 | 0 | 1 |", "| held out | 2 | 1 | 1 | 0 | 1 | 0 |"]


def test_page_lists_alarms_of_healthy_programs_alone():
    text = page(rows(), [])
    alarms = text.split("## Alarms")[1].split("##")[0]
    assert "| `c` | held out | warning `rule_of_warning` |" in alarms
    assert "`a`" not in alarms and "`b`" not in alarms
    assert "failed: ValueError()" in text
