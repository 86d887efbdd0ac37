"""What the trainings read: sentences of linguists, presidents and newsgroups, as tasks for encoders and decoders."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertTokenizer

from bert_toolkit.data.cola import read_cola_file
from bert_toolkit.data.documents import corpus_files, sentences_of, state_of_the_union_folder
from bert_toolkit.data.newsgroups import load_newsgroups
from bert_toolkit.training.pretrained import offline_weights

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TRAINING_ROWS, EVALUATION_ROWS, LONGEST = 480, 200, 24


@dataclass(frozen=True)
class Sources:
    """Where the texts lie that are in no package.

    Args:
        cola: Folder with CoLA's raw files.
        newsgroups: Archive or folder of 20 newsgroups, by date.
    """

    cola: Path
    newsgroups: Path


@dataclass(frozen=True)
class Example:
    """One row of a task: a text or two, and its class; language models have no class."""

    text: str
    second: str | None = None
    label: int | None = None


@dataclass(frozen=True)
class Task:
    """What a model learns.

    Args:
        name: As results and flags call it.
        scope: `encoder` or `decoder`.
        classes: Number of classes, 0 for language modeling.
        held_out: No rule may be written from what is seen on it.
        examples: From the sources to all rows, in a fixed random order.
    """

    name: str
    scope: str
    classes: int
    held_out: bool
    examples: Callable[[Sources], list[Example]]


@cache
def linguists(sources: Sources) -> list[str]:
    """Acceptable sentences of CoLA."""
    rows = read_cola_file(sources.cola / "in_domain_train.tsv")
    return [text for text, label in zip(rows["sentence"][:], rows["label"][:], strict=True) if label == 1]


@cache
def presidents() -> list[str]:
    """Sentences of State of the Union speeches."""
    files = corpus_files(state_of_the_union_folder())
    return [text for file in files for text in sentences_of(file.read_text(encoding="utf-8"))]


@cache
def posts(sources: Sources) -> list[tuple[str, int]]:
    """Sentences of newsgroup posts without headers, footers and quotes, and the number of their group."""
    train = load_newsgroups(data_dir=sources.newsgroups, remove=("headers", "footers", "quotes")).train
    return [
        (sentence, label)
        for text, label in zip(train["text"][:], train["label"][:], strict=True)
        for sentence in sentences_of(text)
    ]


def of_length(texts: list[str], shortest: int, longest: int) -> list[str]:
    """Those of so many words."""
    return [text for text in texts if shortest <= len(text.split()) <= longest]


def mixed(examples: list[Example]) -> list[Example]:
    """The rows that a task needs, in an order that is the same for every run."""
    return random.Random(0).sample(examples, TRAINING_ROWS + EVALUATION_ROWS)


def registers(sources: Sources) -> list[Example]:
    """Who said it: a linguist for an example (0) or a president (1)."""
    texts = (of_length(linguists(sources), 5, 14), of_length(presidents(), 5, 14))
    return mixed([Example(text, label=label) for label, group in enumerate(texts) for text in group[:1500]])


def order(sources: Sources) -> list[Example]:
    """Two sentences, a linguist's and a president's: which comes first?"""
    first, second = of_length(linguists(sources), 4, 8), of_length(presidents(), 4, 8)
    pairs = list(zip(first[:1500], second[:1500], strict=False))
    return mixed([Example(*(pair if label == 0 else pair[::-1]), label=label) for pair in pairs for label in (0, 1)])


def topics(sources: Sources) -> list[Example]:
    """Which of two newsgroups three sentences in a row come from: graphics (0) or religion (1)."""
    passages = []
    for label, group in enumerate((1, 3)):
        of_group = [sentence for sentence, number in posts(sources) if number == group]
        passages += [Example(" ".join(of_group[i : i + 3]), label=label) for i in range(0, 3 * 600, 3)]
    return mixed(passages)


def speeches(sources: Sources) -> list[Example]:
    """The next word of a president."""
    return mixed([Example(text) for text in of_length(presidents(), 10, 20)])


def sentences(sources: Sources) -> list[Example]:
    """The next word of a linguist's example."""
    return mixed([Example(text) for text in of_length(linguists(sources), 7, 20)])


def news(sources: Sources) -> list[Example]:
    """The next word in a newsgroup."""
    return mixed([Example(text) for text in of_length([text for text, _ in posts(sources)], 8, 20)])


TASKS = {
    task.name: task
    for task in (
        Task("registers", "encoder", 2, False, registers),
        Task("order", "encoder", 2, False, order),
        Task("topics", "encoder", 2, True, topics),
        Task("speeches", "decoder", 0, False, speeches),
        Task("sentences", "decoder", 0, False, sentences),
        Task("news", "decoder", 0, True, news),
    )
}


@cache
def word_tokenizer(sources: Sources) -> BertTokenizer:
    """A tokenizer of the 1,500 most frequent words of all texts."""
    texts = [*linguists(sources), *presidents()[:20000], *(text for text, _ in posts(sources))]
    words = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    common = [word for word, _ in words.most_common(1500 - len(SPECIAL))]
    return BertTokenizer(vocab={word: i for i, word in enumerate(SPECIAL + common)})


@cache
def wordpiece_tokenizer() -> Any:
    """The tokenizer of the pre-trained encoder."""
    return AutoTokenizer.from_pretrained(offline_weights())


@cache
def rows(task: Task, sources: Sources, pretrained: bool) -> tuple[list[dict], list[dict]]:
    """Tokenized rows for training and for evaluation; language models predict every token but padding."""
    tokenizer = wordpiece_tokenizer() if pretrained else word_tokenizer(sources)
    made = []
    for example in task.examples(sources):
        texts = [text for text in (example.text, example.second) if text is not None]
        row = dict(tokenizer(*texts, truncation=True, max_length=LONGEST))
        if task.classes == 0:
            row.pop("token_type_ids")
            row["labels"] = list(row["input_ids"])
        else:
            row["labels"] = example.label
        made.append(row)
    return made[:TRAINING_ROWS], made[TRAINING_ROWS:]


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad at the end; labels of padding are ignored."""
    longest = max(len(row["input_ids"]) for row in batch)
    out: dict[str, torch.Tensor] = {}
    for name, first in batch[0].items():
        if isinstance(first, list):
            fill = -100 if name == "labels" else 0
            padded = [row[name] + [fill] * (longest - len(row[name])) for row in batch]
            out[name] = torch.tensor(padded)
        else:
            out[name] = torch.tensor([row[name] for row in batch])
    return out
