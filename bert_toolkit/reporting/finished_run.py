"""A training that has ended: what every report says of it, and the proof that what it saved can be loaded."""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
)

from bert_toolkit.callbacks import TrainingHealthCallback, watch_loop
from bert_toolkit.callbacks.run_report import page_unless_it_fails
from bert_toolkit.callbacks.trainer_reporters import trainers_writer
from bert_toolkit.data.corpus_splits import Origin
from bert_toolkit.model.configuration_toolkit_bert import ToolkitBertConfig
from bert_toolkit.reporting import figures, overview, results
from bert_toolkit.reporting.hub_push import push
from bert_toolkit.reporting.hyperparameters import write_hyperparameters
from bert_toolkit.reporting.model_card import CardText, write_model_card
from bert_toolkit.reporting.reload_check import check_reload
from bert_toolkit.run_page.run_record import read_json
from bert_toolkit.training.trainer_run import RunCallbacks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class FinishedTraining(ABC):
    """What a report says of a training that has ended, whoever trained.

    Args:
        title: Name of the model, on figures and card.
        summary: A paragraph for the model card.
        facts: What the run was: data, model, settings.
        scores: Metrics of the run. Numbers go to table and card, everything to `results.json`.
        curves: Evaluation metrics to draw over the steps, without the `eval_` prefix.
        drawn: Figures of the recipe's own, by name.
        origin: Which data these were, for the model card; None where nobody knows.
    """

    title: str
    summary: str
    facts: Mapping[str, object]
    scores: Mapping[str, Any]
    curves: Sequence[str]
    drawn: Mapping[str, Figure] = field(default_factory=dict)
    origin: Origin | None = None

    @property
    @abstractmethod
    def output_dir(self) -> str:
        """The folder that the run writes to."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """The number of optimizer steps that were taken."""

    @property
    @abstractmethod
    def log_history(self) -> Sequence[Mapping[str, float]]:
        """The entries that were logged, each with its `step`."""

    @property
    @abstractmethod
    def health(self) -> TrainingHealthCallback | None:
        """The callback that watched the training, None where nothing did."""

    @property
    @abstractmethod
    def parent(self) -> str | None:
        """The folder or hub name of the model that training began with."""

    @property
    def name(self) -> str:
        """The name of the model, which is that of its folder."""
        return Path(self.output_dir).resolve().name

    @property
    def numbers(self) -> dict[str, float]:
        """The scores that are one number."""
        return {
            name: float(value) for name, value in self.scores.items() if isinstance(value, int | float | np.number)
        }

    def with_remarks(self, remarks: Sequence[str], origin: Origin | None = None) -> Self:
        """Return the run with what a reader of card and results must know of its data.

        Args:
            remarks: Sentences on them.
            origin: Of the data, where the run does not have it.
        """
        told = " ".join(remarks)
        summary = f"{self.summary} {told}".rstrip()
        return replace(self, summary=summary, facts={**self.facts, "remarks": told}, origin=origin or self.origin)

    @abstractmethod
    def summary_writer(self) -> AbstractContextManager[Any]:
        """Return the writer of the training's TensorBoard run; None where there is no such run."""

    def loss_figures(self, loss: str = "loss (nats)") -> dict[str, Figure]:
        """Return the loss of each batch as a figure, none where it was not kept.

        Args:
            loss: What is on the axis.
        """
        return {}

    def all_facts(self) -> dict[str, object]:
        """Return the recipe's facts, then those of every run."""
        verdict = self.health.verdict.removeprefix("Training health: ") if self.health else "not watched"
        return {**self.facts, "steps": self.steps, "training health": verdict}


