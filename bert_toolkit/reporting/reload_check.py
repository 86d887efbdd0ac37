"""Proof that what a run saved can be loaded and predicts the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, Trainer


class ReloadError(RuntimeError):
    """What was saved does not reproduce the predictions of the model that was saved."""


def check_reload(
    trainer: Trainer,
    auto_class: Any,
    output_dir: str | Path,
    dataset,
    predictions: np.ndarray | tuple[np.ndarray, ...],
) -> None:
    """Loads the saved model and tokenizer anew and compares its predictions with those before saving.

    Both are made by a Trainer with the same arguments, so that batches and precision are the same.

    Args:
        trainer: The Trainer that made `predictions`.
        auto_class: For example `AutoModelForSequenceClassification`.
        output_dir: Where the model and the tokenizer were saved.
        dataset: The rows that were predicted.
        predictions: `trainer.predict(dataset).predictions`: an array (rows, classes), or a tuple of arrays.

    Raises:
        ReloadError: The predictions differ.
    """
    arguments = copy.copy(trainer.args)
    arguments.report_to, arguments.eval_strategy, arguments.load_best_model_at_end = [], "no", False
    reloaded = Trainer(
        model=auto_class.from_pretrained(output_dir),
        args=arguments,
        data_collator=trainer.data_collator,
        processing_class=AutoTokenizer.from_pretrained(output_dir),
        preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
    )
    again = reloaded.predict(dataset).predictions
    arrays = predictions if isinstance(predictions, tuple) else (predictions,)
    for before, after in zip(arrays, again if isinstance(again, tuple) else (again,), strict=True):
        if not np.array_equal(after, before):
            changed = int((after.argmax(-1) != before.argmax(-1)).sum())
            raise ReloadError(
                f"the model reloaded from {output_dir} differs: {changed} of {len(before)} predictions changed, "
                f"largest difference of a logit {np.abs(after - before).max():.3g}"
            )
