"""Which sentences segments A and B of a pair are made of, as a pure function of (seed, epoch, sentence).

Everything is vectorized over B sentences, given as numbers in the corpus. A chunk is a stretch of sentences of one
document, about as long as a pair may be; A is its first part, and B the rest or a random stretch of another document.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert_toolkit.pretraining.keyed_random import random_below, random_bits, random_fraction, stream_key
from bert_toolkit.pretraining.tokenized_documents import TokenizedDocuments

SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]; without a B there are two

# purposes, so that no two kinds of decision share a random number; 0 to 4 are those of sentence_pairs.py
_IS_SHORT, _SHORT_TARGET, _SPLIT, _OTHER_START, _TRIM_A, _TRIM_B = range(5, 11)


class Chunks(NamedTuple):
    """Chunks of one document each, in sentences, (B,) int64 each.

    Attributes:
        begin: First sentence of A.
        split: First sentence of B.
        end: The sentence after B.
    """

    begin: np.ndarray
    split: np.ndarray
    end: np.ndarray


class Segments(NamedTuple):
    """Segments after trimming, in tokens, (B,) int64 each.

    Attributes:
        a_begin: First token of A in the corpus.
        a_length: Tokens of A.
        b_begin: First token of B in the corpus.
        b_length: Tokens of B.
    """

    a_begin: np.ndarray
    a_length: np.ndarray
    b_begin: np.ndarray
    b_length: np.ndarray

    @property
    def pair_length(self) -> np.ndarray:
        """The number of tokens of the pair, special tokens included: (B,) int64."""
        return self.a_length + self.b_length + np.where(self.b_length > 0, SPECIAL_TOKENS, SPECIAL_TOKENS - 1)


@dataclass(frozen=True)
class SegmentCutter:
    """A cutter of a corpus into chunks and segments.

    Args:
        documents: The corpus.
        max_length: Longest pair in tokens, special tokens included.
        short_sequence_probability: Fraction of chunks with a shorter target, uniform from 2 tokens to the longest.
        seed: With the epoch and the sentence it decides a chunk.
    """

    documents: TokenizedDocuments
    max_length: int
    short_sequence_probability: float
    seed: int

    def chunks(self, sentence: np.ndarray, epoch: int) -> Chunks:
        """Return the chunk that starts at each sentence.

        Args:
            sentence: (B,) int64.
            epoch: The epoch.

        Returns:
            At least two sentences each, more as long as the target is not reached, none of another document. The last
            sentence of a document takes the one before it along; if it has none, B is empty.
        """
        sentence_starts = self.documents.sentence_starts
        document_begin, document_end = self.documents.bounds_of_document(sentence)
        is_short, short_target, split_bits = random_bits(_keys_of_chunks(self.seed, epoch), sentence)
        # choose how many tokens the chunk shall have: as many as fit into a pair, or fewer
        longest = self.max_length - SPECIAL_TOKENS
        is_short = random_fraction(is_short) < self.short_sequence_probability
        target = np.where(is_short, 2 + random_below(short_target, longest - 1), longest)
        begin = np.maximum(sentence - (sentence + 1 == document_end), document_begin)
        # take sentences until the target is reached
        end = np.searchsorted(sentence_starts, sentence_starts[begin] + target)
        end = np.minimum(np.maximum(end, begin + 2), document_end)
        # A and B meet at a random sentence boundary inside
        split = begin + 1 + random_below(split_bits, np.maximum(end - begin - 1, 1))
        return Chunks(begin, split, end)

    def segments(self, sentence: np.ndarray, random_next: np.ndarray, epoch: int) -> Segments:
        """Return the segments of the pair that is made of the chunk at each sentence.

        Args:
            sentence: (B,) int64.
            random_next: (B,) bool, True where B comes from another document.
            epoch: The epoch.

        Returns:
            Both segments, trimmed so that the pair has at most `max_length` tokens.
        """
        sentence_starts = self.documents.sentence_starts
        begin, split, end = self.chunks(sentence, epoch)
        a_begin, b_begin, b_end = sentence_starts[begin], sentence_starts[split], sentence_starts[end]
        a_length, b_length = b_begin - a_begin, b_end - b_begin
        other_bits, *trim_bits = random_bits(_keys_of_segments(self.seed, epoch), sentence)
        other_begin, other_length = self._random_b(begin, b_length, other_bits)
        b_begin = np.where(random_next, other_begin, b_begin)
        b_length = np.where(random_next, other_length, b_length)
        # The longer side loses tokens until both are equal, then both in turn.
        excess = np.maximum(a_length + b_length + SPECIAL_TOKENS - self.max_length, 0)
        cut_a = np.clip(a_length - b_length, 0, excess)
        cut_b = np.clip(b_length - a_length, 0, excess)
        rest = excess - cut_a - cut_b
        cut_a += rest // 2
        cut_b += rest - rest // 2
        # A side loses them all at its front or all at its back.
        for bits, first_token, cut in zip(trim_bits, (a_begin, b_begin), (cut_a, cut_b), strict=True):
            first_token += np.where(bits & np.uint64(1), cut, 0)
        return Segments(a_begin, a_length - cut_a, b_begin, b_length - cut_b)

    def _random_b(self, sentence: np.ndarray, length: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First token and tokens of a stretch of another document, as near as possible to `length`: (B,) each."""
        document_starts, sentence_starts = self.documents.document_starts, self.documents.sentence_starts
        n_sentences = int(document_starts[-1])
        # Draw a sentence of the other documents: from as many as there are without the own document's, then pass
        # over these, so that nothing is drawn twice.
        own_begin, own_end = self.documents.bounds_of_document(sentence)
        other = random_below(bits, n_sentences - (own_end - own_begin))
        other += np.where(other >= own_begin, own_end - own_begin, 0)
        other = np.minimum(other, n_sentences - 1)  # a corpus of one document has no other, and needs none
        # Take whole sentences, at least one, that come nearest to the length.
        begin = sentence_starts[other]
        wanted_end = begin + length
        above = np.searchsorted(sentence_starts, wanted_end)
        above = np.minimum(np.maximum(above, other + 1), self.documents.bounds_of_document(other)[1])
        below = np.maximum(above - 1, other + 1)
        nearer_below = np.abs(sentence_starts[below] - wanted_end) < np.abs(sentence_starts[above] - wanted_end)
        return begin, sentence_starts[np.where(nearer_below, below, above)] - begin


@functools.lru_cache(maxsize=16)
def _keys_of_chunks(seed: int, epoch: int) -> np.ndarray:
    """Keys of the three decisions on a chunk: (3, 1) uint64."""
    return np.array([stream_key(purpose, seed, epoch) for purpose in (_IS_SHORT, _SHORT_TARGET, _SPLIT)])


@functools.lru_cache(maxsize=16)
def _keys_of_segments(seed: int, epoch: int) -> np.ndarray:
    """Keys of the three decisions on the segments of a chunk: (3, 1) uint64."""
    return np.array([stream_key(purpose, seed, epoch) for purpose in (_OTHER_START, _TRIM_A, _TRIM_B)])
