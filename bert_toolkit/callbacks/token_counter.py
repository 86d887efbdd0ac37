"""Counts the tokens that a model really trains on, without a device sync."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.callbacks.training_clock import TrainingClock
from bert_toolkit.processes import is_distributed


class TokenCounterCallback(TrainerCallback):
    """A callback that counts real and padded tokens of training batches and the time that they took.

    Reads in a forward pre-hook of the model, so that it counts what arrives there whatever sampler, collator or
    number of workers made it. Costs one sum over `attention_mask` per batch, read once at the end of training.
    Evaluation time is not counted. It logs nothing.

    Attributes:
        tokens: Tokens that are not padding, of all processes.
        padded_tokens: Tokens with padding, of all processes.
        seconds: Seconds of training without evaluation and saving.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.padded_tokens = 0
        self._handle: RemovableHandle | None = None
        self._counts = torch.zeros(2, dtype=torch.int64)
        self._clock = TrainingClock()

    @property
    def seconds(self) -> float:
        """The seconds of training without evaluation and saving."""
        return self._clock.seconds

    @property
    def tokens_per_second(self) -> float:
        """The number of tokens that are not padding, per second of training; 0 before its end."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def padding_share(self) -> float:
        """The fraction of padding among the tokens that the model computed, from 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the model."""
        self._counts = torch.zeros(2, dtype=torch.int64, device=args.device)
        self._handle = kwargs["model"].register_forward_pre_hook(self._count, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._clock.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock for evaluation and saving."""
        if control.should_evaluate or control.should_save:
            self._clock.stop(self._counts)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self._clock.stop(self._counts)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching, and sum up over all processes."""
        self._clock.stop(self._counts)
        if self._handle is not None:
            self._handle.remove()
        counts = self._counts
        if is_distributed():
            torch.distributed.all_reduce(counts)
        self.tokens, self.padded_tokens = counts.tolist()

    def _count(self, model: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not model.training:
            return
        input_ids = named["input_ids"] if "input_ids" in named else positional[0]
        mask = named.get("attention_mask")
        self._counts[0] += input_ids.numel() if mask is None else mask.sum()
        self._counts[1] += input_ids.numel()
