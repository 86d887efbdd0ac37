"""Proof that what a run saved can be loaded and predicts the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from transformers import AutoTokenizer, Trainer

from bert_toolkit.training.evaluation import plain_prediction

ROWS_CHECKED = 256


class ReloadError(RuntimeError):
    """What was saved does not reproduce the predictions of the model that was saved."""


def check_reload(trainer: Trainer, auto_class: Any, rows: Any, trust_remote_code: bool = False) -> None:
    """Loads the saved model and tokenizer anew and compares its predictions with those of the trained model.

    Both predict the same rows by a Trainer with the same arguments, so that batches and precision are the same.

    Args:
        trainer: Has trained and saved its model in its output directory.
        auto_class: For example `AutoModelForSequenceClassification`.
        rows: A dataset; all of it is predicted twice.
        trust_remote_code: Whether Python files that lie beside the model may be run.

    Raises:
        ReloadError: The predictions differ.
    """
    output_dir = str(trainer.args.output_dir)
    with plain_prediction(trainer):
        arguments = copy.copy(trainer.args)
        arguments.report_to, arguments.eval_strategy, arguments.load_best_model_at_end = [], "no", False
        reloaded = Trainer(
            model=auto_class.from_pretrained(output_dir, trust_remote_code=trust_remote_code),
            args=arguments,
            data_collator=trainer.data_collator,
            processing_class=AutoTokenizer.from_pretrained(output_dir, trust_remote_code=trust_remote_code),
            preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
        )
        predictions = [each.predict(rows).predictions for each in (trainer, reloaded)]
    arrays = (part if isinstance(part, tuple) else (part,) for part in predictions)
    for before, after in zip(*arrays, strict=True):
        if not np.array_equal(after, before):
            changed = int((after.argmax(-1) != before.argmax(-1)).sum())
            raise ReloadError(
                f"the model reloaded from {output_dir} differs: {changed} of {len(before)} predictions changed, "
                f"largest difference of a logit {np.abs(after - before).max():.3g}"
            )


def rows_to_check(rows: Any) -> Any:
    """At most `ROWS_CHECKED` rows, evenly spread over a dataset.

    Args:
        rows: A `datasets.Dataset`.

    Returns:
        A view of the rows.
    """
    return rows.select(range(0, len(rows), -(-len(rows) // ROWS_CHECKED)))
