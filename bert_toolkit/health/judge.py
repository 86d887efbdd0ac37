"""From what single rules see to what a person is told: one finding per fault, symptoms under their cause."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.findings_file import Case, FindingsFile
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules import RULES, Rule


class HealthJudge:
    """A judge that applies rules to a growing history and keeps one case per rule.

    Args:
        rules: Causes before symptoms.
    """

    def __init__(self, rules: Sequence[Rule] = RULES):
        self.rules = rules
        self.explains = {rule.name: rule.explained(rules) for rule in rules}
        self.cases: dict[str, Case] = {}

    @property
    def findings(self) -> list[Finding]:
        """The errors and warnings that nothing else explains, oldest first."""
        return [
            case.finding for case in self.cases.values() if case.symptom_of is None and case.finding.severity != "note"
        ]

    @property
    def notes(self) -> list[Finding]:
        """The notes on what is often meant and worth knowing: in the file and the report, never in the verdict."""
        return [case.finding for case in self.cases.values() if case.finding.severity == "note"]

    def symptoms(self, rule: str) -> list[Finding]:
        """Return what the finding of `rule` explains.

        Args:
            rule: Name of the rule.
        """
        return [case.finding for case in self.cases.values() if case.symptom_of == rule]

    def judge_start(self, history: HealthHistory) -> list[Finding]:
        """Look at what is known before the first step: settings, and weights as they are.

        Args:
            history: Without samples.

        Returns:
            Findings that are new and that nothing else explains.
        """
        return self._ask([rule for rule in self.rules if rule.needs in ("settings", "model")], history)

    def judge(self, history: HealthHistory) -> list[Finding]:
        """Look at the newest sample.

        Args:
            history: All samples so far.

        Returns:
            Findings that are new and that nothing else explains.
        """
        return self._ask(self.rules, history)

    def _ask(self, rules: Sequence[Rule], history: HealthHistory) -> list[Finding]:
        step = history.now
        new: list[str] = []
        for rule in rules:
            finding = rule(history)
            if finding is None:
                continue
            known = self.cases.get(finding.rule)
            if known is None:
                self.cases[finding.rule] = Case(finding, len(history), step)
                new.append(finding.rule)
            else:
                if known.finding.severity == "note" and finding.severity != "note":
                    self.cases[finding.rule] = Case(finding, len(history), step)
                    new.append(finding.rule)
                    continue
                # What shows the same later and elsewhere follows from the first: the place stays.
                here, there = set(known.finding.parameters), set(finding.parameters)
                if here == there or here & there:
                    known.finding = dataclasses.replace(known.finding, value=finding.value, seen=finding.seen)
                known.last_step = step
        for cause, case in self.cases.items():
            if case.finding.severity == "note":
                continue
            for symptom in self.explains.get(cause, frozenset()) & self.cases.keys() - {cause}:
                if self.cases[symptom].symptom_of is None and self.cases[cause].symptom_of is None:
                    self.cases[symptom].symptom_of = cause
        told = [self.cases[rule] for rule in new]
        return [case.finding for case in told if case.symptom_of is None and case.finding.severity != "note"]

    def verdict(self, history: HealthHistory) -> str:
        """Return one line on the run so far.

        Args:
            history: All samples so far.
        """
        seen = (
            f"{len(history)} sample{'s' * (len(history) != 1)} up to step {int(history.step[-1])}"
            if len(history)
            else "no samples"
        )
        if not self.findings:
            return f"Training health: no fault found in {seen}."
        faults = "; ".join(f"{f.rule} since step {f.step} ({f.where})" for f in self.findings)
        return f"Training health: {len(self.findings)} fault{'s' * (len(self.findings) > 1)} in {seen}: {faults}."

    def report(self) -> list[dict[str, Any]]:
        """Return everything that was found, symptoms and notes included, as JSON can hold it."""
        return [case.as_json() for case in self.cases.values()]

    def load(self, path: Path, last_step: int) -> None:
        """Take over what an interrupted run had found up to `last_step`.

        Args:
            path: The file of findings.
            last_step: The step at which the run goes on.

        Raises:
            InputError: No such file, or a damaged one; the cases are then as they were.
        """
        self.cases |= FindingsFile.read(path, last_step).cases
