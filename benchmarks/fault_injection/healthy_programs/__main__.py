"""Does training health stay silent on trainings that are healthy? Every alarm of every program is printed.

    python -m benchmarks.fault_injection.healthy_programs                       # all; goes on where it was stopped
    python -m benchmarks.fault_injection.healthy_programs --only gpt2 --again   # those with "gpt2" in the name, anew
    python -m benchmarks.fault_injection.healthy_programs --group tuning --jobs 2
    python -m benchmarks.fault_injection.healthy_programs --histories FOLDER    # keeps what was sampled
    python -m benchmarks.fault_injection.healthy_programs --histories FOLDER --rejudge    # judges what was kept
    python -m benchmarks.fault_injection.healthy_programs --report              # the table alone, from the results

Needs the extras `offline`, `recipes`, `test` and `benchmarks`; a program whose package or data is missing is listed as
skipped. Each program runs in a process of its own on one thread. Results hold a digest of the rules: after a change of
a rule every program runs again, or, with `--rejudge`, is built, makes one step and judges the samples that were kept.
What the package observes (and not only what its rules make of it) is as it was when the samples were kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import datetime
import hashlib
import json
import logging
import math
import multiprocessing
import platform
import re
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import bert_toolkit
from benchmarks.fault_injection.healthy_programs.catalogue import PROGRAMS
from benchmarks.fault_injection.healthy_programs.page import PAGE, page, summary
from benchmarks.fault_injection.healthy_programs.program import Group, MissingError, Program, Setup
from benchmarks.fault_injection.healthy_programs.texts import small_minilm_folder
from benchmarks.fault_injection.stored_samples import rejudge, store
from bert_toolkit import TrainingHealthCallback, watch_loop

RESULTS = Path(__file__).parents[2] / "results" / "healthy_programs.jsonl"
FIRST_RUN = RESULTS.with_name("healthy_programs_first_run.jsonl")
SEED = 0
LIMIT = 600.0
"""Seconds after which a program counts as failed."""


@cache
def rules_digest() -> str:
    """Digest of everything that decides which findings there are."""
    package = Path(bert_toolkit.__file__).parent
    files = [*sorted((package / "health").rglob("*.py")), *sorted((package / "monitoring").rglob("*.py"))]
    files.append(package / "callbacks" / "training_health.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def machine() -> str:
    """The kind of processor, as far as the system tells it."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", about.read_text()) if about.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def run_program(
    program: Program,
    cola: Path | None = None,
    newsgroups: Path | None = None,
    steps: int | None = None,
    histories: Path | None = None,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Build and run one program under training health.

    Args:
        program: Which.
        cola: CoLA's raw folder.
        newsgroups: By-date archive of newsgroups.
        steps: So many steps only, to see whether it runs.
        histories: Folder that gets what was sampled, or has it where `known` is given.
        known: Row of an earlier run, whose samples are judged instead of those of a training; one step is made then.

    Returns:
        Its row of the results: score, samples, findings with their severities; or why it did not run.
    """
    if known is not None:
        steps = 1
    torch.set_num_threads(1)
    transformers.set_seed(SEED)
    made: list[TrainingHealthCallback] = []

    def make_callbacks() -> list[TrainingHealthCallback]:
        made.append(TrainingHealthCallback(every_n_steps=program.every_n_steps))
        return [made[-1]]

    def watch(model: torch.nn.Module, optimizer: Any, **settings: Any) -> watch_loop:
        settings |= {"health": make_callbacks()[0], "output_dir": folder, "figures": False}
        return watch_loop(model, optimizer, **settings)

    row: dict[str, Any] = {
        "program": program.name,
        "group": program.group.value,
        "purpose": program.purpose,
        "seed": SEED,
        "rules": rules_digest(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    start = time.perf_counter()
    complaints = Complaints()
    logging.getLogger("bert_toolkit").addHandler(complaints)
    with tempfile.TemporaryDirectory() as folder:
        try:
            ready = program(Setup(Path(folder), make_callbacks, watch, steps, cola, newsgroups))
            ready.run()
            watched = [callback.history for callback in made]
            if known is not None:
                assert histories is not None
                entries = [
                    entry
                    for number, history in enumerate(watched)
                    if history is not None
                    for entry in rejudge(history, histories / f"{program.name}.{number}.npz").report()
                ]
                now = {name: row[name] for name in ("group", "purpose", "rules")}
                return {**row, **known, **now, **_findings(entries)}
            if not any(watched):
                return {**row, "failed": "nothing was watched: " + "; ".join(complaints.texts)}
            score = ready.score()
            for number, history in enumerate(watched):
                if histories is not None and history is not None:
                    store(history, histories / f"{program.name}.{number}.npz")
        except MissingError as error:
            return {**row, "skipped": str(error)}
        except Exception as error:
            return {**row, "failed": repr(error), "traceback": traceback.format_exc()}
    return {
        **row,
        "score": {
            "name": score.name,
            "value": score.value,
            "bound": score.bound,
            "higher": score.higher,
            "before": None if math.isnan(score.before) else score.before,
        },
        "healthy": score.healthy,
        "samples": [0 if callback.history is None else len(callback.history) for callback in made],
        "complaints": complaints.texts,
        **_findings([entry for callback in made for entry in callback.report["findings"]]),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _findings(reports: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "findings": [entry for entry in reports if entry["symptom_of"] is None],
        "symptoms": [entry for entry in reports if entry["symptom_of"] is not None],
    }


class Complaints(logging.Handler):
    """Keeps what the package warns about beside its findings."""

    def __init__(self) -> None:
        """Start with none."""
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message unless it is a finding or the verdict."""
        text = record.getMessage()
        if not re.match(r"Training health(, step|: no fault|: \d+ fault)", text):
            self.texts.append(text)


def _child(pipe: Any, *job: Any) -> None:
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    pipe.send(run_program(*job))
    pipe.close()


def in_a_process(program: Program, *job: Any) -> dict[str, Any]:
    """Run one program in a process of its own, which takes its memory and its settings with it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, program, *job))
    process.start()
    theirs.close()
    row: dict[str, Any] = {"program": program.name, "group": program.group.value, "rules": rules_digest()}
    try:
        row = ours.recv() if ours.poll(LIMIT) else {**row, "failed": f"not done after {LIMIT:.0f} seconds"}
    except EOFError:
        process.join()
        row["failed"] = f"the process ended with {process.exitcode}"
    if process.is_alive() and "failed" in row:
        process.kill()
    process.join()
    return row


def line(row: dict[str, Any]) -> str:
    """One row of the results for people."""
    head = f"{row['program']:32} {row['group']:8}"
    if "skipped" in row:
        return f"{head} skipped: {row['skipped']}"
    if "failed" in row:
        return f"{head} FAILED: {row['failed']}"
    score = row["score"]
    sign = ">=" if score["higher"] else "<="
    text = (
        f"{head} {'healthy' if row['healthy'] else 'NOT HEALTHY':11} {score['name']} {score['value']:.4g} "
        f"({sign} {score['bound']:.4g}), {'+'.join(map(str, row['samples']))} samples, {row['seconds']:.0f} s"
    )
    text += "".join(f"\n    complains: {complaint}" for complaint in row.get("complaints", ()))
    for finding in row["findings"]:
        value, threshold = (math.nan if finding[k] is None else finding[k] for k in ("value", "threshold"))
        where = ", ".join(finding["parameters"][:2]) + (" ..." if len(finding["parameters"]) > 2 else "")
        text += (
            f"\n    {finding['severity']:7} {finding['rule']} at step {finding['step']}: {finding['seen']}"
            f" (value {value:.3g}, threshold {threshold:.3g}) {where}"
        )
    return text


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The latest row of every program."""
    if not path.exists():
        return {}
    rows = (json.loads(text) for text in path.read_text(encoding="utf-8").splitlines())
    return {row["program"]: row for row in rows}


def append_result(path: Path, row: dict[str, Any]) -> None:
    """Add a row, so that what is done is kept whatever happens next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def tidy_results(path: Path) -> dict[str, dict[str, Any]]:
    """Keep the latest row of every program, in the catalogue's order."""
    rows = read_results(path)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(rows[name]) + "\n" for name in PROGRAMS if name in rows), encoding="utf-8")
    partial.replace(path)
    return rows


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of programs' names")
    parser.add_argument("--group", choices=[group.value for group in Group])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run even what has a result of these rules")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--list", action="store_true", help="name the programs and run nothing")
    parser.add_argument("--cola", type=Path, help="CoLA's raw folder")
    parser.add_argument("--newsgroups", type=Path, help="by-date archive of newsgroups")
    parser.add_argument("--steps", type=int, help="so many steps only, to see what runs; results are not kept")
    parser.add_argument("--histories", type=Path, help="folder that keeps what was sampled")
    parser.add_argument("--rejudge", action="store_true", help="judge what --histories has instead of training")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rejudge and options.histories is None:
        parser.error("--rejudge needs --histories")

    chosen = [
        program
        for program in PROGRAMS.values()
        if any(part in program.name for part in options.only) and options.group in (None, program.group.value)
    ]
    if options.list:
        for program in chosen:
            print(f"{program.name:32} {program.group.value:8} {program.purpose}")
        return
    rows = read_results(options.results)
    digest = rules_digest()
    due = [
        program
        for program in chosen
        if options.again
        or options.steps
        or (row := rows.get(program.name)) is None
        or row["rules"] != digest
        or not {"failed", "skipped"}.isdisjoint(row)
    ]
    if not options.report:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        small_minilm_folder()  # once, for all processes
        given = (options.cola, options.newsgroups, options.steps, options.histories)
        with ThreadPoolExecutor(options.jobs) as pool:
            done = {name: row for name, row in rows.items() if options.rejudge and "findings" in row}
            jobs = [pool.submit(in_a_process, program, *given, done.get(program.name)) for program in due]
            for job in jobs:
                row = job.result()
                print(row.pop("traceback", ""), end="")
                if not options.steps:
                    append_result(options.results, row)
                print(line(row), flush=True)
        if options.steps:
            return
        rows = tidy_results(options.results)
    else:
        for program in chosen:
            if program.name in rows:
                print(line(rows[program.name]))
    shown = [rows[program.name] for program in chosen if program.name in rows]
    print()
    print(summary(shown))
    if options.results == RESULTS and len(chosen) == len(PROGRAMS):
        first = [row for row in read_results(FIRST_RUN).values() if "findings" in row]
        PAGE.write_text(page(shown, first), encoding="utf-8")


if __name__ == "__main__":
    main()
