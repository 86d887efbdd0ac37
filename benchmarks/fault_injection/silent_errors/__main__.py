"""Silent errors of real trainings, reproduced: the kinds of TrainCheck's list (OSDI 2025) that a Trainer run can meet.

    python -m benchmarks.fault_injection.silent_errors run --cola path/to/cola/raw --newsgroups path/to/20news.tar.gz
    python -m benchmarks.fault_injection.silent_errors report            # benchmarks/silent_errors.md

Every error runs with several seeds on a small model and real text, every step sampled; those of several ranks run on
two processes (gloo). `run` goes on where it was stopped; `--only` takes a regular expression. Needs the extras
`offline` and `recipes`; run it from the top folder of the repository.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from benchmarks.fault_injection.deform.subjects import SUBJECTS
from benchmarks.fault_injection.deform.texts import TASKS, Sources
from benchmarks.fault_injection.silent_errors.errors import ERRORS, STEPS, Setup, rank
from benchmarks.fault_injection.silent_errors.report import alarms, read_rows, report
from benchmarks.fault_injection.smdebug import other_thresholds
from bert_toolkit import TrainingHealthCallback

RESULTS = Path(__file__).parents[2] / "results" / "silent_errors.jsonl"
SEEDS = (0, 1, 2)


class SilentTrainer(Trainer):
    """Trainer whose loss and loader come from the setup."""

    def __init__(self, setup: Setup, **kwargs: Any) -> None:
        self.setup = setup
        super().__init__(**kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The setup's loss; evaluation asks for outputs, too."""
        if return_outputs:
            outputs = model(**inputs)
            return outputs.loss, outputs
        return self.setup.loss(self, model, inputs)

    def get_train_dataloader(self) -> DataLoader:
        """The setup's loader, or Trainer's."""
        return self.setup.loader(self) if self.setup.loader else super().get_train_dataloader()


def run_here(name: str, seed: int, model: str, sources: Sources) -> dict[str, Any]:
    """Train one error, or the healthy run of that model, in this process (one of two where there are two)."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bert_toolkit").setLevel(logging.CRITICAL)
    subject = SUBJECTS[model]
    task = TASKS["registers" if subject.scope == "encoder" else "speeches"]
    train, test = subject.rows(task, sources)
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "seed": seed,
            "max_steps": STEPS,
            "learning_rate": subject.rate,
            "per_device_train_batch_size": 8,
            "warmup_steps": 2,
            "lr_scheduler_type": "linear",
            "logging_steps": 8,
            "save_strategy": "no",
            "remove_unused_columns": False,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        setup = Setup(subject.build(task, sources), train, settings)
        if name != "healthy":
            ERRORS[name].inject(setup)
        health = TrainingHealthCallback(every_n_steps=1)
        trainer = SilentTrainer(
            setup,
            model=setup.model,
            args=TrainingArguments(**setup.settings),
            train_dataset=setup.rows,
            eval_dataset=test[:16],
            data_collator=setup.collator,
            callbacks=[*setup.callbacks, health],
            optimizers=(setup.optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        setup.prepared(trainer)
        trainer.train()
    kept = ("rule", "severity", "step", "samples", "symptom_of")
    return {
        "name": name,
        "model": model,
        "ranks": int(os.environ.get("WORLD_SIZE", 1)),
        "seed": seed,
        "findings": [{key: entry[key] for key in kept} for entry in health.judge.report()],
        "smdebug": [] if health.history is None else other_thresholds(health.history),
        "verdict": health.verdict,
    }


def run_on_two(name: str, seed: int, model: str, sources: Sources) -> dict[str, Any]:
    """The same on two processes; the row is rank 0's."""
    with tempfile.TemporaryDirectory() as folder:
        row = Path(folder) / "row.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["-m", "benchmarks.fault_injection.silent_errors", "rank", "--cola", str(sources.cola)]
        command += ["--newsgroups", str(sources.newsgroups), "--only", name, "--model", model]
        command += ["--seeds", str(seed), "--results", str(row)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
        if not row.exists():
            raise RuntimeError(f"{name} on two ranks wrote nothing:\n{process.stderr[-6000:]}")
        return json.loads(row.read_text(encoding="utf-8"))


def jobs(seeds: list[int]) -> list[tuple[str, str, int, int]]:
    """Name, model, ranks and seed of every run: the errors, and a healthy run of each of their kinds."""
    kinds = [(name, error.model, error.ranks) for name, error in ERRORS.items()]
    kinds += sorted({("healthy", model, ranks) for _, model, ranks in kinds})
    return [(*kind, seed) for kind in kinds for seed in seeds]


def run(arguments: argparse.Namespace, sources: Sources) -> None:
    """Run what the results file lacks."""
    done = {(r["name"], r["model"], r["ranks"], r["seed"]) for r in read_rows(arguments.results)}
    for name, model, ranks, seed in jobs(arguments.seeds):
        if (name, model, ranks, seed) in done or not re.search(arguments.only, name):
            continue
        row = (run_on_two if ranks == 2 else run_here)(name, seed, model, sources)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(name, model, ranks, seed, *(f"{f['rule']}@{f['samples']}" for f in alarms(row)), flush=True)


def main() -> None:
    """Read the command line and do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "rank"], help="`rank` is what `run` starts twice")
    parser.add_argument("--cola", type=Path, help="folder with CoLA's raw files")
    parser.add_argument("--newsgroups", type=Path, help="archive or folder of 20 newsgroups, by date")
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--model", default="bert", choices=list(SUBJECTS), help="for `rank`")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.results)
        return
    if arguments.cola is None or arguments.newsgroups is None:
        parser.error(f"{arguments.command} needs --cola and --newsgroups")
    sources = Sources(arguments.cola, arguments.newsgroups)
    if arguments.command == "run":
        run(arguments, sources)
        return
    row = run_here(arguments.only, arguments.seeds[0], arguments.model, sources)
    if rank() == 0:
        arguments.results.write_text(json.dumps(row), encoding="utf-8")
    torch.distributed.barrier()
    gc.collect()
    os._exit(0)  # destroying a group of gloo while DistributedDataParallel lives can abort or hang


if __name__ == "__main__":
    main()
