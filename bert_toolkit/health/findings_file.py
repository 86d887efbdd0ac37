"""The file of findings, `monitoring/training_health.jsonl`: a line for each fault, and the verdict at the end."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.health.findings import Finding, Severity, as_json


@dataclass
class Case:
    """A fault that was found: the finding, kept up to date, and what it explains.

    Args:
        finding: As the rule last saw it, with the step at which it was first seen.
        samples: Number of samples that had been taken when it was first seen.
        last_step: Step at which it was last seen.
        symptom_of: Rule that explains it, None where it stands on its own.
    """

    finding: Finding
    samples: int
    last_step: int
    symptom_of: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the case as a line of the file holds it, without its kind of event."""
        return {
            **as_json(self.finding),
            "samples": self.samples,
            "last_step": self.last_step,
            "symptom_of": self.symptom_of,
        }


@dataclass(frozen=True)
class FindingsFile:
    """What a file of findings says.

    Args:
        cases: Rule -> its case, oldest first.
        verdict: The last line; None while the run goes on.
    """

    cases: dict[str, Case]
    verdict: str | None

    @classmethod
    def read(cls, path: Path, last_step: int | None = None) -> FindingsFile:
        """Read a file.

        Args:
            path: The file.
            last_step: Leave out what was found later; None for everything.

        Returns:
            The cases and the verdict.

        Raises:
            InputError: No such file, or a damaged one.
        """
        cases: dict[str, Case] = {}
        verdict = None
        try:
            for line in path.read_text(encoding="utf-8").split("\n"):
                entry: dict[str, Any] = json.loads(line) if line else {"event": "nothing"}
                if entry["event"] == "verdict":
                    verdict = entry.get("verdict")
                if entry["event"] == "finding" and (last_step is None or entry["step"] <= last_step):
                    cases[entry["rule"]] = _case(entry, last_step)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} holds no findings or is damaged: {reason_of(error)}") from error
        return cls(cases, verdict)


def _case(entry: dict[str, Any], last_step: int | None) -> Case:
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
    seen_last = entry["last_step"] if last_step is None else min(entry["last_step"], last_step)
    return Case(Finding(**fields), entry["samples"], seen_last, entry["symptom_of"])
