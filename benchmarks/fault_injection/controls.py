"""Healthy trainings that look unusual: none of them may raise an alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.fault_injection.trainings import MODELS, Run, digits, gpt2, minilm, scratch, train
from bert_toolkit.training.layer_wise_learning_rate import layer_wise_parameter_groups

CONTROLS: dict[str, tuple[Callable[[int], Run], bool]] = {}


def control(held_out: bool = False) -> Callable:
    """Register the function below as a healthy training; no threshold was chosen by those that are held out."""

    def register(build: Callable[[int], Run]) -> Callable[[int], Run]:
        CONTROLS[build.__name__] = (build, held_out)
        return build

    return register


for _name, _build in MODELS.items():
    CONTROLS[f"{_name}_as_it_is"] = (_build, False)


def with_settings(run: Run, **settings: Any) -> Run:
    """The run with other `TrainingArguments`."""
    run.settings.update(settings)
    return run


@control()
def lora(seed: int) -> Run:
    """LoRA adapters on MiniLM."""
    from peft import LoraConfig, get_peft_model

    run = minilm(seed)
    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    run.model = get_peft_model(run.model, config)
    return with_settings(run, learning_rate=1e-3)


@control()
def large_embeddings(seed: int) -> Run:
    """A vocabulary of 8,000 words for few speeches."""
    return scratch(seed, vocab_size=8000)


@control()
def warmup_long(seed: int) -> Run:
    """Half of the steps are warm-up."""
    return with_settings(gpt2(seed), warmup_steps=50)


@control()
def warmup_short(seed: int) -> Run:
    """One step of warm-up."""
    return with_settings(minilm(seed), warmup_steps=1, learning_rate=5e-5)


@control()
def cosine_to_zero(seed: int) -> Run:
    """A cosine schedule that ends at 0."""
    return with_settings(digits(seed), lr_scheduler_type="cosine")


@control()
def high_dropout(seed: int) -> Run:
    """Dropout of 0.4 everywhere."""
    return scratch(seed, hidden_dropout_prob=0.4, attention_probs_dropout_prob=0.4)


@control()
def small_batch(seed: int) -> Run:
    """Two examples per batch."""
    return with_settings(minilm(seed), per_device_train_batch_size=2)


@control()
def frozen_encoder(seed: int) -> Run:
    """Only the pooler and the head learn."""
    run = minilm(seed)
    run.model.bert.requires_grad_(False)
    return with_settings(run, learning_rate=1e-3)


@control()
def gradient_accumulation(seed: int) -> Run:
    """Four micro-batches per step."""
    return with_settings(gpt2(seed), gradient_accumulation_steps=4, per_device_train_batch_size=4)


@control()
def pre_ln(seed: int) -> Run:
    """LayerNorm before each sublayer."""
    return scratch(seed, layer_norm_placement="pre")


@control()
def no_clipping(seed: int) -> Run:
    """No clipping."""
    return with_settings(scratch(seed), max_grad_norm=0.0)


@control(held_out=True)
def sgd_with_momentum(seed: int) -> Run:
    """SGD with momentum."""
    run = digits(seed)
    for layer in run.layers:  # PyTorch's default scale is too small for plain SGD through six layers
        nn.init.kaiming_normal_(layer[0].weight)
    run.optimizer = lambda model, rate: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return run


@control(held_out=True)
def bf16_autocast(seed: int) -> Run:
    """Autocast to bfloat16."""
    return with_settings(scratch(seed), bf16=True)


@control(held_out=True)
def frozen_lower_layers(seed: int) -> Run:
    """Embeddings and the lower half of the layers are frozen on purpose."""
    run = minilm(seed)
    run.model.bert.embeddings.requires_grad_(False)
    for layer in run.layers[:3]:
        layer.requires_grad_(False)
    return run


@control(held_out=True)
def layer_wise_rates(seed: int) -> Run:
    """Lower layers have lower learning rates."""
    run = minilm(seed)
    run.optimizer = lambda model, rate: torch.optim.AdamW(
        layer_wise_parameter_groups(model, rate, 0.7, 0.01, [n for n, p in model.named_parameters() if p.ndim > 1])
    )
    return run


@control(held_out=True)
def memorised_digits(seed: int) -> Run:
    """64 images are learned by heart."""
    run = digits(seed)
    run.dataset = run.dataset[:64]
    return with_settings(run, max_steps=300, lr_scheduler_type="constant")


@control(held_out=True)
def adafactor(seed: int) -> Run:
    """Adafactor."""
    return with_settings(gpt2(seed), optim="adafactor", learning_rate=3e-3)


@control(held_out=True)
def continued_training(seed: int) -> Run:
    """A network that was trained before goes on at a lower rate."""
    run = digits(seed)
    train(run, seed, None)
    return with_settings(run, learning_rate=1e-4)
