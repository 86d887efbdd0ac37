"""Whom the faults befall: nine small transformers and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    set_seed,
)

from benchmarks.fault_injection.deform.texts import (
    LONGEST,
    TASKS,
    Sources,
    Task,
    of_length,
    posts,
    presidents,
    rows,
    word_tokenizer,
)
from bert_toolkit import ToolkitBertConfig, ToolkitBertForSequenceClassification
from bert_toolkit.training.pretrained import offline_weights

WARM_UP_STEPS = 400


@dataclass(frozen=True)
class Subject:
    """A model and how it is trained.

    Args:
        name: As results and flags call it.
        scope: `encoder` or `decoder`: which operators and tasks fit.
        held_out: No rule may be written from what is seen on it.
        pretrained: Its texts are cut into the pieces of the pre-trained encoder.
        build: From task and sources to a model; the random state is set before.
        steps: Optimizer steps.
        rate: Learning rate.
        batch: Rows per step.
        segments: Its forward pass takes `token_type_ids`.
    """

    name: str
    scope: str
    held_out: bool
    pretrained: bool
    build: Callable[[Task, Sources], nn.Module]
    steps: int
    rate: float
    batch: int
    segments: bool = True

    def rows(self, task: Task, sources: Sources) -> tuple[list[dict], list[dict]]:
        """Rows for training and evaluation, as this model takes them."""
        made = compact_rows(task, sources) if self.pretrained else rows(task, sources, False)
        if self.segments:
            return made
        train, test = ([{k: v for k, v in row.items() if k != "token_type_ids"} for row in part] for part in made)
        return train, test


def common(sources: Sources) -> dict[str, Any]:
    """Sizes that the small models share."""
    return {"vocab_size": len(word_tokenizer(sources)), "max_position_embeddings": 64, "attn_implementation": "eager"}


SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}


@cache
def kept_pieces(task: Task, sources: Sources) -> list[int]:
    """Numbers of the word pieces that occur in a task, special tokens first."""
    train, test = rows(task, sources, True)
    used = {piece for row in (*train, *test) for piece in row["input_ids"]}
    special = [0, 100, 101, 102, 103]  # [PAD], [UNK], [CLS], [SEP], [MASK]
    return special + sorted(used.difference(special))


@cache
def compact_rows(task: Task, sources: Sources) -> tuple[list[dict], list[dict]]:
    """Rows with the pieces renumbered by `kept_pieces`: 30,000 rows of the embedding would only cost time."""
    number = {piece: i for i, piece in enumerate(kept_pieces(task, sources))}
    train, test = (
        [{**row, "input_ids": [number[piece] for piece in row["input_ids"]]} for row in part]
        for part in rows(task, sources, True)
    )
    return train, test


def minilm(task: Task, sources: Sources) -> nn.Module:
    """The lower three layers of MiniLM (384 wide, pre-trained) with a fresh head."""
    model = BertForSequenceClassification.from_pretrained(
        offline_weights(), num_labels=task.classes, num_hidden_layers=3, attn_implementation="eager"
    )
    weight = model.bert.embeddings.word_embeddings.weight.detach()[kept_pieces(task, sources)]
    model.bert.embeddings.word_embeddings = nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=0)
    model.config.vocab_size = len(weight)
    return model


def bert(task: Task, sources: Sources) -> nn.Module:
    """A small BERT from scratch."""
    sizes: dict[str, Any] = {**SMALL, **common(sources), "num_labels": task.classes}
    return BertForSequenceClassification(BertConfig(**sizes))


def distilbert(task: Task, sources: Sources) -> nn.Module:
    """A small DistilBERT from scratch."""
    sizes: dict[str, Any] = {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 256, "num_labels": task.classes}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes, **common(sources), seq_classif_dropout=0.1))


def toolkit_pre_ln(task: Task, sources: Sources) -> nn.Module:
    """A small ToolkitBert from scratch, LayerNorm before each sublayer."""
    sizes: dict[str, Any] = {**SMALL, **common(sources), "num_labels": task.classes}
    return ToolkitBertForSequenceClassification(ToolkitBertConfig(**sizes, layer_norm_placement="pre"))


def gpt2_from_scratch(sources: Sources) -> GPT2LMHeadModel:
    """A small GPT-2."""
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 4, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, **common(sources), bos_token_id=3, eos_token_id=3))


def neox_from_scratch(sources: Sources) -> GPTNeoXForCausalLM:
    """A small GPT-NeoX, rotary, attention and feed-forward part side by side."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, **common(sources), bos_token_id=3, eos_token_id=3))


