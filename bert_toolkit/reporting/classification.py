"""What every classifier's run leaves behind: result table, predictions, figures, model card, results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import Trainer

from bert_toolkit.callbacks import TrainingHealthCallback
from bert_toolkit.callbacks.batch_losses import BatchLossCallback
from bert_toolkit.callbacks.token_counter import TokenCounterCallback
from bert_toolkit.data.labels import MULTI, REGRESSION, SINGLE
from bert_toolkit.metrics.task_scores import class_scores
from bert_toolkit.reporting import figures, overview, results
from bert_toolkit.reporting.decisions import decision_columns, label_column

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of true class (rows) against predicted class (columns), integer array (classes, classes).

    Args:
        labels: True class ids (n,).
        predicted: Predicted class ids (n,).
        classes: Number of classes.
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def write_classifier_outputs(
    trainer: Trainer,
    title: str,
    summary: str,
    label_names: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    logits: np.ndarray,
    labels: np.ndarray,
    scores: Mapping[str, Any],
    facts: Mapping[str, object],
    tokens: TokenCounterCallback,
    curves: Sequence[str],
    health: TrainingHealthCallback | None = None,
    drawn: Mapping[str, Figure] | None = None,
    losses: BatchLossCallback | None = None,
    problem_type: str = SINGLE,
) -> None:
    """Prints the result tables and writes all files of a finished run.

    Call it on the main process only.

    Args:
        trainer: Has finished training.
        title: Name of the model, on figures and card.
        summary: A paragraph for the model card.
        label_names: Name of each class id.
        texts: Text columns of the test rows, for `predictions.tsv`.
        logits: Test logits (n, classes), or (n, 1) for regression.
        labels: True class ids (n,); 0 and 1 (n, classes) of several labels at once; numbers (n,) of regression.
        scores: Metrics of the run. Floats go to table and card, everything to `results.json`.
        facts: What the run was: data, model, settings.
        tokens: The counter of the run.
        curves: Evaluation metrics to draw over the steps, without the `eval_` prefix.
        health: What watched the training, if anything did.
        drawn: Further figures by name.
        losses: The loss of each batch, if it was recorded.
        problem_type: As in the configuration of the model.
    """
    output_dir = str(trainer.args.output_dir)
    predictions = decision_columns(logits, label_names, problem_type)
    _warn_if_constant(predictions["prediction"], problem_type)
    facts = {
        **facts,
        "learning rate": trainer.args.learning_rate,
        "epochs": trainer.state.epoch,
        "training seconds": round(tokens.seconds, 2),
        "tokens per second": round(tokens.tokens_per_second),
        "padding share": round(tokens.padding_share, 4),
        "device": overview.describe_device(trainer.args),
        "training health": health.verdict.removeprefix("Training health: ") if health else "not watched",
    }
    numbers = {name: float(value) for name, value in scores.items() if isinstance(value, int | float | np.number)}
    overview.print_settings({**facts, **{name: f"{value:.4f}" for name, value in numbers.items()}}, "Result")

    results.write_predictions(
        output_dir, {**texts, "label": label_column(labels, label_names, problem_type), **predictions}
    )
    loss = "squared error" if problem_type == REGRESSION else "loss (nats)"
    drawn = {
        "learning_curves": figures.draw_learning_curves(trainer.state.log_history, curves, title, loss),
        **(drawn or {}),
    }
    by_class = {}
    if problem_type == REGRESSION:
        drawn["predictions"] = figures.draw_predictions(labels.ravel(), logits[:, 0], f"{title}: test rows")
    else:
        decided = logits >= 0 if problem_type == MULTI else logits.argmax(-1)
        by_class = class_scores(labels, decided, label_names)
        overview.print_class_scores(by_class)
        drawn["class_scores"] = figures.draw_class_scores(by_class, f"{title}: test rows")
    if problem_type == SINGLE:
        counts = confusion_counts(labels, decided, len(label_names))
        drawn["confusion_matrix"] = figures.draw_confusion_matrix(counts, label_names, f"{title}: test rows")
    if losses is not None and losses.losses:
        drawn["training_loss_by_batch"] = figures.draw_batch_losses(losses.losses, losses.first_batch, title, loss)
    figures.save_figures(drawn, output_dir, trainer.state.global_step)
    results.write_model_card(output_dir, title, "text-classification", summary, facts, numbers)
    results.write_results(
        output_dir,
        {
            **scores,
            **facts,
            "training_health_findings": health.report["findings"] if health else [],
            "classes": by_class,
            "log_history": trainer.state.log_history,
        },
    )


def _warn_if_constant(predictions: Sequence[str | float], problem_type: str) -> None:
    if len(set(predictions)) != 1:
        return
    consequence = {
        SINGLE: "so the Matthews correlation is 0: ",
        MULTI: "the same labels: ",
        REGRESSION: "so it correlates with nothing: ",
    }[problem_type]
    print(
        f"warning: every row was predicted as {predictions[0]!r}, {consequence}the model has learned nothing; try "
        "another learning rate, more rows or a larger model",
        flush=True,
    )
