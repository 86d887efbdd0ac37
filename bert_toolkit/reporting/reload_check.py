"""Proof that what a run saved can be loaded and predicts the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers import AutoTokenizer, EvalPrediction, Trainer
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from bert_toolkit.training.evaluation import plain_prediction

ROWS_CHECKED = 256
TOLERANCE = {"no": 1e-5, "bf16": 2e-2, "fp16": 5e-3}
"""Largest difference by mixed precision, relative to the largest logit. Kernels of the CPU may add up in another order
where weights lie at other addresses, which they do after loading."""


class ReloadError(RuntimeError):
    """What was saved does not reproduce the predictions of the model that was saved."""


def check_same_classes(before: EvalPrediction, after: EvalPrediction, output_dir: str) -> None:
    """Compare the classes that a trained model and the saved one predict, in a loop without Trainer.

    Args:
        before: Logits of the trained model.
        after: Logits of the model that was loaded from `output_dir`, for the same rows.
        output_dir: For the message.

    Raises:
        ReloadError: Rows are predicted otherwise.
    """
    first, second = (np.asarray(of.predictions).argmax(-1) for of in (before, after))
    if changed := int((first != second).sum()):
        raise ReloadError(f"the model reloaded from {output_dir} predicts {changed} rows otherwise")


def check_reload(trainer: Trainer, auto_class: Any, rows: Any, trust_remote_code: bool = False) -> None:
    """Load the saved model and tokenizer anew and compare its predictions with those of the trained model.

    Both predict the same rows by a Trainer with the same arguments, so that batches and precision are the same, and
    logits may differ by `TOLERANCE` at most; numbers of classes or tokens may not. Under DeepSpeed, which allows one
    engine only, they are predicted by the trained model's own Trainer.

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
        predictions = [trainer.predict(rows).predictions]
        if trainer.is_deepspeed_enabled:
            with _in_place_of_its_own(trainer, auto_class, trust_remote_code) as reloaded:
                predictions.append(reloaded.predict(rows).predictions)
        else:
            arguments = copy.copy(trainer.args)
            arguments.report_to, arguments.eval_strategy, arguments.load_best_model_at_end = [], "no", False
            arguments.push_to_hub = False  # the run itself pushes
            reloaded = Trainer(
                model=auto_class.from_pretrained(output_dir, trust_remote_code=trust_remote_code),
                args=arguments,
                data_collator=trainer.data_collator,
                processing_class=AutoTokenizer.from_pretrained(output_dir, trust_remote_code=trust_remote_code),
                preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
            )
            predictions.append(reloaded.predict(rows).predictions)
    arrays = (part if isinstance(part, tuple) else (part,) for part in predictions)
    arguments = trainer.args
    half = "bf16" if arguments.bf16_full_eval else "fp16" if arguments.fp16_full_eval else arguments.mixed_precision
    for before, after in zip(*arrays, strict=True):
        tolerance = TOLERANCE.get(half, 2e-2) * np.abs(before).max(initial=0) if before.dtype.kind == "f" else 0
        if not np.allclose(after, before, rtol=0, atol=tolerance, equal_nan=True):
            changed = int((after.argmax(-1) != before.argmax(-1)).sum())
            raise ReloadError(
                f"the model reloaded from {output_dir} differs: {changed} of {len(before)} predictions changed, "
                f"largest difference of a logit {np.abs(after - before).max():.3g}"
            )


@contextmanager
def _in_place_of_its_own(trainer: Trainer, auto_class: Any, trust_remote_code: bool) -> Iterator[Trainer]:
    """The trainer with the saved model, whole on every process."""
    trained = trainer.model, trainer.model_wrapped
    unset_hf_deepspeed_config()  # with ZeRO 3 transformers would load shards, which an engine alone can use
    try:
        reloaded = auto_class.from_pretrained(str(trainer.args.output_dir), trust_remote_code=trust_remote_code)
    finally:
        set_hf_deepspeed_config(trainer.accelerator.state.deepspeed_plugin.hf_ds_config)
    trainer.model = trainer.model_wrapped = reloaded.to(trainer.args.device)
    try:
        yield trainer
    finally:
        trainer.model, trainer.model_wrapped = trained


def rows_to_check(rows: Any) -> Any:
    """Return at most `ROWS_CHECKED` rows, evenly spread over a dataset.

    Args:
        rows: A `datasets.Dataset`.

    Returns:
        A view of the rows.
    """
    return rows.select(range(0, len(rows), -(-len(rows) // ROWS_CHECKED)))
