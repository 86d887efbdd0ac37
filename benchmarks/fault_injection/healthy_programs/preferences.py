"""TRL: supervised fine-tuning, rewards and preferences, on small models from scratch."""

from __future__ import annotations

import copy
import random
from typing import Any

from benchmarks.fault_injection.healthy_programs.language_models import gpt2, llama, special_tokens
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Score,
    Setup,
    arguments,
    loss_fell,
    program,
)
from benchmarks.fault_injection.healthy_programs.texts import causal_tokenizer, spoken

PACKAGES = ("trl", "datasets")


def rewards_of(trainer: Any, key: str, bound: float) -> Score:
    """Mean of a logged number in the last fifth of the run."""
    values = [entry[key] for entry in trainer.state.log_history if key in entry]
    few = max(1, len(values) // 5)
    return Score(key, sum(values[-few:]) / few, bound, higher=True, before=values[0])


@program(TUNING, packages=PACKAGES)
def supervised_fine_tuning(setup: Setup) -> Ready:
    """SFTTrainer on text."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = gpt2()
    trainer = SFTTrainer(
        model,
        args=SFTConfig(**arguments(setup, 100, 2e-3, bf16=False), max_length=32),
        train_dataset=Dataset.from_dict({"text": [text for _, text in spoken()[:1500]]}),
        processing_class=causal_tokenizer(),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.88), trainer)


@program(HELD_OUT, packages=PACKAGES)
def completions_only(setup: Setup) -> Ready:
    """SFTTrainer on prompts and completions: the prompt does not count."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = llama()
    texts = [text.split() for _, text in spoken()[:1500]]
    rows = {
        "prompt": [" ".join(words[: len(words) // 2]) for words in texts],
        "completion": [" " + " ".join(words[len(words) // 2 :]) for words in texts],
    }
    trainer = SFTTrainer(
        model,
        args=SFTConfig(**arguments(setup, 100, 3e-3, bf16=False), max_length=32),
        train_dataset=Dataset.from_dict(rows),
        processing_class=causal_tokenizer(),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.9), trainer)


def choices() -> dict[str, list[str]]:
    """A prompt, how it went on, and how something else went on with its words in disorder."""
    chance = random.Random(0)
    rows: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": []}
    for _, text in spoken()[:800]:
        words = text.split()
        half = len(words) // 2
        rest = words[half:]
        rows["prompt"].append(" ".join(words[:half]))
        rows["chosen"].append(" " + " ".join(rest))
        rows["rejected"].append(" " + " ".join(chance.sample(rest, len(rest))[::-1] + ["of", "of"]))
    return rows


@program(HELD_OUT, packages=PACKAGES)
def direct_preferences(setup: Setup) -> Ready:
    """DPOTrainer with a reference model."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = gpt2()
    trainer = DPOTrainer(
        model,
        copy.deepcopy(model),
        args=DPOConfig(**arguments(setup, 80, 1e-3, bf16=False), max_length=48),
        train_dataset=Dataset.from_dict(choices()),
        processing_class=causal_tokenizer(),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.7), trainer)


@program(TUNING, packages=PACKAGES)
def reward_model(setup: Setup) -> Ready:
    """RewardTrainer: one logit per text, compared in pairs."""
    from datasets import Dataset
    from transformers import GPT2Config, GPT2ForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    config = GPT2Config(**special_tokens(), n_positions=64, n_embd=64, n_layer=2, n_head=4, num_labels=1)
    model = GPT2ForSequenceClassification(config)
    rows = choices()
    texts = {
        name: [prompt + rest for prompt, rest in zip(rows["prompt"], rows[name], strict=True)]
        for name in ("chosen", "rejected")
    }
    trainer = RewardTrainer(
        model,
        args=RewardConfig(**arguments(setup, 80, 1e-3, bf16=False), max_length=48),
        train_dataset=Dataset.from_dict(texts),
        processing_class=causal_tokenizer(),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.5), trainer)


@program(TUNING, packages=PACKAGES)
def group_relative_policy(setup: Setup) -> Ready:
    """GRPOTrainer: the loss begins at zero and says nothing; the reward grows."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def short_words(completions: list[str], **kwargs: Any) -> list[float]:
        return [completion.count("e") / max(1, len(completion)) for completion in completions]

    model = llama()
    settings = arguments(setup, 200, 3e-3, 8, bf16=False)
    trainer = GRPOTrainer(
        model,
        args=GRPOConfig(**settings, num_generations=8, max_completion_length=12, beta=0.0),
        reward_funcs=short_words,
        train_dataset=Dataset.from_dict({"prompt": [" ".join(text.split()[:4]) for _, text in spoken()[:400]]}),
        processing_class=causal_tokenizer(),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: rewards_of(trainer, "reward", 0.2), trainer)


@program(TUNING, packages=PACKAGES)
def good_and_bad_answers(setup: Setup) -> Ready:
    """KTOTrainer: single answers, each good or bad."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = choices()
    table: dict[str, list] = {"prompt": [], "completion": [], "label": []}
    for i, prompt in enumerate(rows["prompt"]):
        table["prompt"].append(prompt)
        table["completion"].append(rows["chosen" if i % 2 else "rejected"][i])
        table["label"].append(bool(i % 2))
    model = gpt2()
    trainer = KTOTrainer(
        model,
        copy.deepcopy(model),
        args=KTOConfig(**arguments(setup, 60, 1e-3, bf16=False), max_length=48),
        train_dataset=Dataset.from_dict(table),
        processing_class=causal_tokenizer(),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.9), trainer)
