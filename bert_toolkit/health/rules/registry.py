"""What a rule is: a function of the history, with all that a person is told of it beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bert_toolkit.health.findings import Finding, Severity
from bert_toolkit.health.history import HealthHistory

Evidence = Literal["settings", "model", "inputs", "forward", "probe", "gradients", "updates", "ranks"]

# Groups of symptoms. A cause that names a group explains every rule in it.
COURSE = "course"  # how gradients and loss go on from step to step
OUTCOME = "outcome"  # what the training achieves
FLOW = "flow"  # which layers gradients reach
STEPS = "steps"  # how far the optimizer moves the weights
BEHAVIOR = "behavior"  # what outputs depend on


@dataclass(frozen=True)
class Rule:
    """A check of the newest sample, and what it means.

    Args:
        check: The function; gets the history, oldest sample first, and returns a finding or None.
        severity: `error` for a training that cannot do what it is meant to, `warning` for one that probably cannot,
            `note` for what is often meant.
        group: The group of symptoms that it belongs to, None for a cause.
        explains: Groups and names of rules whose findings follow from this one. Where two rules explain each other,
            the one seen first is the cause.
        needs: What of the history it looks at; it is not asked where that is not observed.
        cause: What usually causes it.
        remedy: What to change.
    """

    check: Callable[..., Finding | None]
    severity: Severity
    group: str | None
    explains: tuple[str, ...]
    needs: Evidence
    cause: str
    remedy: str

    def __reduce__(self) -> tuple[Callable[[str], Rule], tuple[str]]:
        """A copy of a rule is the rule: its function's name leads to the rule and not to the function."""
        return _named, (self.name,)

    @property
    def name(self) -> str:
        """The function's name, by which findings and the documentation know the rule."""
        return self.check.__name__

    @property
    def family(self) -> str:
        """The file of the rule, without its ending."""
        return self.check.__module__.rpartition(".")[2]

    def __call__(self, history: HealthHistory, **thresholds: float) -> Finding | None:
        """Look at the newest sample, with the thresholds that are the function's defaults or with others."""
        return self.check(history, **thresholds)

    def finding(
        self,
        history: HealthHistory,
        *,
        value: float,
        threshold: float,
        seen: str,
        parameters: Sequence[int] | np.ndarray = (),
        cause: str | None = None,
        remedy: str | None = None,
        severity: Severity | None = None,
    ) -> Finding:
        """The finding of this rule at the newest sample.

        Args:
            history: What was looked at.
            value: What was measured.
            threshold: What it should not pass.
            seen: The observation in words.
            parameters: Positions of the parameters concerned; none where the whole run is.
            cause: Where this case is known better than the rule's own text.
            remedy: Likewise.
            severity: Likewise.
        """
        return Finding(
            step=history.now,
            rule=self.name,
            parameters=tuple(history.names[p] for p in parameters),
            layers=tuple(dict.fromkeys(history.blocks[p] for p in parameters)),
            value=float(value),
            threshold=float(threshold),
            seen=seen,
            cause=cause or self.cause,
            remedy=remedy or self.remedy,
            severity=severity or self.severity,
        )

    def explained(self, rules: Sequence[Rule]) -> frozenset[str]:
        """Names of those of `rules` whose findings this one explains."""
        return frozenset(
            other.name
            for other in rules
            if other.name != self.name and (other.name in self.explains or other.group in self.explains)
        )


def _named(name: str) -> Rule:
    return next(rule for rule in RULES if rule.name == name)


RULES: list[Rule] = []
"""Every rule, causes before symptoms: the order in which the families are imported and written."""


def rule(
    *,
    needs: Evidence,
    cause: str,
    remedy: str,
    explains: tuple[str, ...] = (),
    group: str | None = None,
    severity: Severity = "error",
) -> Callable[[Callable[..., Finding | None]], Rule]:
    """Register the function below as a rule; see `Rule` for the arguments."""

    def register(check: Callable[..., Finding | None]) -> Rule:
        made = Rule(check, severity, group, explains, needs, cause, remedy)
        RULES.append(made)
        return made

    return register
