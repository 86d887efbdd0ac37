"""Questions and their texts as windows of tokens, and answers from what a model says of the windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState

from bert_toolkit.data.squad import QuestionSplits
from bert_toolkit.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

BEST = 20
"""Beginnings and ends of a window that are tried together, as in SQuAD's baselines."""


@dataclass(frozen=True)
class Answer:
    """An answer that a model gives.

    Args:
        text: Part of the context; empty to say that there is none.
        probability: Among the best answers of all windows, "none" included where that is allowed.
    """

    text: str
    probability: float


def tokenize_questions(
    corpus: QuestionSplits, tokenizer: Any, max_length: int, doc_stride: int, seed: int, most: int | None = None
) -> tuple[Dataset, Dataset, Dataset]:
    """Cut the three splits into windows; every process calls it, and one tokenizes for all of a machine.

    Args:
        corpus: Questions.
        tokenizer: Of the model; it must tell from which characters a token comes.
        max_length: Tokens of a window, question included.
        doc_stride: Tokens that a window shares with the one before.
        seed: Shuffles the training questions where some are left out.
        most: Keep the first of the training questions after shuffling them.

    Returns:
        Windows of train, validation and test, with the columns of `windows_of`; the last two are one object where the
        corpus' are.

    Raises:
        InputError: The tokenizer does not tell characters, or a question leaves no room for its text.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} does not tell from which characters a token comes: choose a "
            "model with a fast tokenizer (a file tokenizer.json)"
        )
    if tokenizer.padding_side != "right":
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} pads on the left, which would move the answers: choose a model "
            "whose tokenizer pads on the right"
        )
    if doc_stride < 0:
        raise InputError(f"`doc_stride` must be at least 0, got {doc_stride}")
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - doc_stride - 1
    for rows in (corpus.train, corpus.validation, corpus.test):
        for place, question in zip(rows["place"][:], rows["question"][:], strict=True):
            # a token has a character at least, so that short questions need not be tokenized here
            if len(question) > room and (count := len(tokenizer.tokenize(question))) > room:
                raise InputError(
                    f"{place} has {count} tokens, which with `doc_stride` {doc_stride} leave no room for its text in "
                    f"`max_length` {max_length}: shorten it, or change these"
                )
    train = corpus.train
    if most is not None:
        train = train.shuffle(seed=seed).select(range(min(most, len(train))))
    cut = partial(windows_of, tokenizer=tokenizer, max_length=max_length, doc_stride=doc_stride)
    with PartialState().local_main_process_first():
        windows = [
            rows.map(cut, batched=True, with_indices=True, remove_columns=rows.column_names)
            for rows in (train, corpus.validation, *([] if corpus.test is corpus.validation else [corpus.test]))
        ]
    return windows[0], windows[1], windows[-1]


def windows_of(
    rows: dict[str, list[Any]], numbers: list[int], tokenizer: Any, max_length: int, doc_stride: int
) -> dict[str, list[Any]]:
    """Cut questions with long texts into windows that overlap.

    Args:
        rows: `question`, `context`, `answers` and `begins`, lists.
        numbers: Of the rows in their dataset.
        tokenizer: A fast tokenizer.
        max_length: Tokens of a window, question included.
        doc_stride: Tokens that a window shares with the one before.

    Returns:
        What the tokenizer gives; `start_positions` and `end_positions` of the first answer, both 0 where the window
        does not hold all of it; `row`, the number of the question; `offsets`, first character and the one after the
        last of each token of the context, -1 for the others; and `length`.
    """
    encoded = tokenizer(
        rows["question"],
        rows["context"],
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    samples, all_offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    starts, ends, offsets = [], [], []
    for window, (sample, characters) in enumerate(zip(samples, all_offsets, strict=True)):
        of_context = [part == 1 for part in encoded.sequence_ids(window)]
        kept = np.where(np.array(of_context)[:, None], np.array(characters), -1)  # (T, 2)
        start = end = 0
        if rows["answers"][sample]:
            begin = rows["begins"][sample][0]
            start, end = _tokens_of(kept, begin, begin + len(rows["answers"][sample][0]))
        starts.append(start)
        ends.append(end)
        offsets.append(kept.tolist())
    return {
        **encoded,
        "start_positions": starts,
        "end_positions": ends,
        "row": [numbers[sample] for sample in samples],
        "offsets": offsets,
        "length": [len(ids) for ids in encoded["input_ids"]],
    }


def _tokens_of(offsets: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """First and last token of an answer, or 0 and 0 where a part of it lies outside the window."""
    touching = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 0] < end) & (offsets[:, 1] > begin))
    if not len(touching) or offsets[touching[0], 0] > begin or offsets[touching[-1], 1] < end:
        return 0, 0
    return int(touching[0]), int(touching[-1])


def answers_of(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    windows: Dataset,
    contexts: Sequence[str],
    max_answer_length: int,
    null_threshold: float | None,
) -> list[Answer]:
    """Return the best answer to each question over all its windows.

    Args:
        start_logits: Of the tokens of each window, (n, T); columns after a window's tokens do not count.
        end_logits: Likewise.
        windows: Columns `row` and `offsets`, in the same order.
        contexts: Of each question.
        max_answer_length: Tokens at most.
        null_threshold: Say "none" where that scores higher than the best answer by more than this (in logits); None
            where every question has an answer.

    Returns:
        An answer for each question, in their order.
    """
    found: list[dict[str, float]] = [{} for _ in contexts]  # the best score of each text, whichever window it is in
    none = np.full(len(contexts), np.inf)
    for window, (row, pairs) in enumerate(zip(windows["row"][:], windows["offsets"][:], strict=True)):
        offsets = np.array(pairs)
        start, end = start_logits[window, : len(offsets)], end_logits[window, : len(offsets)]
        # a window without the answer says "none"; only a question of which all windows say so has none
        none[row] = min(none[row], float(start[0]) + float(end[0]))
        allowed = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
        firsts, lasts = (allowed[np.argsort(-logits[allowed])[:BEST]] for logits in (start, end))
        for first in firsts:
            for last in lasts[(lasts >= first) & (lasts < first + max_answer_length)]:
                text = contexts[row][offsets[first, 0] : offsets[last, 1]]
                score = float(start[first]) + float(end[last])
                found[row][text] = max(score, found[row].get(text, score))
    return [
        _best(
            sorted(((score, text) for text, score in candidates.items()), reverse=True)[:BEST],
            float(of_none),
            null_threshold,
        )
        for candidates, of_none in zip(found, none, strict=True)
    ]


def _best(candidates: list[tuple[float, str]], none: float, null_threshold: float | None) -> Answer:
    said_none = not candidates or null_threshold is not None and none - candidates[0][0] > null_threshold
    if not candidates:
        return Answer("", 1.0)
    scores = np.array([score for score, _ in candidates] + ([] if null_threshold is None else [none]))
    weights = np.exp(scores - scores.max())
    chosen = -1 if said_none else 0
    return Answer("" if said_none else candidates[0][1], float(weights[chosen] / weights.sum()))
