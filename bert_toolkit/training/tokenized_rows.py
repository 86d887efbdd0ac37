"""Texts of a labeled corpus as tokens, each text tokenized once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from pyarrow import compute

from bert_toolkit.data.corpus_splits import CorpusSplits

if TYPE_CHECKING:
    from datasets import Dataset

REMARKABLE = 0.05
"""Fraction of tokens that are unknown from which on a reader must know it, as in pre-training."""


def tokenize_corpus(
    corpus: CorpusSplits, tokenizer: Any, max_length: int, seed: int, max_train_samples: int | None = None
) -> CorpusSplits:
    """Tokenize the three splits; of the training rows only those that will be trained on.

    Every process calls it; one tokenizes for all of a machine.

    Args:
        corpus: Rows with texts.
        tokenizer: Of the model.
        max_length: Longer texts, or pairs of texts, are cut to this number of tokens.
        seed: Shuffles the training rows where some are left out.
        max_train_samples: Keep the first of the training rows after shuffling them.

    Returns:
        The corpus with the columns of the tokenizer and those of `tokenize_texts`, and with a remark if the tokenizer
        does not know much of the text.
    """
    train = corpus.train
    if max_train_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(max_train_samples, len(train))))
    columns = [name for name in (corpus.text_column, corpus.second_text_column) if name is not None]
    tokenize = partial(tokenize_texts, tokenizer=tokenizer, columns=columns, max_length=max_length)
    with PartialState().local_main_process_first():
        train = train.map(tokenize, batched=True)
        validation = corpus.validation.map(tokenize, batched=True)
        test = validation if corpus.test is corpus.validation else corpus.test.map(tokenize, batched=True)
    remarks = corpus.remarks + unknown_text(train, tokenizer)
    return replace(corpus, train=train, validation=validation, test=test, remarks=remarks)


def unknown_text(rows: Dataset, tokenizer: Any) -> list[str]:
    """Say how much of the text is nothing but unknown tokens to a tokenizer, as that of another language.

    Args:
        rows: Tokenized rows.
        tokenizer: That made them.

    Returns:
        A sentence if it is `REMARKABLE` or more, otherwise none.
    """
    number = getattr(tokenizer, "unk_token_id", None)
    # GPT-2's token for it ends texts too
    if number is None or tokenizer.unk_token in (tokenizer.eos_token, tokenizer.sep_token, tokenizer.cls_token):
        return []
    tokens = compute.list_flatten(rows.data.column("input_ids"))
    unknown = compute.sum(compute.equal(tokens, number)).as_py() or 0
    if unknown < REMARKABLE * len(tokens):
        return []
    return [
        f"The tokenizer does not know the text of {unknown / len(tokens):.1%} of the tokens: check that model and "
        "texts are of one language."
    ]


def tokenize_texts(
    rows: dict[str, list[Any]], tokenizer: Any, columns: Sequence[str], max_length: int
) -> dict[str, list[Any]]:
    """Tokenize a batch of rows.

    Args:
        rows: Column name to values.
        tokenizer: Of the model.
        columns: One column of texts, or two of pairs.
        max_length: Longer texts are cut to this number of tokens.

    Returns:
        What the tokenizer gives, `length` (tokens of each row, special tokens included) and `truncated` (whether it
        was cut).
    """
    texts = [rows[column] for column in columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    if tokenizer.is_fast:
        truncated = [bool(encoding.overflowing) for encoding in encoded.encodings]
    else:  # tokenizers in Python do not say which texts they cut
        full = [length == max_length for length in lengths]
        longest = [[t for t, cut in zip(text, full, strict=True) if cut] for text in texts]
        whole = iter(tokenizer(*longest)["input_ids"] if any(full) else [])  # they refuse an empty list
        truncated = [cut and len(next(whole)) > max_length for cut in full]
    return {**encoded, "length": lengths, "truncated": truncated}
