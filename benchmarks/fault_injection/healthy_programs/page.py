"""The page that holds every healthy program with what training health said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "healthy_programs.md"


def page(rows: list[dict[str, Any]], summary: str) -> str:
    """The page as Markdown.

    Args:
        rows: Results, one per program.
        summary: Numbers over all of them, as the command prints them.
    """
    lines = [
        "# Healthy programs",
        "",
        "Small complete trainings as people write them, each with a score of its own that shows that it learned.",
        "A finding on one of them is a false alarm. Rules were written with an eye on the programs of the group",
        "`tuning` only; those that are `held_out` are other models or tasks. Errors and warnings are told at once;",
        "notes go to the file and the end report alone. `python -m benchmarks.fault_injection.healthy_programs` runs",
        "them, each in a process of its own on one CPU thread with seed 0, and writes this page.",
        "",
        "```",
        summary,
        "```",
        "",
        "| program | group | what it is | score | samples | findings |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| `{row['program']}` | {row['group']} | {row.get('purpose', '')} | {_outcome(row)} |")
    return "\n".join(lines) + "\n"


def _outcome(row: dict[str, Any]) -> str:
    for key in ("skipped", "failed"):
        if key in row:
            return f"{key}: {row[key]} | | "
    score = row["score"]
    sign = "≥" if score["higher"] else "≤"
    reached = f"{score['name']} {score['value']:.4g} ({sign} {score['bound']:.4g})"
    if not row["healthy"]:
        reached += ", not reached: does not count"
    findings = "; ".join(f"{f['severity']} `{f['rule']}`" for f in row["findings"]) or "none"
    return f"{reached} | {'+'.join(map(str, row['samples']))} | {findings}"
