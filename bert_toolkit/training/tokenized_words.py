"""Words with tags as tokens: the first token of a word has its tag, the others do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from accelerate import PartialState

from bert_toolkit.data.tagged_sentences import TaggedSplits
from bert_toolkit.errors import InputError
from bert_toolkit.ignored_label import IGNORED_LABEL


def tokenize_sentences(
    corpus: TaggedSplits, tokenizer: Any, max_length: int, seed: int, max_train_samples: int | None = None
) -> TaggedSplits:
    """Tokenize the three splits; every process calls it, and one tokenizes for all of a machine.

    Args:
        corpus: Sentences.
        tokenizer: Of the model; it must tell to which word a token belongs.
        max_length: Longer sentences are cut to this number of tokens.
        seed: Shuffles the training rows where some are left out.
        max_train_samples: Keep the first of the training rows after shuffling them.

    Returns:
        The corpus with the columns of `tokenize_words`.

    Raises:
        InputError: The tokenizer cannot tell words apart.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} does not tell to which word a token belongs: choose a model "
            "with a fast tokenizer (a file tokenizer.json)"
        )
    train = corpus.train
    if max_train_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(max_train_samples, len(train))))
    tokenize = partial(tokenize_words, tokenizer=tokenizer, max_length=max_length)
    with PartialState().local_main_process_first():
        train = train.map(tokenize, batched=True)
        validation = corpus.validation.map(tokenize, batched=True)
        test = validation if corpus.test is corpus.validation else corpus.test.map(tokenize, batched=True)
    return replace(corpus, train=train, validation=validation, test=test)


def tokenize_words(rows: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Tokenize a batch of sentences.

    Args:
        rows: `words` and `tags`, lists of lists.
        tokenizer: A fast tokenizer.
        max_length: Longer sentences are cut to this number of tokens.

    Returns:
        What the tokenizer gives, `labels` (-100 where a token counts not: special tokens, and all but the first of a
        word), `length` and `truncated`.
    """
    encoded = tokenizer(rows["words"], is_split_into_words=True, truncation=True, max_length=max_length)
    labels, truncated = [], []
    for row, tags in enumerate(rows["tags"]):
        of_tokens = encoded.word_ids(row)
        before = [None, *of_tokens[:-1]]
        labels.append(
            [
                IGNORED_LABEL if word is None or word == previous else tags[word]
                for word, previous in zip(of_tokens, before, strict=True)
            ]
        )
        truncated.append(bool(encoded.encodings[row].overflowing))
    return {**encoded, "labels": labels, "length": [len(ids) for ids in encoded["input_ids"]], "truncated": truncated}


def tags_of_words(
    predicted: np.ndarray, labels: np.ndarray, tag_names: Sequence[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Return true and predicted tags of the words that a model has seen, sentence by sentence.

    Args:
        predicted: Tag ids of the tokens, (n, T).
        labels: Tag ids of the tokens, -100 where they do not count, (n, T).
        tag_names: Name of each id.

    Returns:
        True tags and predicted tags of each sentence. Words that were cut off are in neither.
    """
    counts = labels != IGNORED_LABEL
    true = [[tag_names[i] for i in row[c]] for row, c in zip(labels, counts, strict=True)]
    guessed = [[tag_names[i] for i in row[c]] for row, c in zip(predicted, counts, strict=True)]
    return true, guessed
