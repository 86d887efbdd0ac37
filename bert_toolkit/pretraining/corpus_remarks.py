"""What pre-training leaves unused of a corpus, and why."""

import numpy as np

from bert_toolkit.pretraining.segments import SPECIAL_TOKENS
from bert_toolkit.pretraining.tokenized_documents import TokenizedDocuments

REMARKABLE = 0.05
"""Fraction of the tokens from which on cut and unknown ones are worth a remark."""
_BLOCK = 1 << 20  # sentences that are looked at together, so that memory does not grow with the corpus


def corpus_remarks(documents: TokenizedDocuments, max_length: int, random_next: bool) -> list[str]:
    """Say what sentence pairs cannot use.

    Args:
        documents: The corpus.
        max_length: Longest pair in tokens, special tokens included.
        random_next: Some pairs have a random B.

    Returns:
        Sentences for the user: on documents and sentences without a token, documents of one sentence (where they serve
        as random B only), sentences longer than a pair, and text that the tokenizer does not know. Empty if all is
        well.
    """
    losses = documents.losses
    n_documents, n_sentences, n_tokens = len(documents), len(documents.sentence_starts) - 1, len(documents.tokens)
    remarks = []
    if losses.empty_sentences or losses.empty_documents:
        remarks.append(
            f"The tokenizer makes no token of {_count(losses.empty_sentences, 'sentence')} and of "
            f"{_count(losses.empty_documents, 'document')}: they are left out."
        )
    single = int(np.count_nonzero(np.diff(documents.document_starts) == 1))
    if single and random_next:
        remarks.append(
            f"Documents of one sentence serve as random B only: {single:,} of {n_documents:,} documents, "
            f"{single / n_sentences:.1%} of all sentences. If they should have more, check how sentences are split."
        )
    too_long, cut = _excess(documents.sentence_starts, max_length - SPECIAL_TOKENS)
    if cut >= REMARKABLE * n_tokens:
        remarks.append(
            f"Sentences longer than a pair of {max_length} tokens are cut: {too_long:,} of {n_sentences:,}, with at "
            f"least {cut / n_tokens:.1%} of all tokens in every epoch. Check how sentences are split, or take longer "
            "pairs."
        )
    if losses.unknown_tokens >= REMARKABLE * n_tokens:
        remarks.append(
            f"The tokenizer does not know the text of {losses.unknown_tokens / n_tokens:.1%} of the tokens: take a "
            "tokenizer of this language."
        )
    return remarks


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _excess(sentence_starts: np.ndarray, longest: int) -> tuple[int, int]:
    """Sentences that have more tokens than `longest`, and by how many tokens in all."""
    too_long = cut = 0
    for i in range(0, len(sentence_starts) - 1, _BLOCK):
        excess = np.diff(sentence_starts[i : i + _BLOCK + 1]) - longest
        too_long += int(np.count_nonzero(excess > 0))
        cut += int(excess[excess > 0].sum())
    return too_long, cut
