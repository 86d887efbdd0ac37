"""The audit says what it found and never takes silence for safety; no network is used."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "audit_dependencies.py"
SAFE = {"name": "safe", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "own", "skip_reason": "own (1) not found"}


@pytest.fixture
def audit(monkeypatch):
    def run(packages, answers=True, output=None):
        module = runpy.run_path(str(SCRIPT))
        stdout = json.dumps({"dependencies": packages}) if output is None else output
        names = module["audit"].__globals__
        names["database_answers"] = lambda: answers
        names["subprocess"] = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout=stdout, stderr="trouble"))
        return module["audit"]("constraints.txt")

    return run


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([SAFE], 0, "1 of 1 versions checked, 0 known vulnerabilities"),
        ([SAFE, BAD], 1, "VULNERABLE: bad 2: CVE-1, fixed in 3"),
        ([SAFE, UNKNOWN], 1, "NOT CHECKED: own (1) not found"),
        ([UNKNOWN], 0, "NOTHING WAS CHECKED"),
    ],
)
def test_outcomes(audit, capsys, packages, status, said):
    assert audit(packages) == status
    assert said in "".join(capsys.readouterr())


def test_no_network_is_said_loudly(audit, capsys):
    assert audit([], answers=False) == 0
    assert "AUDIT SKIPPED" in capsys.readouterr().err


def test_failure_of_the_tool_is_no_success(audit, capsys):
    assert audit([], output="no JSON") == 2
    assert "trouble" in capsys.readouterr().err
