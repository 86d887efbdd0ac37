"""TensorBoard's HPARAMS page of a run: hyper-parameters beside final scores, in the run that Trainer wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping

from transformers import Trainer

from bert_toolkit.callbacks.trainer_reporters import trainers_writer
from bert_toolkit.reporting.results import NO_TEXT

ARGUMENTS = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "lr_scheduler_type",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "label_smoothing_factor",
    "mixed_precision",
    "seed",
)
"""Of `TrainingArguments`; what people compare runs by."""


def write_hyperparameters(trainer: Trainer, facts: Mapping[str, object], scores: Mapping[str, float]) -> None:
    """Write hyper-parameters and scores into the writer that Trainer has open; nothing without TensorBoard.

    `SummaryWriter.add_hparams` would write them as a run of their own, without the curves.

    Args:
        trainer: Has evaluated after its training, so that its writer is open.
        facts: What else the run was; `model` and `data` are taken.
        scores: Final scores; the scalars `final/<name>` hold them.
    """
    writer = trainers_writer(trainer)
    if writer is None:
        return
    from torch.utils.tensorboard.summary import hparams

    values = {name: getattr(trainer.args, name) for name in ARGUMENTS}
    values |= {name: facts[name] for name in ("model", "data") if name in facts}
    values = {name: getattr(value, "value", value) for name, value in values.items()}  # of enumerations
    plain = {
        # names of files that are no text would end in an error of protobuf's
        name: value if isinstance(value, int | float) else str(value).encode("utf-8", NO_TEXT).decode("utf-8")
        for name, value in values.items()
    }
    finals = {f"final/{name}": value for name, value in scores.items() if math.isfinite(value)}
    step = trainer.state.global_step
    for summary in hparams(plain, finals):
        writer.file_writer.add_summary(summary, step)
    for name, value in finals.items():
        writer.add_scalar(name, value, step)
    writer.flush()