@dataclass(frozen=True)
class FinishedRun(FinishedTraining):
    """What a recipe knows of its training with Trainer once it has ended; the rest as `FinishedTraining`.

    Args:
        trainer: Has finished training and saved its model.
        callbacks: What counted and watched.
    """

    trainer: Trainer
    callbacks: RunCallbacks

    @property
    def output_dir(self) -> str:
        """The folder that the run writes to."""
        return str(self.trainer.args.output_dir)

    @property
    def steps(self) -> int:
        """The number of optimizer steps that were taken."""
        return self.trainer.state.global_step

    @property
    def log_history(self) -> Sequence[Mapping[str, float]]:
        """The entries that were logged, each with its `step`."""
        return self.trainer.state.log_history

    @property
    def health(self) -> TrainingHealthCallback | None:
        """The callback that watched the training, None where nothing did."""
        return self.callbacks.health

    @property
    def parent(self) -> str | None:
        """The folder or hub name of the model that training began with."""
        return getattr(getattr(self.trainer.model, "config", None), "_name_or_path", None)

    @property
    def name(self) -> str:
        """The name of the model on the hub, or that of its folder."""
        return (self.trainer.hub_model_id or super().name).split("/")[-1]

    def summary_writer(self) -> AbstractContextManager[Any]:
        """Return Trainer's TensorBoard writer, which stays open; None where Trainer has none."""
        return nullcontext(trainers_writer(self.trainer))

    def loss_figures(self, loss: str = "loss (nats)") -> dict[str, Figure]:
        """Return the loss of each batch as a figure, none where it was not kept.

        Args:
            loss: What is on the axis.
        """
        kept = self.callbacks.losses
        if kept is None or not kept.losses:
            return {}
        return {"training_loss_by_batch": figures.draw_batch_losses(kept.losses, kept.first_batch, self.title, loss)}

    def all_facts(self) -> dict[str, object]:
        """Return the recipe's facts, then those of every run."""
        tokens = self.callbacks.tokens
        utilization = [entry["mfu"] for entry in self.trainer.state.log_history if "mfu" in entry]
        of_every_run = super().all_facts()
        return {
            **self.facts,
            "learning rate": self.trainer.args.learning_rate,
            "steps": of_every_run["steps"],
            "epochs": self.trainer.state.epoch,
            "training seconds": round(tokens.seconds, 2),
            "tokens per second": round(tokens.tokens_per_second),
            "padding share": round(tokens.padding_share, 4),
            **({"MFU": round(sum(utilization) / len(utilization), 4)} if utilization else {}),
            "device": overview.describe_device(self.trainer.args),
            "training health": of_every_run["training health"],
        }


