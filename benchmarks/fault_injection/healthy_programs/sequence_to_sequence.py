"""Encoders with decoders: T5, BART, Switch, a small Whisper."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Setup,
    arguments,
    loss_fell,
    program,
)
from benchmarks.fault_injection.healthy_programs.texts import word_tokenizer


def spelled_backwards(setup: Setup, model: nn.Module, settings: dict[str, Any], to: float = 0.7) -> Ready:
    """Sequence to sequence: five words come back in reverse order."""
    tokenizer = word_tokenizer()
    chance = random.Random(0)
    rows = []
    for _ in range(2000):
        ids = [chance.randrange(5, 45) for _ in range(5)]
        rows.append({"input_ids": [*ids, 3], "attention_mask": [1] * 6, "labels": [*ids[::-1], 3]})
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**settings),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, to), trainer)


def tokens() -> dict[str, Any]:
    """Token ids that configs ask for."""
    return {"vocab_size": len(word_tokenizer()), "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}


@program(TUNING)
def t5(setup: Setup) -> Ready:
    """T5 with relative positions and a rate that Adafactor users take."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(**tokens(), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    return spelled_backwards(setup, T5ForConditionalGeneration(config), arguments(setup, 150, 3e-3, 16))


@program(HELD_OUT)
def bart(setup: Setup) -> Ready:
    """BART with learned positions and label smoothing."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        **tokens(),
        bos_token_id=2,
        forced_eos_token_id=3,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=32,
    )
    settings = arguments(setup, 150, 2e-3, 16, label_smoothing_factor=0.1)
    return spelled_backwards(setup, BartForConditionalGeneration(config), settings, 0.75)


@program(TUNING)
def switch_transformers(setup: Setup) -> Ready:
    """Switch: one of eight experts per token, some idle in every batch."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        **tokens(),
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        num_experts=8,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )
    model = SwitchTransformersForConditionalGeneration(config)
    return spelled_backwards(setup, model, arguments(setup, 150, 3e-3, 8), 0.8)


@program(HELD_OUT)
def whisper(setup: Setup) -> Ready:
    """A small Whisper: tones in, names of the tones out."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=32,
        num_mel_bins=16,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=30,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
        begin_suppress_tokens=None,
    )
    chance = random.Random(0)
    rows = []
    for _ in range(600):
        tones = [chance.randrange(16) for _ in range(4)]
        spectrum = 0.1 * torch.randn(16, 60, generator=torch.Generator().manual_seed(len(rows)))
        for i, tone in enumerate(tones):
            spectrum[tone, 15 * i : 15 * i + 15] += 1.0
        rows.append({"input_features": spectrum, "labels": torch.tensor([*(tone + 3 for tone in tones), 1])})

    def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}

    model = WhisperForConditionalGeneration(config)
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**arguments(setup, 150, 2e-3, 16)),
        train_dataset=rows,
        data_collator=collate,
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.7), trainer)
