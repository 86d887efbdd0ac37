"""From the results file to benchmarks/fault_injection.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fault_injection.controls import CONTROLS
from benchmarks.fault_injection.faults import FAULTS
from benchmarks.fault_injection.results import REPORTED_SEEDS, TUNING_SEEDS, all_jobs, read_results
from benchmarks.fault_injection.smdebug import OTHERS
from benchmarks.fault_injection.trainings import MODELS
from bert_toolkit.health.rules import RULES

PAGE = Path(__file__).parents[1] / "fault_injection.md"
SAMPLES = 50


def told(row: dict) -> list[dict[str, Any]]:
    """Errors and warnings of a row; notes are told to nobody who does not ask."""
    return [case for case in row["found"] if case["severity"] != "note"]


def outcome(row: dict) -> dict[str, Any]:
    """What one training of a fault shows: found or not, when, cause and place right or wrong."""
    known = FAULTS[row["name"]]
    in_time = [case for case in told(row) if case["samples"] <= SAMPLES + 1]  # the first step is one more sample
    roots = sorted((c for c in in_time if c["symptom_of"] is None), key=lambda case: case["samples"])
    right = [case for case in roots if case["rule"] in known.rules]
    chosen = {case["rule"] for case in right or roots}
    named = [p for case in in_time if {case["rule"], case["symptom_of"]} & chosen for p in case["parameters"]]
    if own := [p for case in right or roots for p in case["parameters"]]:
        named = own
    inside = [p for p in named if any(p.startswith(f"{part}.") or p == part for part in row["place"])]
    first = min(in_time, key=lambda case: case["samples"], default=None)
    return {
        "found": bool(in_time),
        "samples": first and first["samples"],
        "steps": first and first["step"],
        "cause": bool(right),
        "place": None if not row["place"] else bool(named) and len(inside) == len(named),
        "rules": [case["rule"] for case in roots],
        "other": bool(row["other"]),
    }


def share(values: list[bool]) -> str:
    """How many are true, as a table shows it."""
    return f"{sum(values)} of {len(values)} ({sum(values) / len(values):.0%})" if values else "none"


def median_and_largest(values: list[int]) -> str:
    """Median and largest, as a table shows them."""
    return f"{np.median(values):.0f}, {max(values)}" if values else "-"


def tables(rows: list[dict]) -> list[str]:
    """The tables of some seeds."""
    faults = [(row, outcome(row)) for row in rows if row["kind"] != "control"]
    visible = [(row, o) for row, o in faults if row["kind"] not in FAULTS[row["name"]].unseen]
    unseen = [(row, o) for row, o in faults if row["kind"] in FAULTS[row["name"]].unseen]
    controls = [row for row in rows if row["kind"] == "control"]
    placed = [o["place"] for _, o in visible if o["place"] is not None]
    lines = [
        "| | `TrainingHealthCallback` | smdebug's thresholds |",
        "|---|---|---|",
        f"| faults found within {SAMPLES} samples | {share([o['found'] for _, o in visible])} | "
        f"{share([o['other'] for _, o in visible])} |",
        f"| the same with those that statistics cannot show | {share([o['found'] for _, o in faults])} | "
        f"{share([o['other'] for _, o in faults])} |",
        f"| right cause named | {share([o['cause'] for _, o in visible])} | - |",
        f"| right parameter or layer named, where one was broken | {share(placed)} | - |",
        f"| one finding only, symptoms folded under it | "
        f"{share([len(o['rules']) == 1 for _, o in visible if o['found']])} | - |",
        f"| healthy trainings with an alarm | {share([bool(told(row)) for row in controls])} | "
        f"{share([bool(row['other']) for row in controls])} |",
        f"| samples until found, median and largest | "
        f"{median_and_largest([o['samples'] for _, o in visible if o['found']])} | - |",
        f"| optimizer steps until found, median and largest | "
        f"{median_and_largest([o['steps'] for _, o in visible if o['found']])} | - |",
        "",
        "### Each fault",
        "",
        "What was reported, and the number of samples until then.",
        "",
        "| fault | " + " | ".join(MODELS) + " |",
        "|---|" + "---|" * len(MODELS),
    ]
    for name, known in FAULTS.items():
        cells = []
        for model in MODELS:
            here = [o for row, o in faults if (row["kind"], row["name"]) == (model, name)]
            cell = "; ".join(
                f"{', '.join(o['rules']) or 'not found'}"
                + (f" at {o['samples']}" if o["found"] else "")
                + ("" if o["cause"] or not o["found"] else " (other cause)")
                + (" (wrong place)" if o["place"] is False and o["found"] else "")
                for o in here
            )
            cells.append(cell + (" *" if model in known.unseen and here else "") or "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if unseen:
        lines += ["", "* not counted above, since statistics cannot show it:", ""]
    reasons = {(row["name"], row["kind"]): FAULTS[row["name"]].unseen[row["kind"]] for row, _ in unseen}
    lines += [f"- {name}, {model}: {reason}." for (name, model), reason in reasons.items()]
    lines += [
        "",
        "### Each rule",
        "",
        "Its faults are those for which the benchmark takes this rule's finding as the right cause. Some have more "
        "than one such rule: the other then names the fault.",
        "",
        "| rule | its faults, found | named by it | named for another fault | alarms on healthy trainings |",
        "|---|---|---|---|---|",
    ]
    for rule in (r.name for r in RULES):
        own = [(row, o) for row, o in visible if rule in FAULTS[row["name"]].rules]
        wrong = [row for row, o in faults if rule in o["rules"] and rule not in FAULTS[row["name"]].rules]
        alarms = [row for row in controls if rule in [case["rule"] for case in told(row)]]
        lines.append(
            f"| {rule} | {share([o['found'] for _, o in own])} | {sum(rule in o['rules'] for _, o in own)} | "
            f"{len(wrong)} | {len(alarms)} |"
        )
    lines += ["", "### Each threshold of smdebug", "", "| rule | faults | healthy trainings |", "|---|---|---|"]
    for name, threshold in OTHERS.items():
        lines.append(
            f"| {name} ({threshold}) | {share([name in row['other'] for row, _ in visible])} | "
            f"{share([name in row['other'] for row in controls])} |"
        )
    lines += ["", "### Each healthy training", "", "| training | alarms | smdebug's thresholds that fire |"]
    lines += ["|---|---|---|"]
    for name, (_, held_out) in CONTROLS.items():
        here = [row for row in controls if row["name"] == name]
        fired = sorted({case["rule"] for row in here for case in told(row)})
        other = [o for o in OTHERS if any(o in row["other"] for row in here)]
        title = name + (" (held out)" if held_out else "")
        if here:
            lines.append(f"| {title} | {', '.join(fired) or 'none'} | {', '.join(other) or 'none'} |")
    errors = [row for row in rows if row["error"]]
    lines += [""] if errors else []
    lines += [f"{row['kind']}/{row['name']} ended with {row['error'].splitlines()[-1]}" for row in errors]
    return lines


def report(path: Path) -> None:
    """Write benchmarks/fault_injection.md from a results file."""
    known = read_results(path)
    rows = list(known.values())
    lines = [
        "# Fault injection",
        "",
        "Made by `python -m benchmarks.fault_injection run` and `report`. Small trainings on one CPU thread, broken "
        "on purpose and healthy. A fault counts as found where a finding comes within 50 samples; the cause is right "
        "where a finding's rule is one that the benchmark lists for the fault, the place where everything that it "
        "(or, where it names nothing, what it explains) names lies inside the layer that was broken. Notes do not "
        "count. smdebug's rules are closed; its published thresholds were "
        "applied to the same statistics of the same samples, without steps at learning rate 0. Broken trainings end "
        "10 samples after the first finding, for both.",
        "",
        "Seed 1 was to be reported too. It showed two false alarms (LoRA, frozen encoder), a fault that was not found "
        "and a place that was wrong; rules were changed for that, so it counts as tuning. Reported seeds were run "
        "after the last change of a rule, once for each set of rules.",
    ]
    for title, seeds in (("Reported seeds", REPORTED_SEEDS), ("Seeds on which thresholds were chosen", TUNING_SEEDS)):
        chosen = [row for row in rows if row["seed"] in seeds]
        if chosen:
            named = ", ".join(str(seed) for seed in sorted({row["seed"] for row in chosen}))
            missing = [job for job in all_jobs(sorted({row["seed"] for row in chosen})) if job not in known]
            lines += ["", f"## {title} ({named})", ""]
            if missing:
                kinds = Counter(kind for kind, _, _ in missing)
                parts = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
                lines += [f"A part of the jobs: {len(missing)} were not run with these rules ({parts}).", ""]
            lines += tables(chosen)
    text = "\n".join(lines) + "\n"
    PAGE.write_text(text, encoding="utf-8")
    print(text)