@dataclass(frozen=True)
class FinishedLoop(FinishedTraining):
    """What a recipe knows of its own training loop once it has ended; the rest as `FinishedTraining`.

    Args:
        folder: Where the run writes.
        step: Optimizer steps that were taken.
        logged: What was logged, each entry with its `step`, names as Trainer's: `loss`, `eval_accuracy`.
        watched: What watched the training, None if nothing did.
        began_with: Folder or hub name of the model that training began with.
    """

    folder: str
    step: int
    logged: Sequence[Mapping[str, float]]
    watched: watch_loop | None
    began_with: str

    @property
    def output_dir(self) -> str:
        """The folder that the run writes to."""
        return self.folder

    @property
    def steps(self) -> int:
        """The number of optimizer steps that were taken."""
        return self.step

    @property
    def log_history(self) -> Sequence[Mapping[str, float]]:
        """The entries that were logged, each with its `step`."""
        return self.logged

    @property
    def health(self) -> TrainingHealthCallback | None:
        """The callback that watched the training, None where nothing did."""
        return None if self.watched is None else self.watched.health

    @property
    def parent(self) -> str | None:
        """The folder or hub name of the model that training began with."""
        return self.began_with

    def summary_writer(self) -> AbstractContextManager[Any]:
        """Return a TensorBoard writer in the folder in which Accelerate's tracker, closed by now, has written."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(Path(self.output_dir) / "runs"))


def write_report(
    run: FinishedTraining, task: str, figures_of_task: Mapping[str, Figure], results_of_task: Mapping[str, Any]
) -> None:
    """Write figures, model card and `results.json`.

    Args:
        run: The run.
        task: Hub task name, for example `text-classification`.
        figures_of_task: Figures by name, beside the learning curves and those of the recipe.
        results_of_task: What else `results.json` is to hold.
    """
    facts = run.all_facts()
    with run.summary_writer() as writer:
        figures.save_figures({**figures_of_task, **run.drawn}, run.output_dir, run.steps, writer)
    if isinstance(run, FinishedRun):  # a loop has no writer of Trainer's
        write_hyperparameters(run.trainer, facts, run.numbers)
    findings = run.health.report["findings"] if run.health else []
    of_training = {key: value for key, value in facts.items() if key != "training health" and value != ""}
    text = CardText(run.title, run.summary, of_training, str(facts["training health"]), findings)
    write_model_card(run.output_dir, run.name, task, text, run.numbers, run.origin, run.parent)
    results.write_results(
        run.output_dir,
        {
            **run.scores,
            **facts,
            "training_health_findings": findings,
            **results_of_task,
            "log_history": run.log_history,
        },
    )


def close_run(
    run: FinishedRun, write: Callable[[], None], auto_class: Any, rows: Any, trust_remote_code: bool = False
) -> None:
    """Report on the main process, then have every process check that the saved model predicts as the trained one.

    Args:
        run: The run.
        write: Prints and writes everything.
        auto_class: For example `AutoModelForSequenceClassification`.
        rows: A few rows that both models predict.
        trust_remote_code: Whether Python files that lie beside the model may be run.

    Raises:
        ReloadError: The saved model predicts something else.
        InputError: `push_to_hub` was asked for and the hub does not take the files.
    """
    if run.trainer.is_world_process_zero():
        write()
    run.trainer.args.distributed_state.wait_for_everyone()
    check_reload(run.trainer, auto_class, rows, trust_remote_code)
    tell_what_is_there(run.output_dir, auto_class, run.trainer.is_world_process_zero())
    if run.trainer.args.push_to_hub and run.trainer.is_world_process_zero():
        push(run.trainer)


def tell_what_is_there(output_dir: str, auto_class: Any, is_main: bool = True) -> None:
    """Write the page of a run that has ended, and say where it is, how to see curves, and how to use the model.

    A page that cannot be written is told in one warning.

    Args:
        output_dir: Output directory of the run.
        auto_class: What loads its model.
        is_main: Whether this process writes and prints.
    """
    if not is_main:
        return
    folder = shlex.quote(output_dir)
    events = shlex.quote(os.environ.get("TENSORBOARD_LOGGING_DIR") or str(Path(output_dir) / "runs"))
    config = read_json(Path(output_dir) / "config.json")
    # Without the import a model of this package is one of unknown code to transformers.
    known = "import bert_toolkit; " if config.get("model_type") == ToolkitBertConfig.model_type else ""
    load = f"{known}{auto_class.__name__}.from_pretrained({output_dir!r})"
    if auto_class is AutoModelForSequenceClassification:
        use = f"label new texts: python -m bert_toolkit.predict --model_name_or_path {folder} --data new.csv"
        use += " --output labeled.tsv"
        if "text_columns" not in config:  # as the model was trained
            use += " --text_columns text"
    elif auto_class is AutoModelForTokenClassification:
        use = f"tag new texts: {known}pipeline('token-classification', {output_dir!r}, aggregation_strategy='simple')"
    elif auto_class is AutoModelForQuestionAnswering:
        use = f"answer new questions: {folder}/README.md shows how"
    else:
        use = (
            f"fine-tune: accelerate launch recipes/classify.py --model_name_or_path {folder} --train_data labeled.csv"
        )
    page = page_unless_it_fails(Path(output_dir))
    print(f"Saved and reloaded with identical predictions: {output_dir}")
    print(f"report      {page or 'none was written, see the warning above'}")
    print(f"curves      tensorboard --logdir {events}")
    print(f"model       {load}")
    print(f"next        {use}")
