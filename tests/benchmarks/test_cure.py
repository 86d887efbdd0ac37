"""The benchmark that does what findings advise: it has a remedy for every rule that names a planted fault."""

import json
import sys

import pytest

from benchmarks.fault_injection import cure
from benchmarks.fault_injection.faults import FAULTS
from bert_toolkit.health.judge import RULES


def test_every_rule_that_names_a_planted_fault_has_a_remedy():
    assert {rule for fault in FAULTS.values() for rule in fault.rules} <= set(cure.REMEDIES)
    assert set(cure.REMEDIES) <= {rule.name for rule in RULES}


def test_frozen_layer_is_found_and_following_the_advice_cures(monkeypatch, tmp_path):
    results, page = tmp_path / "cure.jsonl", tmp_path / "cure.md"
    monkeypatch.setattr(cure, "PAGE", page)
    for words in (["run", "--only", "digits/layer_frozen"], ["report"]):
        monkeypatch.setattr(sys, "argv", ["cure", *words, "--results", str(results)])
        cure.main()
    (row,) = map(json.loads, results.read_text().splitlines())
    assert row["broken"] < cure.ENOUGH <= row["treated"]
    assert row["advice"] == ["frozen_layer"] and row["findings"] == []
    assert "following it cured 1" in page.read_text()


def test_rate_changes_by_what_the_text_says():
    class Said:
        remedy = "lower the learning rate 10 to 1000 times; warm up"

    assert cure.times(Said()) == pytest.approx(100)
    Said.remedy = "lower the learning rate"
    assert cure.times(Said()) == 10
