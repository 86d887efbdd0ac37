"""Trainer callback: losses and accuracies of masked words and next sentences while training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.callbacks.training_clock import TrainingClock
from bert_toolkit.ignored_label import IGNORED_LABEL
from bert_toolkit.metrics.pretraining_scores import pretraining_scores
from bert_toolkit.pretraining.flops import pretraining_flops
from bert_toolkit.processes import is_distributed

if TYPE_CHECKING:
    from transformers import Trainer


class PreTrainingScoresCallback(TrainerCallback):
    """A callback that adds both tasks' losses and accuracies and the speed since the last log to every training log.

    All numbers are sums over all processes before they are divided. Reads in a forward hook of the model in training,
    so it works with any Trainer; writes at `on_log`. Costs a cross-entropy and an argmax over the logits that the
    model made, and one transfer per log.

    | logged key | what |
    |---|---|
    | `mlm_loss` | cross-entropy of the masked tokens, nats per token |
    | `mlm_accuracy` | fraction of the masked tokens that were predicted right |
    | `perplexity` | of the masked tokens |
    | `nsp_loss`, `nsp_accuracy` | of next sentences, where they are labeled |
    | `tokens_per_second` | without padding, of all processes, without the time of evaluating and saving |
    | `padding_share` | fraction of padding among the tokens that the model computed |
    | `mfu` | model FLOPs utilization, if a peak is given |

    Args:
        peak_flops: Peak of one device in FLOP per second, the denominator of `mfu`.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self._sums: torch.Tensor | None = None
        self._clock = TrainingClock()
        self._handle: RemovableHandle | None = None
        self._config: Any = None

    def attach(self, trainer: Trainer) -> None:
        """Join a Trainer ahead of its reporters, so that all of them and `log_history` have the scores.

        It comes after the trainer's first callback, which decides whether a step logs, evaluates and saves.

        Args:
            trainer: The trainer to join.
        """
        trainer.callback_handler.callbacks.insert(1, self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the model."""
        model = kwargs["model"]
        self._handle = model.register_forward_hook(self._count, with_kwargs=True)
        self._config = model.config

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._clock.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock for logging, evaluation and saving."""
        if control.should_evaluate or control.should_save or control.should_log:
            self._clock.stop(self._sums)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self._clock.stop(self._sums)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching the model."""
        if self._handle is not None:
            self._handle.remove()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the scores to a record of the training loss."""
        logs = kwargs["logs"]
        if "loss" not in logs or self._sums is None:
            return
        sums = self._sums
        if is_distributed():
            torch.distributed.all_reduce(sums)
        mlm_loss, mlm_right, masked, nsp_loss, nsp_right, sequences, tokens, padded, attended = sums.tolist()
        scores = pretraining_scores(mlm_loss, mlm_right, masked, nsp_loss, nsp_right, sequences)
        seconds = max(self._clock.seconds, 1e-9)
        scores |= {"tokens_per_second": tokens / seconds, "padding_share": 1 - tokens / padded}
        if self.peak_flops is not None:
            flops = pretraining_flops(self._config, tokens, attended / tokens, masked, sequences)
            scores["mfu"] = flops / seconds / (self.peak_flops * args.world_size)
        self._sums, self._clock.seconds = None, 0.0
        logs.update(scores)
        state.log_history[-1].update(scores)

    @torch.no_grad()
    def _count(self, model: Any, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if not model.training:
            return
        labels = named["labels"]
        logits = output["prediction_logits"] if "prediction_logits" in output else output["logits"]
        sparse = logits.dim() == 2
        targets = labels.flatten()
        if sparse:
            targets = targets[model.sparse_positions(labels, None)]
        mlm = _task_sums(logits.reshape(-1, logits.shape[-1]), targets)
        nsp = [torch.zeros_like(mlm[0])] * 3
        if "next_sentence_label" in named:
            nsp = _task_sums(output["seq_relationship_logits"], named["next_sentence_label"].flatten())
        mask = named["attention_mask"]
        per_sequence = mask.sum(-1).double()
        padded = torch.full_like(mlm[0], mask.numel())
        counts = torch.stack([*mlm, *nsp, per_sequence.sum(), padded, (per_sequence**2).sum()])
        self._sums = counts if self._sums is None else self._sums + counts


def _task_sums(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Sum of the cross-entropy, number right, and number of targets, as float64 scalars."""
    loss = cross_entropy(logits.float(), targets, ignore_index=IGNORED_LABEL, reduction="sum")
    right = (logits.argmax(-1) == targets).sum()
    return [loss.double(), right.double(), (targets != IGNORED_LABEL).sum().double()]
