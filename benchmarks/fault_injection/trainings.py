"""Four real small trainings to break: MiniLM fine-tuning, pre-training from scratch, GPT-2, a ReLU network."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bert_toolkit import (
    DataCollatorForPreTraining,
    NextSentencePairs,
    ToolkitBertConfig,
    ToolkitBertForPreTraining,
    ToolkitBertForSequenceClassification,
    TrainingHealthCallback,
)
from bert_toolkit.data.cola import SAMPLE_DIR, read_cola_file
from bert_toolkit.data.documents import corpus_files, sentences_of, state_of_the_union_folder
from bert_toolkit.training.pretrained import offline_weights


@dataclass
class Run:
    """A training that is about to start; faults change it."""

    model: Any  # a module; faults reach into the parts of the one that they know
    dataset: Any
    collator: Callable[[list], dict]
    settings: dict[str, Any]
    layers: list[Any]
    every_n_steps: int = 2
    callbacks: list[TrainerCallback] = field(default_factory=list)
    optimizer: Callable[[Any, float], torch.optim.Optimizer] | None = None
    scaler: Any = None
    place: tuple[str, ...] = ()  # what a right answer names: parts of parameter names

    @property
    def rate(self) -> float:
        """Learning rate of the settings."""
        return self.settings["learning_rate"]


@cache
def examples() -> list[str]:
    """Sentences of the bundled CoLA sample."""
    return read_cola_file(SAMPLE_DIR / "in_domain_train.tsv")["sentence"][:]


@cache
def speeches(vocabulary_size: int = 1000) -> tuple[BertTokenizer, list[list[str]]]:
    """Words of State of the Union speeches: a tokenizer of the most frequent ones, and documents."""
    texts = [file.read_text(encoding="utf-8") for file in corpus_files(state_of_the_union_folder())[:60]]
    documents = [sentences_of(text)[:60] for text in texts]
    words = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    common = [word for word, _ in words.most_common(vocabulary_size - len(special))]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(special + common)})
    return tokenizer, documents


def common_settings(steps: int, rate: float, batch: int) -> dict[str, Any]:
    """Arguments of `TrainingArguments` that all trainings share."""
    return {
        "max_steps": steps,
        "learning_rate": rate,
        "per_device_train_batch_size": batch,
        "warmup_steps": steps // 10,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def minilm(seed: int) -> Run:
    """ToolkitBert from MiniLM's weights, fine-tuned to tell linguists' examples from presidents' sentences."""
    folder = _once(offline_weights)
    tokenizer = _once(AutoTokenizer.from_pretrained, folder)
    _, documents = speeches()
    spoken = [text for document in documents for text in document if 5 <= len(text.split()) <= 12]
    rows = [
        {**tokenizer(text, truncation=True, max_length=16), "labels": label}
        for label, texts in enumerate((examples()[:600], spoken[:600]))
        for text in texts
    ]
    model = ToolkitBertForSequenceClassification.from_pretrained(folder, num_labels=2)
    settings = common_settings(50, 1e-4, 8)
    return Run(model, rows, DataCollatorWithPadding(tokenizer), settings, list(model.bert.encoder.layer), 1)


def scratch(seed: int, **config: Any) -> Run:
    """A small ToolkitBert pre-trained from scratch on speeches: masked words and next sentences."""
    vocabulary = config.pop("vocab_size", 1000)
    tokenizer, documents = speeches(vocabulary)
    size = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    limits = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    model = ToolkitBertForPreTraining(ToolkitBertConfig(**{**size, **limits, **config}))
    pairs = NextSentencePairs(documents, tokenizer, max_length=32, seed=seed)
    collator = DataCollatorForPreTraining(tokenizer, seed=seed)
    settings = common_settings(100, 2e-3, 8)
    return Run(model, pairs, collator, settings, list(model.bert.encoder.layer))


def gpt2(seed: int) -> Run:
    """A small GPT-2 (pre-LN, causal) from scratch on the same speeches."""
    tokenizer, documents = speeches()
    ids = [
        i for document in documents for text in document for i in tokenizer(text, add_special_tokens=False).input_ids
    ]
    blocks = torch.tensor(ids[: len(ids) // 24 * 24]).view(-1, 24)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=24, n_embd=64, n_layer=4, n_head=4)
    config.bos_token_id = config.eos_token_id = 3
    model = GPT2LMHeadModel(config)

    def collate(rows: list) -> dict:
        batch = torch.stack(rows)
        return {"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": batch.clone()}

    return Run(model, list(blocks), collate, common_settings(100, 2e-3, 8), list(model.transformer.h))


class DigitsNet(nn.Module):
    """Six fully connected layers and a head, returning what Trainer expects."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, depth: int = 6) -> None:
        super().__init__()
        widths = [64] + [96] * depth
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), activation()) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.classifier = nn.Linear(96, 10)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and logits of pixels of shape (batch_size, 64)."""
        for layer in self.layers:
            pixels = layer(pixels)
        logits = self.classifier(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def digits(seed: int, activation: type[nn.Module] = nn.ReLU, depth: int = 6) -> Run:
    """A plain ReLU network on scikit-learn's 8x8 digits."""
    from sklearn.datasets import load_digits

    images, targets = _once(load_digits, return_X_y=True)
    pixels = torch.tensor(images / 16.0 - 0.3, dtype=torch.float32)
    rows = [{"pixels": x, "labels": int(y)} for x, y in zip(pixels, targets, strict=True)]

    def collate(batch: list) -> dict:
        return {
            "pixels": torch.stack([row["pixels"] for row in batch]),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    model = DigitsNet(activation, depth)
    settings = common_settings(200, 1e-3, 32) | {"remove_unused_columns": False}
    return Run(model, rows, collate, settings, list(model.layers), 4)


@cache
def _cached(function: Callable, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _once(function: Callable, *args: Any, **kwargs: Any) -> Any:
    return _cached(function, *args, **kwargs)


MODELS: dict[str, Callable[[int], Run]] = {"minilm": minilm, "scratch": scratch, "gpt2": gpt2, "digits": digits}


class EndAfterFinding(TrainerCallback):
    """A broken training need not go on: end it 10 samples after the first finding."""

    def __init__(self, health: TrainingHealthCallback) -> None:
        self.health = health

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End training where the first finding is 10 samples old."""
        cases = self.health.judge.cases.values()
        history = self.health.history
        if cases and history is not None and len(history) >= min(case.samples for case in cases) + 10:
            control.should_training_stop = True


class InjectedTrainer(Trainer):
    """Trainer with a loss scaler for the CPU."""

    def __init__(self, scaler: Any = None, **kwargs: Any) -> None:
        self.cpu_scaler = scaler
        super().__init__(**kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Give the accelerator the loss scaler, as fp16 on a GPU would."""
        super().create_accelerator_and_postprocess()
        if self.cpu_scaler is not None:
            self.accelerator.scaler = self.cpu_scaler
            self.accelerator.native_amp = True
            self.accelerator.state._mixed_precision = "fp16"


def train(run: Run, seed: int, health: TrainingHealthCallback | None) -> float:
    """Train and return the seconds it took."""
    settings = {key: value for key, value in run.settings.items() if key != "model"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, seed=seed, **settings)
        trainer = InjectedTrainer(
            scaler=run.scaler,
            model=run.model,
            args=arguments,
            train_dataset=run.dataset,
            data_collator=run.collator,
            callbacks=[*run.callbacks, *([health, EndAfterFinding(health)] if health else [])],
            optimizers=(run.optimizer(run.model, run.rate) if run.optimizer else None, None),
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start
