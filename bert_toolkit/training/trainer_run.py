"""What every recipe does with its Trainer: callbacks that count, watch and save, training or resuming, saving."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import EarlyStoppingCallback, Trainer
from transformers.utils import find_labels

from bert_toolkit.callbacks import TrainingHealthCallback, watch
from bert_toolkit.callbacks.batch_losses import BatchLossCallback
from bert_toolkit.callbacks.token_counter import TokenCounterCallback
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.training.arguments import TrainerRunArguments
from bert_toolkit.training.checkpoints import resume_callbacks
from bert_toolkit.training.resumed_files import errors_of_resuming, find_checkpoint


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of a run that its report reads.

    Args:
        tokens: Tokens and seconds.
        health: Faults of the training, None if it is not watched.
        losses: The loss of each batch, None if it is not kept.
    """

    tokens: TokenCounterCallback
    health: TrainingHealthCallback | None
    losses: BatchLossCallback | None


def add_run_callbacks(trainer: Trainer, run: TrainerRunArguments, batch_losses: bool = False) -> RunCallbacks:
    """Add the callbacks of every recipe to a Trainer.

    Args:
        trainer: Before training.
        run: Decides what is watched.
        batch_losses: Whether to keep the loss of each batch.

    Returns:
        Those of them that the report reads.
    """
    tokens, losses = TokenCounterCallback(), BatchLossCallback() if batch_losses else None
    health = watch(trainer, run.monitor_every, health=run.training_health).health
    patience = run.early_stopping_patience
    stopping = None if patience is None else EarlyStoppingCallback(patience)
    for callback in (tokens, losses, stopping, *resume_callbacks()):
        if callback is not None:
            trainer.add_callback(callback)
    return RunCallbacks(tokens, health, losses)


def _check_label_names(trainer: Trainer) -> None:
    """Refuse names of labels by which Trainer would compute no loss and no metrics in an evaluation."""
    names, right = trainer.args.label_names, find_labels(type(trainer.model))
    if names is not None and set(names) != set(right):
        raise InputError(
            f"`label_names` must be {' '.join(right)} for {type(trainer.model).__name__}, got {' '.join(names)}: "
            "leave the flag out"
        )


@contextmanager
def _errors_of_optimizer(trainer: Trainer) -> Iterator[None]:
    """Make the toolkit's error of what Trainer raises while it builds optimizer and schedule from flags."""
    try:
        yield
    except (ImportError, ValueError, TypeError, KeyError) as error:
        makers = {"create_optimizer", "create_scheduler"} & {f.name for f in traceback.extract_tb(error.__traceback__)}
        if not makers or trainer.state.global_step:
            raise
        arguments = trainer.args
        flags = ("lr_scheduler_type", "lr_scheduler_kwargs")
        if "create_scheduler" not in makers:
            flags = ("optim", "optim_args")
        values = {name: getattr(arguments, name) for name in flags}
        given = ", ".join(f"`{name}` {getattr(value, 'value', value)}" for name, value in values.items() if value)
        raise InputError(f"training cannot begin with {given}: {reason_of(error)}") from error


def train_and_save(trainer: Trainer) -> None:
    """Train, or go on from the checkpoint that `--resume_from_checkpoint` names, and save the model.

    The model is saved before it is evaluated, because `--bf16_full_eval` and `--fp16_full_eval` round its weights.

    Args:
        trainer: Ready to train.

    Raises:
        InputError: There is no such checkpoint, or it is damaged or of another model; or flags with which no training
            can begin.
    """
    _check_label_names(trainer)
    checkpoint = find_checkpoint(trainer)
    with errors_of_resuming(trainer, checkpoint), _errors_of_optimizer(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # without a push, which comes once the card and the scores are written
