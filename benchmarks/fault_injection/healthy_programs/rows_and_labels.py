"""Fine-tuning on rows and labels of every kind: noisy, rare, several at once, numbers, sorted, streamed, repeated."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    Trainer,
)

from benchmarks.fault_injection.healthy_programs.bodies import MeanPooled, fine_tuning, minilm_classifier, whole_minilm
from benchmarks.fault_injection.healthy_programs.measures import held_out_accuracy, predictions
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Score,
    Setup,
    arguments,
    loss_fell,
    program,
    with_trainer,
)
from benchmarks.fault_injection.healthy_programs.texts import (
    century_rows,
    linguists_examples,
    minilm_tokenizer,
    small_minilm_folder,
    small_minilm_tokenizer,
    source_rows,
    spoken,
)


@program(TUNING)
def label_noise(setup: Setup) -> Ready:
    """A fifth of the training labels is wrong."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    chance = random.Random(3)
    noisy = [{**row, "labels": 1 - row["labels"] if chance.random() < 0.2 else row["labels"]} for row in rows[:1000]]
    return with_trainer(
        setup,
        MeanPooled(AutoModel.from_pretrained(small_minilm_folder())),
        noisy,
        arguments(setup, 100, 5e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


def rare_rows(tokenizer: Any) -> list[dict]:
    """Fifty linguists' examples, twenty of them to train on, among many of presidents' sentences."""
    rare = linguists_examples()[0][:50]
    common = [text for _, text in spoken(5, 12)][:2450]
    rows = [(text, label) for label, part in enumerate((common, rare)) for text in part]
    random.Random(4).shuffle(rows)
    return [{**tokenizer(text, truncation=True, max_length=20), "labels": label} for text, label in rows]


@program(TUNING)
def imbalance_98(setup: Setup) -> Ready:
    """98 % of the examples are of one class."""
    tokenizer = small_minilm_tokenizer()
    rows = rare_rows(tokenizer)

    def average_precision(trainer: Trainer) -> Score:
        from sklearn.metrics import average_precision_score

        logits = predictions(trainer.model, rows[1500:], trainer.data_collator)
        labels = [row["labels"] for row in rows[1500:]]
        value = float(average_precision_score(labels, logits[:, 1] - logits[:, 0]))
        return Score("average precision", value, 0.3, higher=True)

    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        rows[:1500],
        arguments(setup, 100, 5e-4, 16),
        tokenizer=tokenizer,
        score=average_precision,
    )


@program(HELD_OUT)
def class_balanced_sampler(setup: Setup) -> Ready:
    """Rare examples are drawn as often as common ones."""
    from torch.utils.data import WeightedRandomSampler

    tokenizer = small_minilm_tokenizer()
    rows = rare_rows(tokenizer)
    labels = [row["labels"] for row in rows]
    positive = max(1, sum(labels[:1500]))
    weights = [1 / positive if label else 1 / (1500 - positive) for label in labels[:1500]]

    class Balanced(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return WeightedRandomSampler(weights, len(weights), generator=torch.Generator().manual_seed(0))

    def balanced_accuracy(trainer: Trainer) -> Score:
        from sklearn.metrics import balanced_accuracy_score

        predicted = predictions(trainer.model, rows[1500:], trainer.data_collator).argmax(-1)
        return Score("balanced accuracy", float(balanced_accuracy_score(labels[1500:], predicted)), 0.75, higher=True)

    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        rows[:1500],
        arguments(setup, 80, 5e-4),
        tokenizer=tokenizer,
        score=balanced_accuracy,
        trainer_class=Balanced,
    )


@program(TUNING, every_n_steps=1)
def overfit_one_batch(setup: Setup) -> Ready:
    """Eight examples again and again, the sanity check of every tutorial."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)[:8]
    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        rows,
        arguments(setup, 60, 5e-4, lr_scheduler_type="constant"),
        tokenizer=tokenizer,
        score=0.1,
    )


@program(TUNING, every_n_steps=1)
def overfit_one_example(setup: Setup) -> Ready:
    """One pair of sentences is the whole dataset, on purpose."""
    tokenizer = small_minilm_tokenizer()
    pair = tokenizer(*[text for _, text in spoken()[:2]], truncation=True, max_length=32)
    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        [{**pair, "labels": 1}],
        arguments(setup, 80, 2e-5, lr_scheduler_type="constant"),
        tokenizer=tokenizer,
        score=0.3,
    )


class Stream(torch.utils.data.IterableDataset):
    """Rows that come one after the other and have no length."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __iter__(self) -> Any:
        yield from self.rows


@program(TUNING)
def streaming_rows(setup: Setup) -> Ready:
    """An iterable dataset."""
    tokenizer = small_minilm_tokenizer()
    rows = century_rows(tokenizer)
    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        Stream(rows[:1000]),
        arguments(setup, 80, 5e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


@program(TUNING)
def grouped_by_length(setup: Setup) -> Ready:
    """Batches of rows of about the same length, by Trainer's own sampler."""
    return fine_tuning(setup, train_sampling_strategy="group_by_length")


@program(TUNING)
def curriculum_by_length(setup: Setup) -> Ready:
    """Short sentences first and long ones last, without shuffling."""
    tokenizer = small_minilm_tokenizer()
    rows = source_rows(tokenizer)
    easy_first = sorted(rows[:960], key=lambda row: len(row["input_ids"]))
    return with_trainer(
        setup,
        minilm_classifier(num_labels=2),
        easy_first,
        arguments(setup, 100, 3e-4, train_sampling_strategy="sequential"),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


THEMES = (
    ("war", "army", "navy", "military", "enemy"),
    ("tax", "treasury", "debt", "revenue", "budget", "dollars"),
    ("congress", "senate", "house", "legislation"),
    ("people", "citizens", "americans", "nation"),
)


@program(HELD_OUT)
def multi_label(setup: Setup) -> Ready:
    """Four themes that a sentence may have, each by itself, with binary cross-entropy."""
    tokenizer = small_minilm_tokenizer()
    chosen = [text for _, text in spoken() if any(word in text.lower() for theme in THEMES for word in theme)][:1200]
    rows = [
        {
            **tokenizer(text, truncation=True, max_length=24),
            "labels": [float(any(word in text.lower() for word in theme)) for theme in THEMES],
        }
        for text in chosen
    ]

    def exact(trainer: Trainer) -> Score:
        predicted = predictions(trainer.model, rows[1000:], trainer.data_collator) > 0
        labels = torch.tensor([row["labels"] for row in rows[1000:]]).numpy() > 0.5
        return Score("labels right", float((predicted == labels).mean()), 0.8, higher=True)

    return with_trainer(
        setup,
        minilm_classifier(num_labels=4, problem_type="multi_label_classification"),
        rows[:1000],
        arguments(setup, 100, 6e-4),
        tokenizer=tokenizer,
        score=exact,
    )


@program(TUNING)
def year_as_it_is(setup: Setup) -> Ready:
    """Regression on the year itself, about 1900, with squared errors in the millions."""
    tokenizer = small_minilm_tokenizer()
    rows = [
        {**tokenizer(text, truncation=True, max_length=24), "labels": float(year)} for year, text in spoken()[:1200]
    ]
    model = minilm_classifier(num_labels=1)
    model.bert.requires_grad_(False)
    return with_trainer(setup, model, rows, arguments(setup, 200, 1.0), tokenizer=tokenizer, score=0.1)


@program(TUNING)
def year_in_centuries(setup: Setup) -> Ready:
    """Regression on the standardized year."""
    tokenizer = small_minilm_tokenizer()
    rows = [
        {**tokenizer(text, truncation=True, max_length=24), "labels": (year - 1910) / 70}
        for year, text in spoken()[:1200]
    ]
    return with_trainer(
        setup, minilm_classifier(num_labels=1), rows, arguments(setup, 100, 5e-4), tokenizer=tokenizer, score=0.8
    )


@program(TUNING, needs=("cola",))
def cola_at_usual_rate(setup: Setup) -> Ready:
    """CoLA for three quarters of an epoch: its loss hardly leaves the entropy of its classes, as everyone sees it."""
    from bert_toolkit.data.cola import read_cola_file

    tokenizer = minilm_tokenizer()
    table = read_cola_file(setup.cola / "in_domain_train.tsv")
    rows = [
        {**tokenizer(text, truncation=True, max_length=32), "labels": label}
        for text, label in zip(table["sentence"], table["label"], strict=True)
    ]
    scored = read_cola_file(setup.cola / "in_domain_dev.tsv")

    def matthews(trainer: Trainer) -> Score:
        from bert_toolkit.metrics import matthews_correlation

        inputs = [tokenizer(text, truncation=True, max_length=32) for text in scored["sentence"]]
        found = predictions(trainer.model, inputs, trainer.data_collator)
        return Score("Matthews correlation", matthews_correlation(found, np.array(scored["label"])), 0.1, higher=True)

    return with_trainer(
        setup,
        whole_minilm(num_labels=2),
        rows,
        arguments(setup, 400, 1e-4, batch=16),
        tokenizer=tokenizer,
        score=matthews,
    )


@program(HELD_OUT, needs=("newsgroups",))
def newsgroups_of_posts(setup: Setup) -> Ready:
    """Newsgroups by their posts, which are longer than the model reads."""
    import tarfile

    tokenizer = minilm_tokenizer()
    texts: list[tuple[str, str]] = []
    with tarfile.open(setup.newsgroups) as archive:
        for member in archive:
            if member.isfile() and "train" in member.name:
                file = archive.extractfile(member)
                assert file is not None
                texts.append((file.read().decode("latin-1"), member.name.split("/")[-2]))
    random.Random(0).shuffle(texts)
    groups = sorted({group for _, group in texts})
    rows = [
        {**tokenizer(text.partition("\n\n")[2], truncation=True, max_length=64), "labels": groups.index(group)}
        for text, group in texts[:1500]
    ]
    bound = 0.95 * math.log(len(groups))
    return with_trainer(
        setup,
        whole_minilm(num_labels=len(groups)),
        rows,
        arguments(setup, 120, 3e-4),
        tokenizer=tokenizer,
        score=lambda trainer: Score("loss", loss_fell(trainer, 1.0).value, bound * 0.7),
    )
