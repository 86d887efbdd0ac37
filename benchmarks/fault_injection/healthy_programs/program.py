"""What a healthy program is: a training that is built from a setup, and a score that shows it learned something."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments


class Group(Enum):
    """Whether those who write rules may look at the program's alarms."""

    TUNING = "tuning"
    HELD_OUT = "held_out"


TUNING, HELD_OUT = Group.TUNING, Group.HELD_OUT


@dataclass(frozen=True)
class Score:
    """How good a training was, by a measure of its own.

    Args:
        name: What is measured.
        value: At the end.
        bound: What it must reach.
        higher: Whether higher is better.
        before: At the start, NaN where that means nothing.
    """

    name: str
    value: float
    bound: float
    higher: bool = False
    before: float = float("nan")

    @property
    def healthy(self) -> bool:
        """Whether the training reached its bound."""
        return self.value >= self.bound if self.higher else self.value <= self.bound


@dataclass
class Setup:
    """Under what circumstances a program runs.

    Args:
        folder: Where it may write.
        make_callbacks: Gives new callbacks for a trainer.
        watch: Watches a loop without Trainer, as `bert_toolkit.watch_loop` does.
        steps: Replaces the program's number of optimizer steps; the score means nothing then.
        cola: CoLA's raw folder, where it is at hand.
        newsgroups: The by-date archive of 20 newsgroups, where it is at hand.
    """

    folder: Path
    make_callbacks: Callable[[], Sequence[TrainerCallback]] = tuple
    watch: Callable[..., Any] | None = None
    steps: int | None = None
    cola: Path | None = None
    newsgroups: Path | None = None


@dataclass
class Ready:
    """A training that is ready to start.

    Args:
        run: Trains.
        model: What is trained.
        score: Measures after the run.
        trainer: The trainer, where there is one.
    """

    run: Callable[[], Any]
    model: nn.Module
    score: Callable[[], Score]
    trainer: Trainer | None = None


class MissingError(Exception):
    """A package or a file that a program needs is not there."""


@dataclass(frozen=True)
class Program:
    """A healthy training.

    Args:
        name: The function's name.
        build: Builds it.
        group: Whether its alarms may be looked at when rules are written.
        every_n_steps: Distance of the steps that training health samples.
        packages: Packages it needs beyond the extras `offline`, `recipes` and `test`.
        needs: Fields of `Setup` that must be given.
    """

    name: str
    build: Callable[[Setup], Ready]
    group: Group
    every_n_steps: int
    packages: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def purpose(self) -> str:
        """First line of the builder's docstring."""
        return (self.build.__doc__ or "").strip().split("\n")[0]

    def __call__(self, setup: Setup) -> Ready:
        """Build the training.

        Raises:
            MissingError: Something that it needs is not there.
        """
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise MissingError(f"package {package} is not installed")
        for name in self.needs:
            if getattr(setup, name) is None:
                raise MissingError(f"--{name} was not given")
        return self.build(setup)


PROGRAMS: dict[str, Program] = {}


def program(
    group: Group, every_n_steps: int = 2, packages: Sequence[str] = (), needs: Sequence[str] = ()
) -> Callable[[Callable[[Setup], Ready]], Callable[[Setup], Ready]]:
    """Register the function below as a healthy program; see `Program` for the arguments."""

    def register(build: Callable[[Setup], Ready]) -> Callable[[Setup], Ready]:
        name = build.__name__
        assert name not in PROGRAMS, name
        PROGRAMS[name] = Program(name, build, group, every_n_steps, tuple(packages), tuple(needs))
        return build

    return register


def arguments(setup: Setup, steps: int, rate: float, batch: int = 8, **changes: Any) -> dict[str, Any]:
    """Settings of a short training, as keyword arguments of `TrainingArguments` and its subclasses."""
    settings = {
        "output_dir": str(setup.folder),
        "max_steps": setup.steps or steps,
        "learning_rate": rate,
        "per_device_train_batch_size": batch,
        "warmup_steps": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        **changes,
    }
    if setup.steps and not settings["max_steps"]:
        del settings["max_steps"]
    return settings


def loss_course(trainer: Trainer, part: float = 0.1) -> tuple[float, float]:
    """Mean of the first and of the last logged losses, a part of the run each."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    few = max(1, int(len(losses) * part))
    return float(np.mean(losses[:few])), float(np.mean(losses[-few:]))


def loss_fell(trainer: Trainer, to: float) -> Score:
    """The loss at the end, which must be at most `to` times that of the beginning."""
    before, after = loss_course(trainer)
    return Score("loss", after, to * before if before > 0 else before - abs(before) * (1 - to), before=before)


def with_trainer(
    setup: Setup,
    model: nn.Module,
    rows: Any,
    settings: dict[str, Any],
    *,
    tokenizer: Any = None,
    collator: Any = None,
    score: Callable[[Trainer], Score] | float = 0.8,
    trainer_class: type[Trainer] = Trainer,
    callbacks: Sequence[TrainerCallback] = (),
    **kwargs: Any,
) -> Ready:
    """A training by Trainer.

    Args:
        setup: The circumstances.
        model: What is trained.
        rows: Training dataset.
        settings: From `arguments`.
        tokenizer: Pads the batches and is the trainer's `processing_class`.
        collator: Makes the batches, where padding is not enough.
        score: Measures after the run; a number is the part of its first level to which the loss must fall.
        trainer_class: The trainer.
        callbacks: The program's own.
        kwargs: Further arguments of the trainer.
    """
    if collator is None and tokenizer is not None:
        collator = DataCollatorWithPadding(tokenizer)
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[*callbacks, *setup.make_callbacks()],
        **kwargs,
    )
    measure = score if callable(score) else lambda done: loss_fell(done, score)
    return Ready(trainer.train, model, lambda: measure(trainer), trainer)


class Loop:
    """A training loop without Trainer that keeps its losses and may be watched.

    Args:
        setup: The circumstances.
        model: What is trained.
        optimizer: Its optimizer.
        steps: Number of optimizer steps.
        settings: For what watches the loop, see `watch_loop`.
    """

    def __init__(self, setup: Setup, model: nn.Module, optimizer: Any, steps: int, **settings: Any):
        """Ask the setup for what watches the loop."""
        self.steps = setup.steps or steps
        self.losses: list[float] = []
        self._watching = setup.watch and setup.watch(model, optimizer, total_steps=self.steps, **settings)

    def __enter__(self) -> Loop:
        """Training begins."""
        if self._watching is not None:
            self._watching.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Training ends."""
        if self._watching is not None:
            self._watching.__exit__(*error)

    def log(self, loss: Any) -> None:
        """Tell the loss of a batch, before the optimizer's step."""
        self.losses.append(float(loss))
        if self._watching is not None:
            self._watching.log(loss)

    def loss_fell(self, to: float) -> Score:
        """The loss of the last tenth, which must be at most `to` times that of the first."""
        few = max(1, len(self.losses) // 10)
        before, after = float(np.mean(self.losses[:few])), float(np.mean(self.losses[-few:]))
        return Score("loss", after, to * before if before > 0 else before - abs(before) * (1 - to), before=before)
