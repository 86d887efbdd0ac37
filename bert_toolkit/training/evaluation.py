"""Evaluates a classifier: every row once, rows of like length together, answers in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import EvalPrediction, Trainer

from bert_toolkit.data.corpus_splits import CorpusSplits

if TYPE_CHECKING:
    from datasets import Dataset

Metrics = Callable[[EvalPrediction], dict[str, float]]


@dataclass(frozen=True)
class FinalPredictions:
    """What a trained classifier says at the end of its run.

    Args:
        logits: Of the test rows, (n, classes) or (n, 1), in the order of the rows.
        labels: Of the test rows, (n,) or (n, classes).
        validation_metrics: Metrics of the validation rows, with the prefix `validation_`.
    """

    logits: np.ndarray
    labels: np.ndarray
    validation_metrics: dict[str, float]


def longest_first(rows: Dataset, drop_last: bool = False) -> Dataset:
    """Return rows with a column `length`, the longest first, so that an evaluation computes little padding.

    Args:
        rows: Tokenized rows.
        drop_last: The last, incomplete batch will be left out (`dataloader_drop_last`). Rows then stay in their order,
            as otherwise the shortest would always be missing.

    Returns:
        A view of the same rows.
    """
    return rows if drop_last else rows.select(_order(rows))


def predict_splits(trainer: Trainer, corpus: CorpusSplits) -> FinalPredictions:
    """Evaluate on the validation rows, which `trainer` has, and predict the test rows; the same rows only once.

    Args:
        trainer: Has finished training.
        corpus: Tokenized splits.

    Returns:
        Logits and labels of the test rows in their order, and the metrics of the validation rows.
    """
    with plain_prediction(trainer):
        if corpus.test is not corpus.validation:
            validation_metrics = trainer.evaluate(metric_key_prefix="validation")
            output = trainer.predict(longest_first(corpus.test))
        else:
            output = trainer.predict(longest_first(corpus.test), metric_key_prefix="validation")
            validation_metrics = dict(output.metrics or {})
            trainer.log(validation_metrics)
    logits, labels = (rows_in_order(array, corpus.test) for array in (output.predictions, output.label_ids))
    return FinalPredictions(logits, labels, validation_metrics)


def rows_in_order(array: Any, rows: Dataset) -> np.ndarray:
    """Return what was predicted of `longest_first(rows)`, in the order of the rows.

    Args:
        array: One entry per row, (n, ...).
        rows: Tokenized rows.

    Returns:
        The same entries.
    """
    ordered = np.empty_like(array)
    ordered[_order(rows)] = array
    return ordered


@contextmanager
def plain_prediction(trainer: Trainer) -> Iterator[None]:
    """Make `predict` return all rows in one array and in the order of the dataset, whatever flags the run has.

    Args:
        trainer: Its arguments are changed for as long as the context lasts.

    Yields:
        Nothing.
    """
    settings = {
        "train_sampling_strategy": "sequential",  # with group_by_length Trainer groups these rows too
        "dataloader_drop_last": False,
        "eval_do_concat_batches": True,
        "batch_eval_metrics": False,
        "prediction_loss_only": False,
    }
    before = {name: getattr(trainer.args, name) for name in settings}
    vars(trainer.args).update(settings)
    try:
        yield
    finally:
        vars(trainer.args).update(before)


def class_logits(outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Return the logits among a model's outputs, for `Trainer(preprocess_logits_for_metrics=)`.

    Args:
        outputs: Logits (B, classes), or a tuple that begins with them: encoder-decoders give hidden states too.
        labels: Not needed.

    Returns:
        Logits (B, classes).
    """
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _order(rows: Dataset) -> np.ndarray:
    return np.argsort(rows["length"][:], kind="stable")[::-1]
