"""From the results file to benchmarks/silent_errors.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fault_injection.silent_errors.errors import ERRORS, NOT_MET, STEPS, WHY_MISSED

PAGE = Path(__file__).parents[2] / "silent_errors.md"
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Rows of the results file; none where there is no file yet."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def alarms(row: Row) -> list[Row]:
    """Findings that stand on their own and are more than a note."""
    return [f for f in row["findings"] if f["symptom_of"] is None and f["severity"] != "note"]


def named(row: Row) -> list[Row]:
    """Alarms that name the cause of the row's error."""
    return [finding for finding in alarms(row) if finding["rule"] in ERRORS[row["name"]].rules]


def fraction(values: list[bool]) -> str:
    """How many are true, as a table shows it."""
    return f"{sum(values)} of {len(values)}" if values else "-"


def report(results: Path) -> None:
    """Write benchmarks/silent_errors.md."""
    rows = read_rows(results)
    broken = [row for row in rows if row["name"] != "healthy"]
    healthy = [row for row in rows if row["name"] == "healthy"]
    visible = [row for row in broken if not ERRORS[row["name"]].unseen]
    first = [min(f["samples"] for f in alarms(row)) for row in visible if alarms(row)]
    lines = [
        "# Silent errors",
        "",
        "Made by `python -m benchmarks.fault_injection.silent_errors run` and `report`. Errors that people met in "
        "real trainings, as TrainCheck (OSDI 2025) lists them, and their next of kin, each reproduced under Trainer "
        f"on a small model and real text; {STEPS} steps, every one sampled. Where an error needs ranks, two processes "
        "train together. The rules were written with this list at hand: the table shows that they work, not what they "
        "find of errors unknown to them.",
        "",
        f"- with an alarm: {fraction([bool(alarms(row)) for row in visible])} runs that training health should notice",
        f"- cause named: {fraction([bool(named(row)) for row in visible])}",
        f"- samples until the first alarm: median {np.median(first):.0f}, largest {max(first)}" if first else "",
        f"- seeds: {', '.join(str(seed) for seed in sorted({row['seed'] for row in rows}))}",
        f"- healthy runs with an alarm: {fraction([bool(alarms(row)) for row in healthy])}",
        f"- smdebug's thresholds: {fraction([bool(row['smdebug']) for row in visible])} broken runs, "
        f"{fraction([bool(row['smdebug']) for row in healthy])} healthy ones",
        "",
        "| error | seen in | ranks | with an alarm | cause named | findings, and the sample of each |",
        "|---|---|---|---|---|---|",
    ]
    for name, error in ERRORS.items():
        here = [row for row in broken if row["name"] == name]
        told = sorted({f"{f['rule']} @{f['samples']}" for row in here for f in alarms(row)})
        lines.append(
            f"| {name}{' *' if error.unseen else ''} | {error.source or '-'} | {error.ranks} | "
            f"{fraction([bool(alarms(row)) for row in here])} | {fraction([bool(named(row)) for row in here])} | "
            f"{', '.join(told) or '-'} |"
        )
    lines += ["", "* not counted above:", ""]
    lines += [f"- {name}: {error.unseen}." for name, error in ERRORS.items() if error.unseen]
    silent = {row["name"] for row in visible} - {row["name"] for row in visible if alarms(row)}
    lines += ["", "Without an alarm:", ""] if silent else []
    lines += [f"- {name}: {WHY_MISSED.get(name, 'not known why')}." for name in ERRORS if name in silent]
    lines += ["", "Of TrainCheck's list, what no Trainer run on a CPU meets:", ""]
    lines += [f"- {name}: {reason}." for name, reason in NOT_MET.items()]
    false = [f"{row['model']}, {row['ranks']} ranks: {f['rule']}" for row in healthy for f in alarms(row)]
    lines += ["", f"False alarms: {'; '.join(false) or 'none'}."]
    text = "\n".join(lines) + "\n"
    PAGE.write_text(text, encoding="utf-8")
    print(text)
