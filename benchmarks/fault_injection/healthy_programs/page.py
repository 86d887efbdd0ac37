"""What the results say: numbers for the terminal, and the page that holds every healthy program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fault_injection.healthy_programs.program import Group

PAGE = Path(__file__).parents[2] / "healthy_programs.md"
SEVERITIES = ("error", "warning", "note")
Row = dict[str, Any]


def alarms(row: Row) -> list[Row]:
    """Findings of a row that a person is told."""
    return [finding for finding in row.get("findings", ()) if finding["severity"] != "note"]


def table(rows: Sequence[Row]) -> list[str]:
    """Numbers of programs, healthy ones and those with a finding of each severity, by group."""
    lines = [
        "| group | programs | run to the end | reached their score | with an error | with a warning | notes only |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in Group:
        chosen = [row for row in rows if row["group"] == group.value]
        healthy = [row for row in chosen if row.get("healthy")]
        worst = Counter(
            next((s for s in SEVERITIES if any(f["severity"] == s for f in row["findings"])), "") for row in healthy
        )
        counts = " | ".join(str(worst[severity]) for severity in SEVERITIES)
        done = sum("findings" in row for row in chosen)
        lines.append(f"| {group.value.replace('_', ' ')} | {len(chosen)} | {done} | {len(healthy)} | {counts} |")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """How many programs there were and what was said about them, for the terminal."""
    healthy = [row for row in rows if row.get("healthy")]
    found = Counter(f"{f['rule']} ({f['severity']})" for row in healthy for f in row["findings"])
    lines = [*table(rows), *(f"{count} x {rule}" for rule, count in found.most_common())]
    for key in ("skipped", "failed"):
        if names := [row["program"] for row in rows if key in row]:
            lines.append(f"{len(names)} {key}: {', '.join(names)}")
    if sick := [row["program"] for row in rows if row.get("healthy") is False]:
        lines.append(f"{len(sick)} did not reach their own score and do not count: {', '.join(sick)}")
    return "\n".join(lines)


def page(rows: Sequence[Row], first: Sequence[Row]) -> str:
    """The page as Markdown.

    Args:
        rows: Results, one per program.
        first: Rows of the first run of all programs, with the rules of that day.
    """
    about = {
        name: ", ".join(sorted({row[name] for row in rows if name in row})) for name in ("date", "machine", "versions")
    }
    lines = [
        "# Healthy programs",
        "",
        "Small complete trainings as people write them, each with a score of its own that shows that it learned: a",
        "finding on one of them is a false alarm. Errors and warnings are told at once; notes (unused poolers, idle",
        "experts, what is often meant) go to the file and the end report alone.",
        "",
        "`python -m benchmarks.fault_injection.healthy_programs --cola path/to/cola/raw "
        "--newsgroups path/to/20news.tar.gz`",
        "runs them, each in a process of its own on one CPU thread with seed 0, and writes this page. With",
        "`--histories FOLDER --rejudge` the rules of today judge what was sampled when a program ran.",
        f"Run on {about['date']} on {about['machine']} with {about['versions']}.",
        "",
        *table(rows),
        "",
        "Rules were written with an eye on the programs of the group `tuning` only. Those that are `held out` are",
        "other models or tasks; one whose alarm led to a change of a rule is counted as tuning from then on.",
        "",
        "## Alarms",
        "",
        "| program | group | alarm | what it says |",
        "|---|---|---|---|",
        *(
            f"| `{row['program']}` | {row['group'].replace('_', ' ')} | {f['severity']} `{f['rule']}` | {f['seen']} |"
            for row in rows
            if row.get("healthy")
            for f in alarms(row)
        ),
    ]
    if not any(alarms(row) for row in rows if row.get("healthy")):
        lines.append("| none | | | |")
    lines += [*_first_look(rows, first), "", "## Each program", ""]
    lines += ["| program | group | what it is | score | samples | findings |", "|---|---|---|---|---|---|"]
    for row in rows:
        group = row["group"].replace("_", " ")
        lines.append(f"| `{row['program']}` | {group} | {row.get('purpose', '')} | {_outcome(row)} |")
    return "\n".join(lines) + "\n"


def _first_look(rows: Sequence[Row], first: Sequence[Row]) -> list[str]:
    """What the rules said before they were changed for it; some programs were changed as well."""
    groups = {row["program"]: row["group"] for row in rows}
    lines = [
        "",
        "## The first run",
        "",
        "What the rules said when all programs ran together for the first time, before rules were changed for it.",
        "`Learned` is whether the program reached its own score then; those that did not were given more steps or",
        "another rate afterwards, so that they count. About fifteen programs were changed after that run. The table",
        "at the top is a second training of all of them, with rules that had grown by those on what a model must",
        "not see (`padding_matters` and the like): it brought one more alarm, on `electra`, for which that rule was",
        "changed and the program trained again. What changed in rules later was judged on the samples of that",
        "training.",
        "",
        *table(first),
        "",
        "| program | group then | group now | learned | alarms |",
        "|---|---|---|---|---|",
    ]
    for row in first:
        if told := "; ".join(f"{f['severity']} `{f['rule']}`" for f in alarms(row)):
            now = groups.get(row["program"], "").replace("_", " ")
            learned = "yes" if row["healthy"] else "no"
            lines.append(f"| `{row['program']}` | {row['group'].replace('_', ' ')} | {now} | {learned} | {told} |")
    return lines


def _outcome(row: Row) -> str:
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
