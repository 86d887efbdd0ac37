"""From what single rules see to what a person is told: one finding per fault, symptoms under their cause."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from bert_toolkit.errors import InputError
from bert_toolkit.health.findings import Finding, Severity, as_json
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules import RULES, Rule


@dataclass
class Case:
    """A fault that was found: the finding, kept up to date, and what it explains.

    Args:
        finding: as the rule last saw it, with the step at which it was first seen.
        samples: number of samples that had been taken when it was first seen.
        last_step: step at which it was last seen.
        symptom_of: rule that explains it, None where it stands on its own.
    """

    finding: Finding
    samples: int
    last_step: int
    symptom_of: str | None = None


class HealthJudge:
    """Apply rules to a growing history and keep one case per rule.

    Args:
        rules: causes before symptoms.
    """

    def __init__(self, rules: Sequence[Rule] = RULES):
        self.rules = rules
        self.explains = {rule.name: rule.explained(rules) for rule in rules}
        self.cases: dict[str, Case] = {}

    @property
    def findings(self) -> list[Finding]:
        """Errors and warnings that nothing else explains, oldest first."""
        return [
            case.finding for case in self.cases.values() if case.symptom_of is None and case.finding.severity != "note"
        ]

    @property
    def notes(self) -> list[Finding]:
        """What is often meant and worth knowing: in the file and the report, never in the verdict."""
        return [case.finding for case in self.cases.values() if case.finding.severity == "note"]

    def symptoms(self, rule: str) -> list[Finding]:
        """What the finding of `rule` explains."""
        return [case.finding for case in self.cases.values() if case.symptom_of == rule]

    def judge_start(self, history: HealthHistory) -> list[Finding]:
        """Look at what is known before the first step: settings, and weights as they are.

        Args:
            history: without samples.

        Returns:
            Findings that are new and that nothing else explains.
        """
        return self._ask([rule for rule in self.rules if rule.needs in ("settings", "model")], history)

    def judge(self, history: HealthHistory) -> list[Finding]:
        """Look at the newest sample.

        Args:
            history: all samples so far.

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
        """One line on the run so far."""
        seen = f"{len(history)} samples up to step {int(history.step[-1])}" if len(history) else "no samples"
        if not self.findings:
            return f"Training health: no fault found in {seen}."
        faults = "; ".join(f"{f.rule} since step {f.step} ({f.where})" for f in self.findings)
        return f"Training health: {len(self.findings)} fault{'s' * (len(self.findings) > 1)} in {seen}: {faults}."

    def report(self) -> list[dict[str, Any]]:
        """Everything that was found, as JSON can hold it."""
        return [
            {
                **as_json(case.finding),
                "samples": case.samples,
                "last_step": case.last_step,
                "symptom_of": case.symptom_of,
            }
            for case in self.cases.values()
        ]

    def load(self, path: Path, last_step: int) -> None:
        """Take over what an interrupted run had found up to `last_step`.

        Raises:
            InputError: no such file, or a damaged one; the cases are then as they were.
        """
        cases: dict[str, Case] = {}
        try:
            for line in path.read_text(encoding="utf-8").split("\n"):
                entry: dict[str, Any] = json.loads(line) if line else {"event": "nothing"}
                if entry["event"] == "finding" and entry["step"] <= last_step:
                    cases[entry["rule"]] = _case(entry, last_step)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} holds no findings or is damaged: {error}") from error
        self.cases |= cases


def _case(entry: dict[str, Any], last_step: int) -> Case:
    """A case of a file; raises ValueError, KeyError or TypeError where it is not one that was written."""
    fields = {field.name: entry[field.name] for field in dataclasses.fields(Finding)}
    if fields["severity"] not in get_args(Severity):
        raise ValueError(f"severity is none of {', '.join(get_args(Severity))}")
    for name in ("parameters", "layers"):
        if not isinstance(fields[name], list) or not all(isinstance(item, str) for item in fields[name]):
            raise TypeError(f"{name} is no list of names")
        fields[name] = tuple(fields[name])
    for name in ("value", "threshold"):
        fields[name] = math.nan if fields[name] is None else float(fields[name])
    texts = [fields[name] for name in ("rule", "seen", "cause", "remedy")]
    numbers = [fields["step"], entry["samples"], entry["last_step"]]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a value is of another type than was written")
    if entry["symptom_of"] is not None and not isinstance(entry["symptom_of"], str):
        raise TypeError("symptom_of is no name of a rule")
    return Case(Finding(**fields), entry["samples"], min(entry["last_step"], last_step), entry["symptom_of"])
