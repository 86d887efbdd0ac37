"""Small models of many kinds with batches that they can learn from: what every rule must be silent on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from plain_loop import (
    VOCABULARY,
    Loop,
    batches,
    classifier,
    masked_lm,
    masked_words,
    sentences_to_continue,
    small_bert,
    texts,
)
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": 0}
HEADS = {"num_attention_heads": 2, "max_position_embeddings": 32}


def distilbert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 32}
    return DistilBertForMaskedLM(DistilBertConfig(vocab_size=VOCABULARY, **sizes)).train()


def decoder(config: PreTrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).train()


def gpt2() -> nn.Module:
    return decoder(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=2, n_positions=32))


def llama(**settings: Any) -> nn.Module:
    return decoder(LlamaConfig(**SIZES, **HEADS, intermediate_size=64, num_key_value_heads=1, **settings))


def mixtral() -> nn.Module:
    sizes = {"intermediate_size": 48, "num_key_value_heads": 1, "num_local_experts": 4}
    return decoder(MixtralConfig(**SIZES, **HEADS, **sizes))


def mamba() -> nn.Module:
    return decoder(MambaConfig(**{**SIZES, "hidden_size": 64}, state_size=4))


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, pad_token_id=0, **sizes)
    return T5ForConditionalGeneration(config).train()


def to_translate(generator: torch.Generator) -> dict[str, torch.Tensor]:
    batch = texts(generator)
    labels = torch.where(batch["attention_mask"].bool(), (batch["input_ids"] + 3) % VOCABULARY, -100)
    return {**batch, "labels": labels}


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(image_size=12, patch_size=4, num_labels=3, **sizes)).train()


def pictures(generator: torch.Generator) -> dict[str, torch.Tensor]:
    labels = torch.randint(0, 3, (8,), generator=generator)
    noise = torch.randn(8, 3, 12, 12, generator=generator)
    return {"pixel_values": noise + labels[:, None, None, None], "labels": labels}


class Lstm(nn.Module):
    """A bidirectional LSTM with a padding row in its embeddings and a mean over real tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(VOCABULARY, 32, padding_idx=0)
        self.dropout = nn.Dropout(0.3)
        self.body = nn.LSTM(32, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids, attention_mask, labels):
        hidden, _ = self.body(self.dropout(self.words(input_ids)))
        real = attention_mask[..., None].float()
        logits = self.head((hidden * real).sum(1) / real.sum(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Quantiles(nn.Module):
    """BERT that predicts three quantiles of a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = BertModel(small_bert())  # its pooler is not read
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask, labels):
        mean = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state.mean(1)
        error = labels[:, None] - self.head(mean)
        levels = torch.tensor([0.1, 0.5, 0.9])
        return {"loss": torch.maximum(levels * error, (levels - 1) * error).mean()}


def numbers(generator: torch.Generator) -> dict[str, torch.Tensor]:
    batch = texts(generator)
    return {**batch, "labels": batch["input_ids"].float().sum(1) / 200}


def lora(modules_to_save: list[str] | None = None) -> nn.Module:
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=modules_to_save)
    return get_peft_model(classifier(), config)


def checkpointed(reentrant: bool) -> nn.Module:
    model = classifier()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


def frozen_below() -> nn.Module:
    model = classifier()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    return model


class InBfloat16(nn.Module):
    """A model called under autocast, as Accelerate does it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, **batch):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(**batch)


def with_neftune() -> nn.Module:
    from transformers.integrations.neftune import neftune_post_forward_hook

    model = gpt2()
    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = 5.0
    embeddings.register_forward_hook(neftune_post_forward_hook)
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """On one thread, since small models run slower on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


HEALTHY_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], dict[str, torch.Tensor]]]] = {
    "bert": (classifier, texts),
    "bert_masked_words": (masked_lm, masked_words),
    "bert_regression": (lambda: classifier(problem_type="regression"), lambda g: regression(g)),
    "distilbert": (distilbert, masked_words),
    "gpt2": (gpt2, sentences_to_continue),
    "llama": (llama, sentences_to_continue),
    "llama_tied": (lambda: llama(tie_word_embeddings=True), sentences_to_continue),
    "mixtral": (mixtral, sentences_to_continue),
    "mamba": (mamba, sentences_to_continue),
    "mamba_32_wide": (lambda: decoder(MambaConfig(**SIZES, state_size=4)), sentences_to_continue),
    "t5": (t5, to_translate),
    "vit": (vit, pictures),
    "lstm": (Lstm, texts),
    "quantiles": (Quantiles, numbers),
    "lora": (lora, texts),
    "lora_with_whole_modules": (lambda: lora(["classifier"]), texts),
    "checkpointed": (lambda: checkpointed(False), texts),
    "checkpointed_reentrant": (lambda: checkpointed(True), texts),
    "frozen_below": (frozen_below, texts),
    "bfloat16": (lambda: InBfloat16(classifier()), texts),
    "bfloat16_llama": (lambda: InBfloat16(llama()), sentences_to_continue),
    "wholly_bfloat16": (lambda: gpt2().to(torch.bfloat16), sentences_to_continue),
    "neftune": (with_neftune, sentences_to_continue),
}


def regression(generator: torch.Generator) -> dict[str, torch.Tensor]:
    batch = texts(generator)
    return {**batch, "labels": torch.rand(8, 3, generator=generator) + batch["labels"][:, None]}


def healthy_loop(name: str, steps: int = 8) -> Loop:
    """The loop of one healthy model."""
    model, make = HEALTHY_MODELS[name]
    return Loop(model(), batches(make), steps=steps)
