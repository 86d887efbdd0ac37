"""The reporters of a Trainer: its TensorBoard writer, and all others that are told of scalars."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from bert_toolkit.callbacks.safe_outputs import SafeOutputs

if TYPE_CHECKING:
    from transformers import Trainer

# TensorBoard and W&B have the scalars under their own names; the printed line stays short.
_NOT_REPORTED_TO = (DefaultFlowCallback, PrinterCallback, ProgressCallback, TensorBoardCallback, WandbCallback)


def trainers_writer(trainer: Trainer | None) -> Any:
    """Return the TensorBoard writer that Trainer has opened.

    Args:
        trainer: The trainer, None where there is none.

    Returns:
        The writer, or None where there is none (yet).
    """
    if trainer is None:
        return None
    writers = (getattr(callback, "tb_writer", None) for callback in trainer.callback_handler.callbacks)
    return next((writer for writer in writers if writer is not None), None)


def report_scalars(
    trainer: Trainer, scalars: dict[str, float], step: int, safe: SafeOutputs, silent: type | tuple[type, ...] = ()
) -> None:
    """Hand scalars to the trainer's other reporters, as `Trainer.log` would, and to the log history.

    Args:
        trainer: The trainer.
        scalars: Names and values.
        step: Optimizer step at which they were measured.
        safe: Runs each reporter.
        silent: Classes of callbacks that are not told.
    """
    handler, state = trainer.callback_handler, trainer.state
    epoch = {} if state.epoch is None else {"epoch": state.epoch}
    state.log_history.append({**scalars, **epoch, "step": step})
    for callback in handler.callbacks:
        if isinstance(callback, (_NOT_REPORTED_TO, silent)):
            continue
        on_log = partial(
            callback.on_log,
            trainer.args,
            state,
            copy.copy(trainer.control),  # flags that Trainer's own log needs are left alone
            logs={**scalars, **epoch},
            model=handler.model,
            processing_class=handler.processing_class,
            optimizer=handler.optimizer,
            lr_scheduler=handler.lr_scheduler,
            train_dataloader=handler.train_dataloader,
            eval_dataloader=handler.eval_dataloader,
        )
        safe.attempt(f"scalars for {type(callback).__name__}", on_log)
