"""PEFT: the ways to train a few parameters beside frozen ones."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModel

from benchmarks.fault_injection.healthy_programs.bodies import MeanPooled, minilm_classifier
from benchmarks.fault_injection.healthy_programs.measures import held_out_accuracy
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Setup,
    arguments,
    program,
    with_trainer,
)
from benchmarks.fault_injection.healthy_programs.texts import small_minilm_folder, small_minilm_tokenizer, source_rows


def adapted(setup: Setup, config: Any, rate: float, steps: int = 80, bound: float = 0.8) -> Ready:
    """MiniLM with an adapter, on classes of sentences; prompts go before a class of transformers, others into ours."""
    from peft import PromptLearningConfig, get_peft_model

    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    if isinstance(config, PromptLearningConfig):
        model: nn.Module = minilm_classifier(num_labels=2)
    else:
        model = MeanPooled(AutoModel.from_pretrained(small_minilm_folder(), add_pooling_layer=False))
        config.modules_to_save = ["head"]
    return with_trainer(
        setup,
        get_peft_model(model, config),
        rows[:1000],
        arguments(setup, steps, rate),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], bound),
    )


@program(TUNING)
def lora(setup: Setup) -> Ready:
    """LoRA on queries and values."""
    from peft import LoraConfig

    return adapted(setup, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]), 1e-3)


@program(HELD_OUT)
def dora(setup: Setup) -> Ready:
    """LoRA with magnitudes of their own, on all linear layers."""
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules="all-linear", use_dora=True)
    return adapted(setup, config, 1e-3)


@program(HELD_OUT)
def lora_stabilized(setup: Setup) -> Ready:
    """Rank 64 with the rank-stabilized scale, and biases trained too."""
    from peft import LoraConfig

    config = LoraConfig(r=64, lora_alpha=16, target_modules=["query", "value"], use_rslora=True, bias="lora_only")
    return adapted(setup, config, 5e-4)


@program(TUNING)
def ia3(setup: Setup) -> Ready:
    """Three vectors per layer that scale keys, values and the inner part of the feed-forward layer."""
    from peft import IA3Config

    config = IA3Config(
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
    )
    return adapted(setup, config, 1e-2, 100)


@program(HELD_OUT)
def prompt_tuning(setup: Setup) -> Ready:
    """Ten virtual tokens before a frozen body."""
    from peft import PromptTuningConfig

    return adapted(setup, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10), 1e-1, 120)


@program(TUNING)
def prefix_of_an_encoder(setup: Setup) -> Ready:
    """P-tuning: virtual tokens that come out of a small network."""
    from peft import PromptEncoderConfig

    config = PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=8, encoder_hidden_size=128)
    return adapted(setup, config, 1e-2, 200, 0.75)


@program(HELD_OUT)
def random_vectors(setup: Setup) -> Ready:
    """VeRA: random matrices that all layers share, and vectors that scale them."""
    from peft import VeraConfig

    config = VeraConfig(r=64, target_modules=["query", "value"])
    return adapted(setup, config, 1e-2)


@program(HELD_OUT)
def hadamard_products(setup: Setup) -> Ready:
    """LoHa: products of two low-rank products."""
    from peft import LoHaConfig

    config = LoHaConfig(r=8, alpha=8, target_modules=["query", "value"])
    return adapted(setup, config, 3e-3, 100)


@program(TUNING)
def biases_only(setup: Setup) -> Ready:
    """BitFit: biases and the head learn."""
    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    model = MeanPooled(AutoModel.from_pretrained(small_minilm_folder(), add_pooling_layer=False))
    for name, parameter in model.body.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, 100, 2e-3),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


@program(HELD_OUT)
def norms_only(setup: Setup) -> Ready:
    """LayerNorm tuning."""
    from peft import LNTuningConfig

    config = LNTuningConfig(target_modules=["LayerNorm"])
    return adapted(setup, config, 2e-3, 100)
