"""Remembers the loss of every training batch, without a device sync."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments


class BatchLossCallback(TrainerCallback):
    """A callback that keeps the training loss of each batch, which the log has only as means over `logging_steps`.

    Reads the model's own loss in a forward hook: with gradient accumulation every micro batch is a batch. Costs one
    detached scalar per batch, copied from the device once at the end. With label smoothing Trainer takes the loss
    outside the model and nothing is recorded. A resumed run has the batches since it was resumed. It logs nothing.

    Attributes:
        losses: Loss of each batch of one process, the mean over the processes if there are several.
        first_batch: Number of the first batch among all of the training, 0 unless resumed.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.first_batch = 0
        self._handle: RemovableHandle | None = None
        self._recorded: list[torch.Tensor] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the model."""
        self.first_batch = state.global_step * args.gradient_accumulation_steps
        self._recorded = []
        self._handle = kwargs["model"].register_forward_hook(self._record)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching, and bring the losses of all processes to the host."""
        if self._handle is not None:
            self._handle.remove()
        losses = torch.stack(self._recorded) if self._recorded else torch.zeros(0)
        if len(losses) and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(losses)
            losses /= torch.distributed.get_world_size()
        self.losses = losses.tolist()

    def _record(self, model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        loss = getattr(outputs, "loss", None)
        if model.training and loss is not None:
            self._recorded.append(loss.detach().float().reshape(()))
