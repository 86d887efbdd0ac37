"""Losses and accuracies of masked LM and next sentence: while training, and on held-out pairs."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers.trainer_callback import TrainerCallback

from bert_toolkit.pretraining.flops import pretraining_flops

IGNORED_LABEL = -100


class PreTrainingScoresCallback(TrainerCallback):
    """Adds to every training log the two tasks' losses and accuracies and the speed since the last log.

    Logged keys: `mlm_loss`, `mlm_accuracy`, `perplexity` (of masked tokens), `nsp_loss`, `nsp_accuracy` (with
    next-sentence labels only), `tokens_per_second` (without padding, of all processes, without the time of evaluating
    and saving), `padding_share`, and `mfu` if a peak is given. All are sums over all processes before they are
    divided.

    Reads in a forward hook of the model in training, so it works with any Trainer; writes at `on_log`. Costs a
    cross-entropy and an argmax over the logits that the model made, and one transfer per log.

    Args:
        peak_flops: Peak of one device in FLOP/s, the denominator of the model FLOPs utilisation.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self._sums: torch.Tensor | None = None
        self._seconds = 0.0
        self._started: float | None = None
        self._handle: Any = None
        self._config: Any = None

    def attach(self, trainer) -> None:
        """Join a Trainer ahead of its reporters, so that all of them and `log_history` have the scores.

        Behind its first callback, which decides whether a step logs, evaluates and saves.
        """
        trainer.callback_handler.callbacks.insert(1, self)

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs) -> None:
        self._handle = model.register_forward_hook(self._count, with_kwargs=True)
        self._config = model.config

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if self._started is None:
            self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if control.should_evaluate or control.should_save or control.should_log:
            self._pause()

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self._pause()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._handle.remove()

    def on_log(self, args, state, control, logs: Any = None, **kwargs) -> None:
        if "loss" not in logs or self._sums is None:
            return
        sums = self._sums
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        mlm_loss, mlm_right, masked, nsp_loss, nsp_right, sequences, tokens, padded, attended = sums.tolist()
        scores = _scores(mlm_loss, mlm_right, masked, nsp_loss, nsp_right, sequences)
        seconds = max(self._seconds, 1e-9)
        scores |= {"tokens_per_second": tokens / seconds, "padding_share": 1 - tokens / padded}
        if self.peak_flops is not None:
            flops = pretraining_flops(self._config, tokens, attended / tokens, masked, sequences)
            scores["mfu"] = flops / seconds / (self.peak_flops * args.world_size)
        self._sums, self._seconds = None, 0.0
        logs.update(scores)
        state.log_history[-1].update(scores)

    def _pause(self) -> None:
        if self._started is None:
            return
        if self._sums is not None:
            self._sums.cpu()  # waits for an accelerator
        self._seconds += time.perf_counter() - self._started
        self._started = None

    @torch.no_grad()
    def _count(self, model: Any, positional: tuple, named: dict, output) -> None:
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


def _scores(mlm_loss, mlm_right, masked, nsp_loss, nsp_right, sequences) -> dict[str, float]:
    scores = {
        "mlm_loss": mlm_loss / masked,
        "mlm_accuracy": mlm_right / masked,
        "perplexity": math.exp(min(mlm_loss / masked, 700.0)),
    }
    if sequences:
        scores |= {"nsp_loss": nsp_loss / sequences, "nsp_accuracy": nsp_right / sequences}
    return scores


def losses_and_predictions(logits, labels):
    """Reduces logits to what the scores need, so that Trainer does not gather (pairs, length, vocabulary).

    For `Trainer(preprocess_logits_for_metrics=)`.

    Args:
        logits: (B, T, V) of a masked-LM model, or a tuple of that and (B, 2).
        labels: (B, T), or a tuple of that and (B,).

    Returns:
        Tuple of the cross-entropy of each token (B, T), 0 where nothing is predicted; the predicted ids (B, T); and,
        with next-sentence logits, these (B, 2).
    """
    words, *rest = logits if isinstance(logits, (tuple, list)) else (logits,)
    targets = labels[0] if isinstance(labels, (tuple, list)) else labels
    losses = cross_entropy(words.float().transpose(1, 2), targets, ignore_index=IGNORED_LABEL, reduction="none")
    return (losses, words.argmax(-1), *rest[:1])


def pretraining_metrics(evaluation) -> dict[str, float]:
    """Scores on held-out pairs, for `Trainer(compute_metrics=)` after `losses_and_predictions`.

    Args:
        evaluation: `transformers.EvalPrediction`.

    Returns:
        `mlm_loss` (nats a token), `mlm_accuracy`, `perplexity`, `unigram_accuracy` (share of the most frequent token
        among the predicted ones: what the best constant guess would score), and with next-sentence labels `nsp_loss`
        and `nsp_accuracy`.
    """
    losses, predicted, *logits = evaluation.predictions
    labels = evaluation.label_ids
    words = labels[0] if isinstance(labels, tuple) else labels
    masked = words != IGNORED_LABEL
    right = (predicted == words)[masked].sum()
    nsp = (0.0, 0, 0)
    if logits:
        rows = logits[0].astype(np.float64)
        log_probabilities = rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)
        nsp_loss = -np.take_along_axis(log_probabilities, labels[1][:, None], axis=1).sum()
        nsp = (float(nsp_loss), int((rows.argmax(-1) == labels[1]).sum()), len(rows))
    scores = _scores(float(losses[masked].sum(dtype=np.float64)), int(right), int(masked.sum()), *nsp)
    scores["unigram_accuracy"] = float(np.bincount(words[masked]).max() / masked.sum())
    return scores
