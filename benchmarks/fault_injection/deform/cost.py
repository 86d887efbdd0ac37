"""What watching costs: processor time of one training alone, with training health, with the predictor's callback."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median

from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from benchmarks.fault_injection.deform.predictor import Predictor
from benchmarks.fault_injection.deform.runs import WatchedTrainer
from benchmarks.fault_injection.deform.subjects import SUBJECTS
from benchmarks.fault_injection.deform.texts import TASKS, Sources, collate
from bert_toolkit import TrainingHealthCallback

STEPS, ROUNDS = 40, 3
ARMS = ("alone", "training health, every 10th step", "training health, every 2nd step", "predictor's callback")


def seconds(arm: str, name: str, sources: Sources) -> float:
    """Processor seconds per step of one training; the first call of an arm also warms up and should be left out."""
    subject = SUBJECTS[name]
    task = next(task for task in TASKS.values() if task.scope == subject.scope)
    set_seed(0)
    callbacks: list[TrainerCallback] = []
    predictor = None
    if arm == ARMS[3]:
        predictor = Predictor(subject.scope)
        callbacks.append(predictor.callback)
    elif arm != ARMS[0]:
        callbacks.append(TrainingHealthCallback(every_n_steps=10 if arm == ARMS[1] else 2))
    with tempfile.TemporaryDirectory() as folder:
        trainer = WatchedTrainer(
            predictor,
            model=subject.build(task, sources),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=STEPS,
                learning_rate=subject.rate,
                per_device_train_batch_size=subject.batch,
                save_strategy="no",
                logging_steps=10,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=subject.rows(task, sources)[0],
            data_collator=collate,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        trainer.train()
        return (time.process_time() - start) / STEPS


def measure(names: list[str], sources: Sources, path: Path) -> None:
    """Time every arm in turn, several rounds, and write medians in milliseconds per step."""
    times: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in ARMS} for name in names}
    for round_number in range(ROUNDS + 1):
        for name in names:
            for arm in ARMS:
                took = seconds(arm, name, sources)
                if round_number > 0:
                    times[name][arm].append(took)
    milliseconds = {name: {arm: round(1000 * median(v), 2) for arm, v in arms.items()} for name, arms in times.items()}
    path.write_text(json.dumps({"steps": STEPS, "rounds": ROUNDS, "milliseconds": milliseconds}, indent=1) + "\n")
    print(json.dumps(milliseconds, indent=1))
