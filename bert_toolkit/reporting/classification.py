"""What every classifier's run leaves: result table, predictions, figures, model card, results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from transformers import AutoModelForSequenceClassification

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.data.labels import MULTI, REGRESSION, SINGLE
from bert_toolkit.metrics.task_scores import class_scores
from bert_toolkit.reporting import figures, overview, results
from bert_toolkit.reporting.decisions import decision_columns, label_column
from bert_toolkit.reporting.finished_run import FinishedRun, FinishedTraining, close_run, write_report
from bert_toolkit.reporting.reload_check import rows_to_check
from bert_toolkit.training.evaluation import FinalPredictions


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts of true class (rows) against predicted class (columns).

    Args:
        labels: True class ids (n,).
        predicted: Predicted class ids (n,).
        classes: Number of classes.

    Returns:
        Integers (classes, classes).
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def finish_classifier(
    run: FinishedRun,
    corpus: CorpusSplits,
    predictions: FinalPredictions,
    texts: Mapping[str, Sequence[str]],
    trust_remote_code: bool = False,
) -> None:
    """Print the result tables, write all files of a finished run, and check that the saved model reloads.

    Every process calls it; the main one prints and writes. The corpus' remarks go to card and results.

    Args:
        run: The run, whose model is saved.
        corpus: Tokenized splits.
        predictions: Of the test rows.
        texts: Columns of the test rows for `predictions.tsv`.
        trust_remote_code: Whether Python files that lie beside the model may be run.

    Raises:
        ReloadError: The saved model predicts something else.
    """
    close_run(
        run,
        lambda: write_classifier_report(run, corpus, predictions, texts),
        AutoModelForSequenceClassification,
        rows_to_check(corpus.test),
        trust_remote_code,
    )


def write_classifier_report(
    run: FinishedTraining, corpus: CorpusSplits, predictions: FinalPredictions, texts: Mapping[str, Sequence[str]]
) -> None:
    """Print the result tables and write all files of a finished run, on the main process.

    Args:
        run: The run.
        corpus: Tokenized splits, whose remarks go to card and results.
        predictions: Of the test rows.
        texts: Columns of the test rows for `predictions.tsv`.
    """
    run = run.with_remarks(corpus.remarks)
    if corpus.origin is not None:
        scored = "validation" if corpus.test is corpus.validation else "test"
        run = replace(run, origin=replace(corpus.origin, scored=scored))
    names, kind = corpus.label_names, corpus.problem_type
    logits, labels = predictions.logits, predictions.labels
    decisions = decision_columns(logits, names, kind)
    _warn_if_constant(decisions["prediction"], kind)
    overview.print_settings({**run.all_facts(), **{k: f"{v:.4f}" for k, v in run.numbers.items()}}, "Result")
    results.write_predictions(run.output_dir, {**texts, "label": label_column(labels, names, kind), **decisions})

    title, loss = f"{run.title}: test rows", "squared error" if kind == REGRESSION else "loss (nats)"
    drawn = {"learning_curves": figures.draw_learning_curves(run.log_history, run.curves, run.title, loss)}
    by_class = {}
    if kind == REGRESSION:
        drawn["predictions"] = figures.draw_predictions(labels.ravel(), logits[:, 0], title)
    else:
        decided = logits >= 0 if kind == MULTI else logits.argmax(-1)
        by_class = class_scores(labels, decided, names)
        overview.print_class_scores(by_class)
        drawn["class_scores"] = figures.draw_class_scores(by_class, title)
    if kind == SINGLE:
        counts = confusion_counts(labels, decided, len(names))
        drawn["confusion_matrix"] = figures.draw_confusion_matrix(counts, names, title)
    drawn |= run.loss_figures(loss)
    write_report(run, "text-classification", drawn, {"classes": by_class})


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
