"""What training health tells: findings, as a person reads them and as files hold them."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Args:
        step: Optimizer step at which it was first seen.
        rule: Name of the rule.
        parameters: Parameters concerned, in the model's order; empty where the whole run is.
        layers: Blocks of these parameters, as the monitoring names them.
        value: What was measured.
        threshold: What it should not pass.
        seen: The observation in words.
        cause: What usually causes it.
        remedy: What to change.
        severity: `error`, `warning`, or `note` for what is often meant.
    """

    step: int
    rule: str
    parameters: tuple[str, ...]
    layers: tuple[str, ...]
    value: float
    threshold: float
    seen: str
    cause: str
    remedy: str
    severity: Severity = "error"

    @property
    def where(self) -> str:
        """The place, short enough for a line."""
        if not self.parameters:
            return "whole run"
        rest = len(self.parameters) - 1
        layers = ", ".join(self.layers[:4]) + (f" and {len(self.layers) - 4} more" if len(self.layers) > 4 else "")
        return f"{layers}: {self.parameters[0]}" + (f" and {rest} more parameters" if rest else "")

    def _repr_html_(self) -> str:
        from bert_toolkit.health.finding_html import finding_html

        return finding_html(self)


def as_json(finding: Finding) -> dict[str, Any]:
    """Return the finding with lists for tuples and None for numbers that JSON has no word for.

    Args:
        finding: The finding.
    """
    return {
        key: list(value)
        if isinstance(value, tuple)
        else None
        if value != value or value in (math.inf, -math.inf)
        else value
        for key, value in dataclasses.asdict(finding).items()
    }


def message(finding: Finding, symptoms: Sequence[Finding] = ()) -> str:
    """Return the block of lines that a person reads in the log.

    Args:
        finding: What was found.
        symptoms: Findings that it explains.
    """
    lines = [
        f"Training health, step {finding.step}: {finding.rule.replace('_', ' ')}",
        f"  where      {finding.where}",
        f"  seen       {finding.seen} (value {finding.value:.3g}, threshold {finding.threshold:.3g})",
        f"  cause      {finding.cause}",
        f"  remedy     {finding.remedy}",
    ]
    if symptoms:
        lines.append("  explains   " + ", ".join(s.rule.replace("_", " ") for s in symptoms))
    return "\n".join(lines)
