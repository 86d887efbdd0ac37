"""Trainer that tells the model how many sequences an optimizer step has, so that both pre-training losses are exact.

Not imported by `bert_toolkit` itself, because transformers' Trainer imports datasets:

    from bert_toolkit.pretraining.trainer import PreTrainingTrainer
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer


class PreTrainingTrainer(Trainer):
    """Trainer for `ToolkitBertForPreTraining`, exact under gradient accumulation for both terms of the loss.

    Trainer counts one thing in the batches that an optimizer step accumulates: labels, here masked tokens, the
    denominator of the masked-LM term. The next-sentence term is a mean over sequences; this class counts them too and
    adds `num_sequences_in_batch` to every batch. Batches may then differ in size, and the last step of an epoch may
    have fewer of them.

    Args:
        next_sentence_weight: Factor of the next-sentence term in training and evaluation, 1 as in BERT; at most the
            number of sequences of an optimizer step.
        args: As for `transformers.Trainer`.
        kwargs: As for `transformers.Trainer`.
    """

    def __init__(self, *args: Any, next_sentence_weight: float = 1.0, **kwargs: Any) -> None:
        """Hand all other arguments to `transformers.Trainer`; see the class."""
        super().__init__(*args, **kwargs)
        self.next_sentence_weight = next_sentence_weight

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Fetch the batches of one optimizer step, as Trainer does, each with the number of sequences of them all.

        Args:
            epoch_iterator: Of batches.
            num_batches: Batches to fetch; there may be fewer left.
            device: Where the model is.

        Returns:
            The batches, with `num_sequences_in_batch` (sequences of the step on all processes, divided by the weight),
            and the number of labels as Trainer counts them.
        """
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        sequences: torch.Tensor | int = sum(len(batch["next_sentence_label"]) for batch in batches)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            sequences = self.accelerator.gather(torch.tensor([sequences], device=device)).sum()
        return [self._with_divisor(batch, sequences) for batch in batches], num_items_in_batch

    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch by the loss that is trained, so that both curves can be compared.

        Args:
            model: The model.
            inputs: The batch.
            args: As for `transformers.Trainer`.
            kwargs: As for `transformers.Trainer`.

        Returns:
            Loss, logits and labels, as `transformers.Trainer` does.
        """
        if "next_sentence_label" in inputs:
            inputs = self._with_divisor(inputs, len(inputs["next_sentence_label"]))
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _with_divisor(self, batch: dict[str, Any], sequences: torch.Tensor | int) -> dict[str, Any]:
        """The model divides the summed next-sentence term by this number, so the weight goes into it."""
        return {**batch, "num_sequences_in_batch": sequences / self.next_sentence_weight}
