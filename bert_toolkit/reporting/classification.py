"""What every classifier's run leaves behind: result table, predictions, figures, model card, results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import Trainer

from bert_toolkit.reporting import figures, overview, results
from bert_toolkit.reporting.token_counter import TokenCounterCallback


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of true class (rows) against predicted class (columns), integer array (classes, classes).

    Args:
        labels: True class ids (n,).
        predicted: Predicted class ids (n,).
        classes: Number of classes.
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64: (n, classes) to (n, classes)."""
    powers = np.exp(np.asarray(logits, dtype=np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def write_classifier_outputs(
    trainer: Trainer,
    title: str,
    summary: str,
    label_names: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    logits: np.ndarray,
    labels: np.ndarray,
    scores: Mapping[str, object],
    facts: Mapping[str, object],
    tokens: TokenCounterCallback,
    curves: Sequence[str],
    drawn: Mapping[str, object] | None = None,
) -> None:
    """Prints the result table and writes all files of a finished single-label classification run.

    Call it on the main process only.

    Args:
        trainer: Has finished training.
        title: Name of the model, on figures and card.
        summary: A paragraph for the model card.
        label_names: Name of each class id.
        texts: Text columns of the test rows, for `predictions.tsv`.
        logits: Test logits (n, classes).
        labels: True class ids (n,).
        scores: Metrics of the run. Floats go to table and card, everything to `results.json`.
        facts: What the run was: data, model, settings.
        tokens: The counter of the run.
        curves: Evaluation metrics to draw over the steps, without the `eval_` prefix.
        drawn: Further figures by name.
    """
    output_dir, predicted = trainer.args.output_dir, logits.argmax(-1)
    if len(label_names) > 1 and len(np.unique(predicted)) == 1:
        print(
            f"warning: every row was predicted as {label_names[predicted[0]]!r}, so the Matthews correlation is 0: "
            "the model has learned nothing; try another learning rate, more rows or a larger model",
            flush=True,
        )
    facts = {
        **facts,
        "learning rate": trainer.args.learning_rate,
        "epochs": trainer.state.epoch,
        "training seconds": round(tokens.seconds, 2),
        "tokens per second": round(tokens.tokens_per_second),
        "padding share": round(tokens.padding_share, 4),
        "device": overview.describe_device(trainer.args),
    }
    numbers = {name: float(value) for name, value in scores.items() if np.isscalar(value)}
    overview.print_settings({**facts, **{name: f"{value:.4f}" for name, value in numbers.items()}}, "Result")

    results.write_predictions(
        output_dir,
        {
            **texts,
            "label": [label_names[label] for label in labels],
            "prediction": [label_names[label] for label in predicted],
            "probability": class_probabilities(logits).max(-1),
        },
    )
    drawn = {
        "learning_curves": figures.draw_learning_curves(trainer.state.log_history, curves, title),
        "confusion_matrix": figures.draw_confusion_matrix(
            confusion_counts(labels, predicted, len(label_names)), label_names, f"{title}: test rows"
        ),
        **(drawn or {}),
    }
    figures.save_figures(drawn, output_dir, trainer.state.global_step)
    results.write_model_card(output_dir, title, "text-classification", summary, facts, numbers)
    results.write_results(output_dir, {**scores, **facts, "log_history": trainer.state.log_history})
