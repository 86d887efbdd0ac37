"""A training that has ended: what every report says of it, and the proof that what it saved can be loaded."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
)

from bert_toolkit.callbacks.run_report import page_unless_it_fails
from bert_toolkit.data.corpus_splits import Origin
from bert_toolkit.reporting import figures, overview, results
from bert_toolkit.reporting.hub_push import push
from bert_toolkit.reporting.hyperparameters import write_hyperparameters
from bert_toolkit.reporting.model_card import CardText, write_model_card
from bert_toolkit.reporting.reload_check import check_reload
from bert_toolkit.run_page.run_record import read_json
from bert_toolkit.training.trainer_run import RunCallbacks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FinishedRun:
    """What a recipe knows of its training once it has ended.

    Args:
        trainer: Has finished training and saved its model.
        callbacks: What counted and watched.
        title: Name of the model, on figures and card.
        summary: A paragraph for the model card.
        facts: What the run was: data, model, settings.
        scores: Metrics of the run. Numbers go to table and card, everything to `results.json`.
        curves: Evaluation metrics to draw over the steps, without the `eval_` prefix.
        drawn: Figures of the recipe's own, by name.
        origin: Which data these were, for the model card; None where nobody knows.
    """

    trainer: Trainer
    callbacks: RunCallbacks
    title: str
    summary: str
    facts: Mapping[str, object]
    scores: Mapping[str, Any]
    curves: Sequence[str]
    drawn: Mapping[str, Figure] = field(default_factory=dict)
    origin: Origin | None = None

    @property
    def output_dir(self) -> str:
        """Where the run writes."""
        return str(self.trainer.args.output_dir)

    @property
    def name(self) -> str:
        """Of the model, on the hub or as its folder is called."""
        return (self.trainer.hub_model_id or Path(self.output_dir).resolve().name).split("/")[-1]

    @property
    def numbers(self) -> dict[str, float]:
        """The scores that are one number."""
        return {
            name: float(value) for name, value in self.scores.items() if isinstance(value, int | float | np.number)
        }

    def with_remarks(self, remarks: Sequence[str], origin: Origin | None = None) -> FinishedRun:
        """The run with what a reader of card and results must know of its data.

        Args:
            remarks: Sentences on them.
            origin: Of the data, where the run does not have it.
        """
        told = " ".join(remarks)
        summary = f"{self.summary} {told}".rstrip()
        return replace(self, summary=summary, facts={**self.facts, "remarks": told}, origin=origin or self.origin)

    def loss_figures(self, loss: str = "loss (nats)") -> dict[str, Figure]:
        """The loss of each batch as a figure, none where it was not kept.

        Args:
            loss: What is on the axis.
        """
        kept = self.callbacks.losses
        if kept is None or not kept.losses:
            return {}
        return {"training_loss_by_batch": figures.draw_batch_losses(kept.losses, kept.first_batch, self.title, loss)}

    def all_facts(self) -> dict[str, object]:
        """The recipe's facts, then those of every run."""
        tokens, health = self.callbacks.tokens, self.callbacks.health
        utilization = [entry["mfu"] for entry in self.trainer.state.log_history if "mfu" in entry]
        return {
            **self.facts,
            "learning rate": self.trainer.args.learning_rate,
            "steps": self.trainer.state.global_step,
            "epochs": self.trainer.state.epoch,
            "training seconds": round(tokens.seconds, 2),
            "tokens per second": round(tokens.tokens_per_second),
            "padding share": round(tokens.padding_share, 4),
            **({"MFU": round(sum(utilization) / len(utilization), 4)} if utilization else {}),
            "device": overview.describe_device(self.trainer.args),
            "training health": health.verdict.removeprefix("Training health: ") if health else "not watched",
        }


def write_report(
    run: FinishedRun, task: str, figures_of_task: Mapping[str, Figure], results_of_task: Mapping[str, Any]
) -> None:
    """Writes figures, model card and `results.json`.

    Args:
        run: The run.
        task: Hub task name, for example `text-classification`.
        figures_of_task: Figures by name, beside the learning curves and those of the recipe.
        results_of_task: What else `results.json` is to hold.
    """
    state, facts, health = run.trainer.state, run.all_facts(), run.callbacks.health
    figures.save_figures({**figures_of_task, **run.drawn}, run.output_dir, state.global_step)
    write_hyperparameters(run.trainer, facts, run.numbers)
    findings = health.report["findings"] if health else []
    of_training = {key: value for key, value in facts.items() if key != "training health" and value != ""}
    text = CardText(run.title, run.summary, of_training, str(facts["training health"]), findings)
    parent = getattr(getattr(run.trainer.model, "config", None), "_name_or_path", None)
    write_model_card(run.output_dir, run.name, task, text, run.numbers, run.origin, parent)
    results.write_results(
        run.output_dir,
        {
            **run.scores,
            **facts,
            "training_health_findings": findings,
            **results_of_task,
            "log_history": state.log_history,
        },
    )


def close_run(
    run: FinishedRun, write: Callable[[], None], auto_class: Any, rows: Any, trust_remote_code: bool = False
) -> None:
    """Reports on the main process, then has every process check that the saved model predicts as the trained one.

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
    """Writes the page of a run that has ended, and says where it is, how to see curves, and how to use the model.

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
    load = f"{auto_class.__name__}.from_pretrained({output_dir!r})"
    if auto_class is AutoModelForSequenceClassification:
        use = f"label new texts: python -m bert_toolkit.predict --model_name_or_path {folder} --data new.csv"
        use += " --output labeled.tsv"
        if "text_columns" not in read_json(Path(output_dir) / "config.json"):  # as the model was trained
            use += " --text_columns text"
    elif auto_class is AutoModelForTokenClassification:
        use = f"tag new texts: pipeline('token-classification', {output_dir!r}, aggregation_strategy='simple')"
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
