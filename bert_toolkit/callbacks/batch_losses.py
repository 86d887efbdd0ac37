"""Remembers the loss of every training batch, without a device sync."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.errors import InputError
from bert_toolkit.files import replaced_at_once
from bert_toolkit.monitoring.record_file import read_arrays
from bert_toolkit.processes import is_distributed, world_size

FILE = "batch_losses.npz"
"""In each checkpoint: `losses` of all batches so far, and the number of the `first_batch` among them."""

logger = logging.getLogger(__name__)


class BatchLossCallback(TrainerCallback):
    """A callback that keeps the training loss of each batch, which the log has only as means over `logging_steps`.

    Reads the model's own loss in a forward hook: with gradient accumulation every micro batch is a batch. Costs one
    detached scalar per batch, copied from the device when a checkpoint is saved and at the end. With label smoothing
    Trainer takes the loss outside the model and nothing is recorded. Each checkpoint holds the losses until then, and
    a run that is resumed from it has them again. It logs nothing.

    Attributes:
        losses: Loss of each batch of one process, the mean over the processes if there are several.
        first_batch: Number of the first batch among all of the training, 0 unless resumed without earlier losses.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.first_batch = 0
        self._handle: RemovableHandle | None = None
        self._recorded: list[torch.Tensor] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the model, and read the losses of the checkpoint that training goes on from."""
        self.losses, self.first_batch = [], state.global_step * args.gradient_accumulation_steps
        self._recorded = []
        self._handle = kwargs["model"].register_forward_hook(self._record)
        path = _path(args, state)
        if state.global_step and path.exists():
            try:
                arrays = read_arrays(path)
                self.losses, self.first_batch = arrays["losses"].tolist(), int(arrays["first_batch"])
            except (InputError, KeyError, TypeError, ValueError) as error:
                logger.warning("The losses of earlier batches are left out of the figure: %s", error)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the losses into the checkpoint."""
        self._bring()
        path = _path(args, state)
        if state.is_world_process_zero and path.parent.is_dir():
            with replaced_at_once(path) as partial, partial.open("wb") as file:
                np.savez(file, losses=np.array(self.losses, dtype=np.float32), first_batch=np.array(self.first_batch))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching, and bring the losses of all processes to the host."""
        if self._handle is not None:
            self._handle.remove()
        self._bring()

    def _record(self, model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        loss = getattr(outputs, "loss", None)
        if model.training and loss is not None:
            self._recorded.append(loss.detach().float().reshape(()))

    def _bring(self) -> None:
        """Add what was recorded since the last time to `losses`; on every process."""
        losses = torch.stack(self._recorded) if self._recorded else torch.zeros(0)
        if len(losses) and is_distributed():
            torch.distributed.all_reduce(losses)
            losses /= world_size()
        self.losses += losses.tolist()
        self._recorded = []


def _path(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE
