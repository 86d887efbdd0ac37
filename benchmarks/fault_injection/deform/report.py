"""From the rows of the results file to benchmarks/deform.md: which mutants are killed, and who noticed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from defaultplusplus.deform.validation import is_killed

from benchmarks.fault_injection.deform.mutants import ACTS, CLEAN, Mutant, mutants, read_survey
from benchmarks.fault_injection.deform.right import names_component
from benchmarks.fault_injection.deform.runs import EVERY_N_STEPS, SEEDS
from benchmarks.fault_injection.deform.subjects import SUBJECTS
from benchmarks.fault_injection.deform.texts import TASKS
from benchmarks.fault_injection.smdebug import OTHERS

PAGE = Path(__file__).parents[2] / "deform.md"
Key = tuple[str, str, str, int]
Row = dict[str, Any]


def key_of(row: Row) -> Key:
    """What tells a row from others."""
    return (row["model"], row["task"], row["mutant"], row["seed"])


def read_rows(path: Path) -> dict[Key, Row]:
    """The latest row of each run; none where there is no file yet."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {key_of(row): row for row in rows}


def write_rows(path: Path, rows: dict[Key, Row]) -> None:
    """Replace the file, one line per run."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    partial.replace(path)


def worse(clean: Row, mutated: Row) -> bool:
    """Whether a mutated run scores worse than the clean one of the same seed; a loss that is no number does."""
    if not mutated["finite"]:
        return True
    return bool(
        mutated["score"] < clean["score"] if TASKS[clean["task"]].classes else mutated["score"] > clean["score"]
    )


class Case:
    """The runs of one mutant on one model and task, beside the clean ones.

    Args:
        mutant: What was broken.
        clean: Clean rows by seed.
        rows: Mutated rows by seed.
    """

    def __init__(self, mutant: Mutant, clean: dict[int, Row], rows: dict[int, Row]) -> None:
        self.mutant, self.clean, self.rows = mutant, clean, rows
        first = next(iter(rows.values()))
        self.model, self.task, self.held_out = first["model"], first["task"], first["held_out"]

    @property
    def status(self) -> str:
        """`killed`, `survived`, `discarded` (a run ended with an error) or `open` (seeds are missing)."""
        if any(row["error"] for row in self.rows.values()):
            return "discarded"
        if not all(worse(self.clean[seed], row) for seed, row in self.rows.items()):
            return "survived"
        if len(self.rows) < len(SEEDS):
            return "open"
        if not all(row["finite"] for row in self.rows.values()):
            return "killed"
        pairs = [(self.clean[seed]["score"], row["score"]) for seed, row in self.rows.items()]
        killed, _ = is_killed(*zip(*pairs, strict=True), higher_is_better=bool(TASKS[self.task].classes))
        return "killed" if killed else "survived"

    @property
    def damage(self) -> float:
        """Mean loss of accuracy, or mean rise of the loss in nats."""
        pairs = [(self.clean[seed]["score"], row["score"]) for seed, row in self.rows.items() if row["finite"]]
        return float(np.mean([abs(c - m) for c, m in pairs])) if pairs else float("inf")

    @property
    def material(self) -> bool:
        """Whether the damage is more than four points of accuracy, or 0.05 nats per token."""
        return self.damage > (0.04 if TASKS[self.task].classes else 0.05)

    @property
    def name(self) -> str:
        """For lists of misses."""
        return f"{self.model}/{self.task}/{self.mutant.name}"


def alarms(row: Row) -> list[Row]:
    """Findings that stand on their own and are more than a note."""
    return [f for f in row["findings"] if f["symptom_of"] is None and f["severity"] != "note"]


def cases(rows: dict[Key, Row]) -> list[Case]:
    """All mutants that were trained, in the catalogue's order."""
    cells: dict[tuple[str, str], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows.values():
        cells[row["model"], row["task"]][row["mutant"]][row["seed"]] = row
    return [
        Case(mutant, by_mutant[CLEAN], by_mutant[mutant.name])
        for (model, _), by_mutant in cells.items()
        for mutant in mutants(SUBJECTS[model].scope)
        if mutant.name in by_mutant
    ]


def fraction(values: Iterable[bool]) -> str:
    """How many are true, as a table shows it."""
    known = list(values)
    return f"{sum(known)} of {len(known)} ({sum(known) / len(known):.0%})" if known else "-"


def f1(recall: float, false_alarms: float) -> float:
    """Harmonic mean of recall and precision where clean and broken runs are equally many."""
    precision = recall / (recall + false_alarms) if recall else 0.0
    return 2 * precision * recall / (precision + recall) if recall else 0.0


def summary(killed: list[Case], clean: list[Row]) -> list[str]:
    """The table that sets the three beside one another, on runs of killed mutants and on clean runs."""
    broken = [(case, row) for case in killed for row in case.rows.values()]
    heard = [row for _, row in broken if row["predictor"]]
    quiet = [row for row in clean if row["predictor"]]
    found = [(case, row, alarms(row)) for case, row in broken if alarms(row)]
    judged = {
        "`TrainingHealthCallback`": ([bool(alarms(row)) for _, row in broken], [bool(alarms(row)) for row in clean]),
        "`defaultplusplus` predictor": (
            [row["predictor"]["faulty"] for row in heard],
            [row["predictor"]["faulty"] for row in quiet],
        ),
        "smdebug's thresholds": ([bool(row["smdebug"]) for _, row in broken], [bool(row["smdebug"]) for row in clean]),
    }
    right = {
        "`TrainingHealthCallback`": fraction(
            any(names_component(finding, case.mutant) for finding in all_found) for case, _, all_found in found
        ),
        "`defaultplusplus` predictor": fraction(
            row["predictor"]["component"] == case.mutant.component
            for case, row in broken
            if row["predictor"] and row["predictor"]["faulty"]
        ),
        "smdebug's thresholds": "-",
    }
    lines = [
        "| | killed mutants' runs with an alarm | clean runs with an alarm | F1, classes weighted equally | "
        "right component, of runs with an alarm |",
        "|---|---|---|---|---|",
    ]
    for name, (hits, false) in judged.items():
        score = f"{f1(float(np.mean(hits)), float(np.mean(false))):.2f}" if hits and false else "-"
        lines.append(f"| {name} | {fraction(hits)} | {fraction(false)} | {score} | {right[name]} |")
    firsts = [min(f["samples"] for f in all_found) for _, _, all_found in found]
    steps = [min(f["step"] for f in all_found) for _, _, all_found in found]
    materially = [bool(alarms(row)) for case, row in broken if case.material]
    lines += [
        "",
        f"Mutants of which the first finding comes in time to be told apart: samples until found, median "
        f"{np.median(firsts):.0f} and largest {max(firsts)}; optimizer steps {np.median(steps):.0f} and {max(steps)}."
        if firsts
        else "Nothing was found.",
        f"Of killed mutants that cost more than four points of accuracy or 0.05 nats: {fraction(materially)} of the "
        f"runs with an alarm.",
    ]
    return lines


def by_operator(all_cases: list[Case]) -> list[str]:
    """One row per mutant: where it was killed, and what was said of it."""
    lines = [
        "| mutant | component | killed on | runs with an alarm | right component | findings, and the median sample |",
        "|---|---|---|---|---|---|",
    ]
    grouped: dict[str, list[Case]] = defaultdict(list)
    for case in all_cases:
        grouped[case.mutant.name].append(case)
    for name, group in grouped.items():
        killed = [case for case in group if case.status == "killed"]
        rows = [(case, row) for case in killed for row in case.rows.values()]
        said: dict[str, list[int]] = defaultdict(list)
        for _, row in rows:
            for finding in alarms(row):
                said[finding["rule"]].append(finding["samples"])
        right = [any(names_component(f, case.mutant) for f in alarms(row)) for case, row in rows if alarms(row)]
        told = ", ".join(f"{rule} x{len(at)} @{np.median(at):.0f}" for rule, at in said.items())
        lines.append(
            f"| {name} | {group[0].mutant.component} | {len(killed)} of {len(group)} | "
            f"{fraction(bool(alarms(row)) for _, row in rows)} | {fraction(right)} | {told or '-'} |"
        )
    return lines


def group_report(title: str, group: list[Case], clean: list[Row]) -> list[str]:
    """Everything on one group of runs."""
    lines = [f"## {title}", ""]
    for scope in ("encoder", "decoder"):
        here = [case for case in group if SUBJECTS[case.model].scope == scope]
        healthy = [row for row in clean if SUBJECTS[row["model"]].scope == scope]
        if not here:
            continue
        killed = [case for case in here if case.status == "killed"]
        count = {status: sum(case.status == status for case in here) for status in ("survived", "discarded", "open")}
        lines += [
            f"### {scope.capitalize()}s",
            "",
            f"{len(here)} mutants were trained on {len({(c.model, c.task) for c in here})} pairs of model and task: "
            f"{len(killed)} killed, {count['survived']} not, {count['discarded']} discarded since a run ended with an "
            f"error" + (f", {count['open']} with seeds missing" if count["open"] else "") + ".",
            "",
            *summary(killed, healthy),
            "",
            *by_operator(here),
            "",
        ]
        missed = [(case, sum(not alarms(row) for row in case.rows.values())) for case in killed]
        named = [
            f"{case.name} ({count} of {len(case.rows)}, costs {case.damage:.3f})" for case, count in missed if count
        ]
        lines += [f"Missed: {'; '.join(named) or 'none'}.", ""]
        false = [
            f"{'/'.join(map(str, key_of(row)))}: {', '.join(f['rule'] for f in alarms(row))}"
            for row in healthy
            if alarms(row)
        ]
        lines += [f"False alarms: {'; '.join(false) or 'none'}.", ""]
        fired = {name: [name in row["smdebug"] for row in healthy] for name in OTHERS}
        lines += ["smdebug on clean runs: " + ", ".join(f"{name} {sum(v)}" for name, v in fired.items()) + ".", ""]
    return lines


def write(results: Path, survey: Path, cost: Path, held_out: bool) -> None:
    """Write benchmarks/deform.md, or print the tuning group alone."""
    rows = read_rows(results)
    everything = cases(rows)
    clean = [row for row in rows.values() if row["mutant"] == CLEAN]
    lines = [
        "# Someone else's faults",
        "",
        "Made by `python -m benchmarks.fault_injection.deform run --held-out` and `report --held-out`. The operators "
        "of the fault catalogue of `defaultplusplus` 0.4.1 (its `deform` module) at every value of their parameters, "
        f"on small models and real text, every {EVERY_N_STEPS}nd step sampled. A mutant is killed, in the catalogue's "
        "own words, where it scores worse than the clean training of the same seed in a one-sided sign-flip test on "
        "five seeds (p < 0.05), which asks for all five. Runs of killed mutants are the broken ones here.",
        "",
        "Rules were written by looking at the tuning group alone. A training is held out where its model or task is; "
        "those on GPT-NeoX were, until a rule on heads of zeros was written from what they had shown.",
        "",
        *surveyed(read_survey(survey)),
        *costs(cost),
    ]
    for title, wanted in (("Held out", True), ("Tuning", False)):
        if wanted and not held_out:
            continue
        group = [case for case in everything if case.held_out == wanted]
        lines += group_report(title, group, [row for row in clean if row["held_out"] == wanted])
    text = "\n".join(lines) + "\n"
    if held_out:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


def surveyed(verdicts: dict[str, dict[str, str]]) -> list[str]:
    """What the mutants do to each model before any training."""
    lines = [
        "## What acts",
        "",
        "| model | mutants | act | change nothing | repeat another value | cannot be applied | break the step |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for model, by_mutant in verdicts.items():
        kinds = [
            sum(verdict == ACTS for verdict in by_mutant.values()),
            sum(verdict == f"same as {CLEAN}" for verdict in by_mutant.values()),
            sum(verdict.startswith("same as ") and not verdict.endswith(CLEAN) for verdict in by_mutant.values()),
            sum(verdict.startswith("cannot be applied") for verdict in by_mutant.values()),
            sum(verdict.startswith("breaks the step") for verdict in by_mutant.values()),
        ]
        lines.append(f"| {model} | {len(by_mutant)} | " + " | ".join(map(str, kinds)) + " |")
    return [*lines, ""]


def costs(path: Path) -> list[str]:
    """The table of processor time, nothing where it was not measured."""
    if not path.exists():
        return []
    measured = json.loads(path.read_text(encoding="utf-8"))
    arms = list(next(iter(measured["milliseconds"].values())))
    lines = [
        "## Cost",
        "",
        f"Processor time per step in milliseconds, one thread, median of {measured['rounds']} trainings of "
        f"{measured['steps']} steps. On models this small the number of calls costs, not the size of tensors.",
        "",
        "| model | " + " | ".join(arms) + " |",
        "|---|" + "---|" * len(arms),
    ]
    for model, by_arm in measured["milliseconds"].items():
        lines.append(f"| {model} | " + " | ".join(f"{by_arm[arm]:.1f}" for arm in arms) + " |")
    return [*lines, ""]
