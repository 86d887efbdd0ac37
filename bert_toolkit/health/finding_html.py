"""A finding as HTML, for the page of a run and for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bert_toolkit.health.findings import Finding

COLORS = {"error": "#b3261e", "warning": "#b26a00", "note": "#5f6b7a"}
PARAMETERS_SHOWN = 50


def finding_html(finding: Finding, explains: Sequence[str] = (), last_step: int | None = None) -> str:
    """Return where, what, why, and what to change; everything that a run has written is shown as text.

    Args:
        finding: What was found.
        explains: Rules whose findings it explains.
        last_step: Step at which it was last seen, None where that is not known.

    Returns:
        An element.
    """
    rows = {
        "where": escape(finding.where),
        "seen": escape(f"{finding.seen} (value {finding.value:.3g}, threshold {finding.threshold:.3g})"),
        "cause": escape(finding.cause),
        "remedy": f"<strong>{escape(finding.remedy)}</strong>",
    }
    if explains:
        rows["explains"] = escape(", ".join(rule.replace("_", " ") for rule in explains))
    until = f" to {last_step}" if last_step is not None and last_step > finding.step else ""
    style = f"border-left: 4px solid {COLORS[finding.severity]}; padding: .4rem 1rem; margin-bottom: 1rem"
    title = f"{escape(finding.rule.replace('_', ' '))} ({finding.severity}, step {finding.step}{until})"
    listed = "".join(f"<li><code>{escape(name)}</code></li>" for name in finding.parameters[:PARAMETERS_SHOWN])
    rest = len(finding.parameters) - PARAMETERS_SHOWN
    listed += f"<li>and {rest} more</li>" if rest > 0 else ""
    names = f"<details><summary>{len(finding.parameters)} parameters</summary><ul>{listed}</ul></details>"
    told = "".join(
        f'<div style="display: flex"><span style="flex: 0 0 6rem; opacity: .65">{name}</span><span>{text}</span></div>'
        for name, text in rows.items()
    )
    return f'<div class="finding" style="{style}"><strong>{title}</strong>{told}{names if listed else ""}</div>'


def findings_html(verdict: str, findings: Sequence[str]) -> str:
    """Return a verdict and the findings behind it as HTML.

    Args:
        verdict: One line on the run.
        findings: Elements of `finding_html`.

    Returns:
        An element.
    """
    return f"<div><p>{escape(verdict)}</p>{''.join(findings)}</div>"
