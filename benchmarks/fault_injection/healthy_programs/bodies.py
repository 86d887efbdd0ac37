"""Pre-trained bodies with fresh heads, small enough for a few seconds on one thread."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
)

from benchmarks.fault_injection.healthy_programs.measures import held_out_accuracy
from benchmarks.fault_injection.healthy_programs.program import (
    Ready,
    Setup,
    arguments,
    with_trainer,
)
from benchmarks.fault_injection.healthy_programs.texts import (
    century_rows,
    minilm_folder,
    small_minilm_folder,
    small_minilm_tokenizer,
)


def minilm_classifier(**config: Any) -> BertForSequenceClassification:
    """HF's BERT with MiniLM's lower layers and a fresh head."""
    return BertForSequenceClassification.from_pretrained(small_minilm_folder(), **config)


def whole_minilm(**config: Any) -> BertForSequenceClassification:
    """HF's BERT with all of MiniLM's weights and a fresh head."""
    return BertForSequenceClassification.from_pretrained(minilm_folder(), **config)


class MeanPooled(nn.Module):
    """A bare BertModel, whose pooler nobody uses, with a head of its own on the mean of the tokens."""

    def __init__(self, body: BertModel, outputs: int = 2):
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, outputs)

    def pool(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Mean of the tokens' vectors."""
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.head(self.pool(**inputs))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fine_tuning(setup: Setup, rate: float = 5e-4, steps: int = 80, bound: float = 0.8, **settings: Any) -> Ready:
    """MiniLM's lower layers on sentences before 1850 and after 1970."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        rows[:1000],
        arguments(setup, steps, rate, **settings),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], bound),
    )
