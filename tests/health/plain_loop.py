"""A plain PyTorch loop under `HealthWatch`, every step sampled, that tests bend in one place each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from bert_toolkit.health.watch import HealthWatch
from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor, GradientFlowRecord
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor

VOCABULARY, LENGTH, ROWS = 40, 12, 8


class Tokenizer:
    """The ids that a tokenizer would name."""

    pad_token_id, unk_token_id, cls_token_id, sep_token_id, mask_token_id, eos_token_id = 0, 1, 2, 3, 4, 5


def small_bert(**settings: Any) -> BertConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    return BertConfig(**{**sizes, **settings})


def classifier(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(small_bert(num_labels=3, **settings)).train()


def masked_lm(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return BertForMaskedLM(small_bert(**settings)).train()


def causal_lm() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config).train()


@torch.no_grad()
def changed(model: nn.Module, pattern: str, change: Callable[[torch.Tensor], object]) -> nn.Module:
    """The model with one change in all parameters whose name matches."""
    matching = [p for name, p in model.named_parameters() if re.search(pattern, name)]
    assert matching
    for parameter in matching:
        change(parameter)
    return model


def texts(generator: torch.Generator, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Rows of [CLS] … [SEP] and padding; the class is told by the first word."""
    ids = torch.randint(6, VOCABULARY, (rows, LENGTH), generator=generator)
    lengths = torch.randint(6, LENGTH + 1, (rows,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids[:, 0] = Tokenizer.cls_token_id
    ids[torch.arange(rows), lengths - 1] = Tokenizer.sep_token_id
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": ids[:, 1] % 3}


def masked_words(generator: torch.Generator) -> dict[str, torch.Tensor]:
    batch = texts(generator)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool() & (ids > 5)
    labels = torch.where(chosen, ids, -100)
    return {"input_ids": torch.where(chosen, Tokenizer.mask_token_id, ids), "attention_mask": mask, "labels": labels}


def sentences_to_continue(generator: torch.Generator) -> dict[str, torch.Tensor]:
    batch = texts(generator)
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    return batch


def batches(make: Callable[[torch.Generator], dict[str, torch.Tensor]], seed: int = 0) -> Iterable[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield make(generator)


@dataclass
class Loop:
    """Parts of a training that a test may replace."""

    model: nn.Module = field(default_factory=classifier)
    data: Iterable[dict[str, Any]] = field(default_factory=lambda: batches(texts))
    steps: int = 30
    rate: float = 1e-3
    optimizer: Callable[[Loop], torch.optim.Optimizer] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    before_forward: Callable[[Loop, int], None] = lambda loop, step: None
    before_step: Callable[[Loop, int], None] = lambda loop, step: None
    after_step: Callable[[Loop, int], None] = lambda loop, step: loop.optim.zero_grad()
    call: Callable[[nn.Module, dict[str, Any]], Any] = lambda model, batch: model(**batch)
    loss_of: Callable[[Loop, Any, dict[str, Any]], torch.Tensor] = lambda loop, output, batch: output["loss"]

    def run(self) -> HealthWatch:
        torch.manual_seed(1)
        self.optim = (
            self.optimizer(self)
            if self.optimizer
            else torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=self.rate)
        )
        settings = {"tokenizer": Tokenizer(), "last_step": self.steps, **self.settings}
        watch = HealthWatch(self.model, self.optim, **settings)
        watch.begin()
        flow, ratios = GradientFlowMonitor(self.model), UpdateRatioMonitor(self.model, mode="sampled")
        data = iter(self.data)
        accumulation = self.settings.get("accumulation", 1)
        for step in range(1, self.steps + 1):
            self.before_forward(self, step)
            watch.start()
            for _ in range(accumulation):
                batch = next(data)
                self.loss_of(self, self.call(self.model, batch), batch).backward()
            self.before_step(self, step)
            watch.before_step(self.optim)
            record = flow.start()
            gradients = record.finish(step) if record is not None else GradientFlowRecord.empty(step)
            ratios.before_step()
            self.optim.step()
            updates = ratios.after_step(step)
            watch.after_step()
            self.after_step(self, step)
            watch.finish(gradients, updates)
        return watch

    def rules(self) -> set[str]:
        """Names of the errors and warnings that nothing else explains."""
        return {finding.rule for finding in self.run().judge.findings}
