"""Sound, time series, and images with texts."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

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
from benchmarks.fault_injection.healthy_programs.vision import digits


def tones(count: int, each: int = 4, length: int = 800) -> list[tuple[Tensor, list[int]]]:
    """Waves of several tones in turn, out of four pitches, with a little noise."""
    chance = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(length // each) / 100
    rows = []
    for _ in range(count):
        pitches = [chance.randrange(4) for _ in range(each)]
        wave = torch.cat([torch.sin(2 * math.pi * (3 + 5 * pitch) * time) for pitch in pitches])
        rows.append((wave + 0.05 * torch.randn(len(wave), generator=generator), pitches))
    return rows


def wav2vec(**config: Any) -> Any:
    """Config of a small wav2vec 2.0."""
    from transformers import Wav2Vec2Config

    size = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "conv_dim": (32, 32),
        "conv_kernel": (10, 4),
        "conv_stride": (5, 4),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "mask_time_prob": 0.0,
        "layerdrop": 0.0,
    }
    return Wav2Vec2Config(**{**size, **config})


@program(TUNING)
def wave_classifier(setup: Setup) -> Ready:
    """wav2vec 2.0 from scratch that names the one pitch of a wave."""
    from transformers import Wav2Vec2ForSequenceClassification

    rows = [{"input_values": wave, "labels": pitches[0]} for wave, pitches in tones(900, 1, 400)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {
            "input_values": torch.stack([row["input_values"] for row in batch]),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    model = Wav2Vec2ForSequenceClassification(wav2vec(num_labels=4, classifier_proj_size=32))
    score = held_out_accuracy(rows[800:], 0.8)
    return with_trainer(setup, model, rows[:800], arguments(setup, 100, 2e-3, 16), collator=collate, score=score)


@program(HELD_OUT)
def wave_reader(setup: Setup) -> Ready:
    """wav2vec 2.0 with CTC, its feature encoder frozen as everybody freezes it."""
    from transformers import Wav2Vec2ForCTC

    def collate(batch: list[tuple[Tensor, list[int]]]) -> dict[str, Tensor]:
        return {
            "input_values": torch.stack([wave for wave, _ in batch]),
            "labels": torch.tensor([[pitch + 1 for pitch in pitches] for _, pitches in batch]),
        }

    model = Wav2Vec2ForCTC(wav2vec(vocab_size=6, pad_token_id=0, ctc_loss_reduction="mean"))
    model.freeze_feature_encoder()
    return with_trainer(setup, model, tones(600), arguments(setup, 150, 2e-3, 16), collator=collate, score=0.6)


@program(HELD_OUT)
def forecast(setup: Setup) -> Ready:
    """PatchTST on sums of waves."""
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    config = PatchTSTConfig(
        num_input_channels=2,
        context_length=32,
        prediction_length=8,
        patch_length=4,
        patch_stride=4,
        d_model=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        loss="mse",
    )
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(800):
        speed, phase = torch.rand(2, 2, generator=generator)
        time = torch.arange(40)[:, None]
        rows.append(torch.sin((0.3 + speed) * time + 6 * phase) + 0.05 * torch.randn(40, 2, generator=generator))

    def collate(batch: list[Tensor]) -> dict[str, Tensor]:
        series = torch.stack(batch)
        return {"past_values": series[:, :32], "future_values": series[:, 32:]}

    model = PatchTSTForPrediction(config)
    return with_trainer(setup, model, rows, arguments(setup, 150, 3e-3, 32), collator=collate, score=0.6)


@program(HELD_OUT)
def images_and_names(setup: Setup) -> Ready:
    """CLIP from scratch: images of digits and their names; a batch may hold a name twice, so the loss has a floor."""
    from transformers import CLIPConfig, CLIPModel

    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    letters = sorted({letter for name in names for letter in name})
    config = CLIPConfig(
        text_config={
            "vocab_size": len(letters) + 2,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 8,
            "eos_token_id": len(letters) + 1,
            "bos_token_id": None,
            "pad_token_id": 0,
        },
        vision_config={
            "image_size": 8,
            "patch_size": 2,
            "num_channels": 1,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        projection_dim=32,
    )
    encoded = []
    for name in names:
        ids = [letters.index(letter) + 1 for letter in name] + [len(letters) + 1]
        encoded.append(torch.tensor(ids + [0] * (8 - len(ids))))

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.stack([encoded[row["labels"]] for row in batch])
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in batch]),
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "return_loss": True,
        }

    return with_trainer(
        setup, CLIPModel(config), digits(), arguments(setup, 150, 1e-3, 8), collator=collate, score=0.6
    )
