"""What a tagger's run leaves: scores of entities or tags, predictions word by word, figures, card, results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, EvalPrediction, Trainer

from bert_toolkit.data.corpus_splits import Origin
from bert_toolkit.data.tagged_sentences import TaggedSplits
from bert_toolkit.ignored_label import IGNORED_LABEL
from bert_toolkit.metrics.entity_scores import entity_scores
from bert_toolkit.metrics.task_scores import class_scores
from bert_toolkit.reporting import figures, overview, results
from bert_toolkit.reporting.classification import confusion_counts
from bert_toolkit.reporting.finished_run import FinishedRun, close_run, write_report
from bert_toolkit.reporting.reload_check import rows_to_check
from bert_toolkit.training.evaluation import longest_first, plain_prediction, rows_in_order
from bert_toolkit.training.tokenized_words import tags_of_words


@dataclass(frozen=True)
class TaggedPredictions:
    """What a trained tagger says of the test sentences, in their order.

    Args:
        predicted: Tag ids of the tokens, (n, T).
        probability: Of these, (n, T).
        labels: True tag ids, -100 where a token does not count, (n, T).
        validation_metrics: Metrics of the validation sentences, with the prefix `validation_`.
    """

    predicted: np.ndarray
    probability: np.ndarray
    labels: np.ndarray
    validation_metrics: dict[str, float]


def likeliest_tags(
    outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tag and its probability for each token, for `Trainer(preprocess_logits_for_metrics=)`.

    Args:
        outputs: Logits (B, T, tags), or a tuple that begins with them.
        labels: Not needed.

    Returns:
        Ids and probabilities, (B, T).
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    probability, tag = logits.float().softmax(-1).max(-1)
    return tag, probability


class TagMetrics:
    """Scores of an evaluation, for `Trainer(compute_metrics=)`.

    Args:
        corpus: Names the tags, and whether they mark entities.
    """

    def __init__(self, corpus: TaggedSplits) -> None:
        self.corpus = corpus

    @property
    def best(self) -> str:
        """The score that chooses a checkpoint."""
        return "entity_f1" if self.corpus.scheme else "accuracy"

    @property
    def names(self) -> list[str]:
        """The names of all scores, the best first."""
        return ["entity_f1", "entity_precision", "entity_recall", "accuracy"] if self.corpus.scheme else ["accuracy"]

    def __call__(self, evaluation: EvalPrediction) -> dict[str, float]:
        """Scores of predictions as `likeliest_tags` makes them.

        Args:
            evaluation: Ids and probabilities (n, T) each, and labels (n, T).
        """
        labels: Any = evaluation.label_ids
        true, predicted = tags_of_words(evaluation.predictions[0], labels, self.corpus.tag_names)
        right = [a == b for of, by in zip(true, predicted, strict=True) for a, b in zip(of, by, strict=True)]
        scores = entity_scores(true, predicted)[0] if self.corpus.scheme else {}
        return {**scores, "accuracy": float(np.mean(right)) if right else 0.0}


def predict_tags(trainer: Trainer, corpus: TaggedSplits) -> TaggedPredictions:
    """Evaluate on the validation sentences and predict the test sentences; the same sentences only once.

    Args:
        trainer: Has finished training.
        corpus: Tokenized splits.

    Returns:
        What was predicted of the test sentences, and metrics of the validation sentences with the prefix
        `validation_`.
    """
    with plain_prediction(trainer):
        same = corpus.test is corpus.validation
        metrics = {} if same else trainer.evaluate(metric_key_prefix="validation")
        output = trainer.predict(longest_first(corpus.test), metric_key_prefix="validation" if same else "test")
        if same:
            metrics = dict(output.metrics or {})
            trainer.log(metrics)
    arrays = (*output.predictions, output.label_ids)
    predicted, probability, labels = (rows_in_order(array, corpus.test) for array in arrays)
    return TaggedPredictions(predicted, probability, labels, metrics)


def finish_tagger(
    run: FinishedRun, corpus: TaggedSplits, predictions: TaggedPredictions, trust_remote_code: bool = False
) -> None:
    """Print the result tables, write all files of a finished run, and check that the saved model reloads.

    Every process calls it; the main one prints and writes. The corpus' remarks go to card and results.

    Args:
        run: The run, whose model is saved.
        corpus: Tokenized splits.
        predictions: Of the test sentences.
        trust_remote_code: Whether Python files that lie beside the model may be run.

    Raises:
        ReloadError: The saved model predicts something else.
    """
    scored = "validation" if corpus.test is corpus.validation else "test"
    run = run.with_remarks(corpus.remarks, Origin(corpus.description, scored=scored))
    close_run(
        run,
        lambda: _write_outputs(run, corpus, predictions),
        AutoModelForTokenClassification,
        rows_to_check(corpus.test),
        trust_remote_code,
    )


def _write_outputs(run: FinishedRun, corpus: TaggedSplits, predictions: TaggedPredictions) -> None:
    names = corpus.tag_names
    true, predicted = tags_of_words(predictions.predicted, predictions.labels, names)
    counted = predictions.labels != IGNORED_LABEL
    overview.print_settings({**run.all_facts(), **{k: f"{v:.4f}" for k, v in run.numbers.items()}}, "Result")
    results.write_predictions(run.output_dir, _columns(corpus, true, predicted, predictions.probability, counted))
    truth, guess = predictions.labels[counted], predictions.predicted[counted]
    scores = entity_scores(true, predicted)[1] if corpus.scheme else class_scores(truth, guess, names)
    by_type = {name: {**of, "rows": int(of["rows"])} for name, of in scores.items()}
    overview.print_class_scores(by_type)
    title, history = f"{run.title}: test sentences", run.trainer.state.log_history
    drawn = {
        "learning_curves": figures.draw_learning_curves(history, run.curves, run.title),
        "class_scores": figures.draw_class_scores(by_type, title),
        "confusion_matrix": figures.draw_confusion_matrix(confusion_counts(truth, guess, len(names)), names, title),
    }
    write_report(run, "token-classification", drawn | run.loss_figures(), {"classes": by_type})
    if len(set(guess.tolist())) == 1:
        print(
            f"warning: every word was tagged {names[guess[0]]!r}: the model has learned nothing; try another learning "
            "rate, more sentences or a larger model",
            flush=True,
        )


def _columns(
    corpus: TaggedSplits,
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    probability: np.ndarray,
    counted: np.ndarray,
) -> Mapping[str, Sequence[object]]:
    rows = corpus.test
    columns: dict[str, list[object]] = {name: [] for name in ("place", "text", "label", "prediction")}
    for place, words, of, by in zip(rows["place"][:], rows["words"][:], true, predicted, strict=True):
        for number, (word, tag, guessed) in enumerate(zip(words, of, by, strict=False)):  # without what was cut off
            columns["place"].append(f"{place} word {number + 1}")
            columns["text"].append(word)
            columns["label"].append(tag)
            columns["prediction"].append(guessed)
    return {**columns, "probability": [float(value) for value in probability[counted]]}
