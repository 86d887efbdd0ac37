"""Does training health notice someone else's faults? The catalogue of `defaultplusplus` on trainings of real text.

    python -m benchmarks.fault_injection.deform survey --cola path/to/cola/raw --newsgroups path/to/20news.tar.gz
    python -m benchmarks.fault_injection.deform run --cola ... --newsgroups ... --histories FOLDER
    python -m benchmarks.fault_injection.deform rejudge --cola ... --newsgroups ... --histories FOLDER
    python -m benchmarks.fault_injection.deform cost --cola ... --newsgroups ...
    python -m benchmarks.fault_injection.deform report --held-out

`survey` finds which mutants change anything. `run` trains clean and mutated with the same seeds; a mutant that is once
not worse than the clean training cannot be killed any more and gets no further seeds. It goes on where it was stopped;
`--models`, `--tasks`, `--operators` and `--seeds` (how many) choose parts; held-out parts need `--held-out`. `rejudge`
applies the rules of today to stored samples, without training. Needs the extras `benchmarks`, `offline` and `recipes`;
run it from the top folder of the repository.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.fault_injection.deform import cost, mutants, report, runs
from benchmarks.fault_injection.deform.mutants import ACTS, CLEAN, Mutant
from benchmarks.fault_injection.deform.runs import SEEDS, Job
from benchmarks.fault_injection.deform.subjects import SUBJECTS, is_held_out
from benchmarks.fault_injection.deform.texts import TASKS, Sources
from bert_toolkit.errors import InputError

RESULTS = Path(__file__).parents[2] / "results"
COST = RESULTS / "deform_cost.json"
Key = tuple[str, str, str, int]


def quiet() -> None:
    """One thread, and no warnings of trainings that are meant to be broken."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bert_toolkit").setLevel(logging.CRITICAL)


def chain(
    subject: str,
    task: str,
    mutant: Mutant | None,
    known: dict[Key, dict[str, Any]],
    arguments: argparse.Namespace,
    sources: Sources,
) -> list[dict[str, Any]]:
    """The runs of one mutant (or the clean ones) that are still missing, as long as it may be killed."""
    rows = []
    for number, seed in enumerate(SEEDS[: arguments.seeds]):
        job = Job(subject, task, mutant, seed)
        row = None if arguments.again else known.get(job.key)
        with_predictor = number < arguments.predictor_seeds
        unasked = row is not None and with_predictor and not row["predictor"] and not row["error"]
        if row is None or unasked:
            row = runs.run(job, sources, arguments.histories, with_predictor)
            rows.append(row)
        if mutant is not None:
            clean = known[Job(subject, task, None, seed).key]
            if row["error"] or not report.worse(clean, row):
                break
    return rows


def chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Pairs of model and task that the flags leave, those for tuning first."""
    pairs = [(s, t) for s in SUBJECTS.values() for t in TASKS.values() if s.scope == t.scope]
    for subject, task in sorted(pairs, key=lambda pair: is_held_out(pair[0].name, pair[1].name)):
        if arguments.models and subject.name not in arguments.models:
            continue
        if arguments.tasks and task.name not in arguments.tasks:
            continue
        if not is_held_out(subject.name, task.name) or arguments.held_out:
            yield subject.name, task.name


def run(arguments: argparse.Namespace, sources: Sources) -> None:
    """Train what is missing and append its rows to the results file."""
    arguments.histories.mkdir(parents=True, exist_ok=True)
    known = report.read_rows(arguments.results)
    surveyed = mutants.read_survey(arguments.survey)
    with (
        ProcessPoolExecutor(arguments.jobs, initializer=quiet) as pool,
        arguments.results.open("a", encoding="utf-8") as file,
    ):

        def finish(rows: list[dict[str, Any]]) -> None:
            for row in rows:
                known[report.key_of(row)] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                found = [f"{f['rule']}@{f['samples']}" for f in row["findings"] if f["symptom_of"] is None]
                print(*report.key_of(row), row["score"], row["seconds"], *found, row["error"] or "", flush=True)

        for subject, task in chosen(arguments):
            finish(pool.submit(chain, subject, task, None, known, arguments, sources).result())
            verdicts = surveyed.get(subject)
            if verdicts is None:
                raise SystemExit(
                    f"{arguments.survey} says nothing of {subject}: run `survey --models {subject}` first"
                )
            wanted = [
                mutant
                for mutant in mutants.mutants(SUBJECTS[subject].scope)
                if verdicts[mutant.name] == ACTS
                and (not arguments.operators or mutant.operator in arguments.operators)
            ]
            cell = {key: row for key, row in known.items() if key[:2] == (subject, task)}
            for future in [pool.submit(chain, subject, task, m, cell, arguments, sources) for m in wanted]:
                finish(future.result())


def survey(arguments: argparse.Namespace, sources: Sources) -> None:
    """Find out what each mutant does to each model, and keep it."""
    quiet()
    verdicts = mutants.read_survey(arguments.survey)
    for name in arguments.models or SUBJECTS:
        verdicts[name] = mutants.survey(SUBJECTS[name], sources)
        print(name, sum(verdict == ACTS for verdict in verdicts[name].values()), "of", len(verdicts[name]), "act")
        arguments.survey.write_text(json.dumps(verdicts, indent=1) + "\n", encoding="utf-8")


def rejudge(arguments: argparse.Namespace, sources: Sources) -> None:
    """Replace the findings of every row whose samples are stored by those of the rules of today."""
    quiet()
    rows = report.read_rows(arguments.results)
    cells = set(chosen(arguments))
    models: dict[tuple[str, str], nn.Module] = {}
    damaged = 0
    for key, row in rows.items():
        mutant = None if row["mutant"] == CLEAN else mutant_of(row)
        path = Job(row["model"], row["task"], mutant, row["seed"]).history(arguments.histories)
        if key[:2] not in cells or not path.exists():
            continue
        if key[:2] not in models:
            models[key[:2]] = SUBJECTS[row["model"]].build(TASKS[row["task"]], sources)
        try:
            rows[key] = runs.rejudge(row, models[key[:2]], path)
        except InputError as error:
            damaged += 1
            print(error, file=sys.stderr)
    report.write_rows(arguments.results, rows)
    if damaged:
        print(f"{damaged} samples were stored by another version: `run --again` trains anew", file=sys.stderr)


def measure_cost(arguments: argparse.Namespace, sources: Sources) -> None:
    """Time training with and without watchers."""
    quiet()
    cost.measure(arguments.models or ["minilm", "bert", "gpt2"], sources, COST)


def mutant_of(row: dict[str, Any]) -> Mutant:
    """The mutant of a row."""
    return next(m for m in mutants.mutants(SUBJECTS[row["model"]].scope) if m.name == row["mutant"])


def main() -> None:
    """Read the command line and do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["survey", "run", "rejudge", "cost", "report"])
    parser.add_argument("--cola", type=Path, help="folder with CoLA's raw files")
    parser.add_argument("--newsgroups", type=Path, help="archive or folder of 20 newsgroups, by date")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--operators", nargs="+", help="three letters each")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the catalogue's five")
    parser.add_argument("--predictor-seeds", type=int, default=1, help="seeds on which the predictor runs, too")
    parser.add_argument("--held-out", action="store_true", help="held-out models and tasks as well")
    parser.add_argument("--again", action="store_true", help="train also what the results file has")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--histories", type=Path, default=Path("deform_histories"), help="folder for what was sampled")
    parser.add_argument("--results", type=Path, default=RESULTS / "deform.jsonl")
    parser.add_argument("--survey", type=Path, default=RESULTS / "deform_survey.json")
    arguments = parser.parse_args()
    if arguments.command == "report":
        report.write(arguments.results, arguments.survey, COST, arguments.held_out)
        return
    if arguments.cola is None or arguments.newsgroups is None:
        parser.error(f"{arguments.command} needs --cola and --newsgroups")
    sources = Sources(arguments.cola, arguments.newsgroups)
    {"survey": survey, "run": run, "rejudge": rejudge, "cost": measure_cost}[arguments.command](arguments, sources)


if __name__ == "__main__":
    main()