def opt_from_scratch(sources: Sources) -> OPTForCausalLM:
    """A small OPT: LayerNorm first, learned positions, ReLU."""
    sizes: dict[str, Any] = {**SMALL, "ffn_dim": SMALL["intermediate_size"], "word_embed_proj_dim": 64}
    del sizes["intermediate_size"]
    return OPTForCausalLM(OPTConfig(**sizes, **common(sources), bos_token_id=3, eos_token_id=3, pad_token_id=0))


@cache
def warmed_up(
    build: Callable[[Sources], nn.Module], task: str, texts: Callable[[Sources], list[str]], sources: Sources
) -> dict[str, torch.Tensor]:
    """Weights of a model that has read for 400 steps, other texts than those of the task."""
    set_seed(0)
    model = build(sources).train()
    used = {example.text for example in TASKS[task].examples(sources)}
    read = [text for text in of_length(texts(sources), 10, 20) if text not in used]
    tokenizer = word_tokenizer(sources)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(WARM_UP_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 40)
        batch = tokenizer(
            read[16 * step : 16 * step + 16], truncation=True, max_length=LONGEST, padding=True, return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def speeches_of(sources: Sources) -> list[str]:
    """What presidents said."""
    return presidents()


def posts_of(sources: Sources) -> list[str]:
    """What was posted."""
    return [text for text, _ in posts(sources)]


def gpt2(task: Task, sources: Sources) -> nn.Module:
    """A small GPT-2 that has read speeches before."""
    model = gpt2_from_scratch(sources)
    model.load_state_dict(warmed_up(gpt2_from_scratch, "speeches", speeches_of, sources))
    return model


def neox(task: Task, sources: Sources) -> nn.Module:
    """A small GPT-NeoX that has read posts before."""
    model = neox_from_scratch(sources)
    model.load_state_dict(warmed_up(neox_from_scratch, "news", posts_of, sources))
    return model


def opt(task: Task, sources: Sources) -> nn.Module:
    """A small OPT that has read posts before."""
    model = opt_from_scratch(sources)
    model.load_state_dict(warmed_up(opt_from_scratch, "news", posts_of, sources))
    return model


def neo(task: Task, sources: Sources) -> nn.Module:
    """A small GPT-Neo from scratch, every other layer with local attention."""
    sizes: dict[str, Any] = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "bos_token_id": 3, "eos_token_id": 3}
    return GPTNeoForCausalLM(
        GPTNeoConfig(**sizes, **common(sources), attention_types=[[["global", "local"], 2]], window_size=8)
    )


def llama(task: Task, sources: Sources) -> nn.Module:
    """A small Llama from scratch."""
    return LlamaForCausalLM(LlamaConfig(**SMALL, **common(sources), bos_token_id=3, eos_token_id=3, pad_token_id=0))


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("minilm", "encoder", False, True, minilm, 60, 4e-4, 8),
        Subject("bert", "encoder", False, False, bert, 90, 1e-3, 16),
        Subject("gpt2", "decoder", False, False, gpt2, 60, 1e-3, 8),
        Subject("neo", "decoder", False, False, neo, 60, 2e-3, 8),
        Subject("distilbert", "encoder", True, False, distilbert, 90, 1e-3, 16, segments=False),
        Subject("toolkit_pre_ln", "encoder", True, False, toolkit_pre_ln, 90, 1e-3, 16),
        Subject("llama", "decoder", True, False, llama, 60, 2e-3, 8),
        Subject("neox", "decoder", False, False, neox, 60, 1e-3, 8),
        Subject("opt", "decoder", True, False, opt, 60, 1e-3, 8),
    )
}

LOOKED_AT = {("neox", "news")}
"""Trainings that were held out until a rule was written from what was seen on them."""


def is_held_out(subject: str, task: str) -> bool:
    """Whether nobody who writes rules may look at trainings of this model and task."""
    return (SUBJECTS[subject].held_out or TASKS[task].held_out) and (subject, task) not in LOOKED_AT
