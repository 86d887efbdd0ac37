"""Choice and replacement of the tokens that masked language modeling predicts, vectorized over the batch.

Devlin et al. (2019), section 3.1: 15 % of the tokens are predicted; of these 80 % become [MASK], 10 % a random token,
and 10 % stay.

Shapes: B sequences, T tokens.
"""

import numpy as np

from bert_toolkit.pretraining.keyed_random import random_below, random_bits, random_fraction

# A priority is a random number whose lowest 16 bits are a position, so that no two of a sequence are equal.
_POSITION_BITS = np.uint64(0xFFFF)
_LAST = np.uint64(2**64 - 1)
# purposes, so that no two kinds of decision share a random number
_CHOICE, _ACTION, _WORD = range(3)


def choose_tokens(candidates: np.ndarray, keys: np.ndarray, probability: float) -> np.ndarray:
    """Choose `max(1, round(probability * n))` of the n candidates of each sequence, all subsets equally likely.

    Args:
        candidates: (batch_size, sequence_length) bool, tokens that may be predicted.
        keys: (batch_size,) uint64, one random stream per sequence.
        probability: Fraction to choose, in (0, 1).

    Returns:
        (batch_size, sequence_length) bool, a subset of `candidates`; empty where a sequence has no candidate.
    """
    if not candidates.shape[1]:
        return candidates.copy()
    # rank the candidates at random, find the rank of the last one to choose, and take all up to it
    priority = _priorities(candidates, keys)
    last_rank = np.maximum(_target_counts(candidates, probability) - 1, 0)
    threshold = np.take_along_axis(np.sort(priority, axis=1), last_rank[:, None], axis=1)
    return candidates & (priority <= threshold)


def choose_words(
    candidates: np.ndarray, continues_word: np.ndarray, keys: np.ndarray, probability: float
) -> np.ndarray:
    """Choose whole words in random order, as many as fit into the number of tokens that `choose_tokens` would choose.

    A word that is longer than what is left is passed over. If no word of a sequence fits at all, its shortest is
    chosen (the first in random order), so that every sequence with a candidate has a target.

    Args:
        candidates: (batch_size, sequence_length) bool, tokens that may be predicted.
        continues_word: (batch_size, sequence_length) bool, True for every piece of a word but its first.
        keys: (batch_size,) uint64, one random stream per sequence.
        probability: Fraction of tokens to choose, in (0, 1).

    Returns:
        (batch_size, sequence_length) bool, a subset of `candidates`.
    """
    width = candidates.shape[1]
    if not width:
        return candidates.copy()
    columns = np.arange(width)
    # Find where words begin. A piece after a token that may not be chosen begins a word of its own.
    begins_word = candidates.copy()
    begins_word[:, 1:] &= ~(continues_word[:, 1:] & candidates[:, :-1])
    # Put the tokens into the random order of their words: every token gets the priority of its word's first token,
    # with its own position in the lowest bits, so that sorting keeps the pieces of a word together and in order.
    word_begin = np.maximum.accumulate(np.where(begins_word, columns, 0), axis=1)
    priority = np.take_along_axis(_priorities(begins_word, keys), word_begin, axis=1)
    priority &= ~_POSITION_BITS
    priority |= columns.astype(np.uint64)
    priority[~candidates] = _LAST
    priority.sort(axis=1)
    order = (priority & _POSITION_BITS).astype(np.int64)
    # Mark the places of this order at which a word begins; the place after the last word counts as well.
    available = candidates.sum(axis=1)
    begins = np.ones((len(candidates), width + 1), dtype=bool)
    begins[:, 1:width] = (priority[:, 1:] ^ priority[:, :-1]) > _POSITION_BITS
    begins[:, 1:] |= columns + 1 == available[:, None]
    # Choose all the words that end within the number to choose.
    left = _target_counts(candidates, probability)
    places = np.arange(width + 1)
    taken = np.where(begins & (places <= left[:, None]), places, 0).max(axis=1)
    chosen = columns < taken[:, None]
    left -= taken
    # Then choose, one at a time, the next word that fits into what is left. `rows` are those with something left.
    rows = np.flatnonzero(left > 0)
    sizes = _word_sizes(begins[rows], available[rows])
    while len(rows):
        fits = (sizes > 0) & (sizes <= left[rows, None]) & (columns >= taken[rows, None])
        found = fits.any(axis=1)
        rows, sizes, first = rows[found], sizes[found], fits[found].argmax(axis=1)
        size = np.take_along_axis(sizes, first[:, None], axis=1)[:, 0]
        chosen[rows] |= _stretch(columns, first, size)
        left[rows] -= size
        taken[rows] = first + size
        unfilled = left[rows] > 0
        rows, sizes = rows[unfilled], sizes[unfilled]
    # Where no word fits at all, choose the shortest one.
    nothing = np.flatnonzero(~chosen.any(axis=1) & (available > 0))
    if len(nothing):
        sizes = _word_sizes(begins[nothing], available[nothing])
        first = np.where(sizes > 0, sizes, width + 1).argmin(axis=1)
        size = np.take_along_axis(sizes, first[:, None], axis=1)[:, 0]
        chosen[nothing] = _stretch(columns, first, size)
    # Turn the chosen places of the order back into positions of the sequence.
    targets = np.zeros_like(candidates)
    row_of_chosen, place_of_chosen = np.nonzero(chosen)
    targets[row_of_chosen, order[row_of_chosen, place_of_chosen]] = True
    return targets


def replace_tokens(
    input_ids: np.ndarray,
    targets: np.ndarray,
    keys: np.ndarray,
    mask_token_id: int,
    replacement_ids: np.ndarray,
    mask_probability: float,
    random_probability: float,
) -> np.ndarray:
    """Replace targets by [MASK], by a random token, or leave them, independently for each.

    Args:
        input_ids: (batch_size, sequence_length) int64.
        targets: (batch_size, sequence_length) bool, tokens to predict.
        keys: (batch_size,) uint64, one random stream per sequence.
        mask_token_id: Id of [MASK].
        replacement_ids: Ids that a random replacement is drawn from, uniformly.
        mask_probability: Fraction of the targets that become [MASK].
        random_probability: Fraction of the targets that become a random token.

    Returns:
        (batch_size, sequence_length) int64, a new array.
    """
    rows, columns = np.nonzero(targets)
    # draw what happens to each target, and a word for each, whether it is used or not
    action = random_fraction(_position_bits(keys[rows], columns, _ACTION))
    word = random_below(_position_bits(keys[rows], columns, _WORD), len(replacement_ids))
    # below the first threshold [MASK], below the second the word, above both the token stays
    changes = action < mask_probability + random_probability
    replaced = np.where(changes, replacement_ids[word], input_ids[rows, columns])
    replaced[action < mask_probability] = mask_token_id
    masked = input_ids.copy()
    masked[rows, columns] = replaced
    return masked


def _position_bits(keys: np.ndarray, positions: np.ndarray, purpose: int) -> np.ndarray:
    """64 random bits of each position for one purpose; `keys` and `positions` broadcast."""
    return random_bits(keys, positions.astype(np.uint64) * np.uint64(3) + np.uint64(purpose))


def _target_counts(candidates: np.ndarray, probability: float) -> np.ndarray:
    """max(1, round(probability * n)) per sequence, 0 where there is no candidate: (B,) int64."""
    available = candidates.sum(axis=1)
    return np.minimum(np.maximum(np.rint(probability * available).astype(np.int64), 1), available)


def _priorities(candidates: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Random order of the candidates, (B, T) uint64; no two of a sequence are equal, and the others come last."""
    positions = np.arange(candidates.shape[1], dtype=np.uint64)
    priority = _position_bits(keys[:, None], positions[None, :], _CHOICE)
    priority &= ~_POSITION_BITS
    priority |= positions & _POSITION_BITS
    priority[~candidates] = _LAST
    return priority


def _word_sizes(begins: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Tokens of the word that begins at each place, 0 where none begins: (B, T) from (B, T + 1) begins."""
    places = np.arange(begins.shape[1])
    following = np.minimum.accumulate(np.where(begins, places, len(places))[:, ::-1], axis=1)[:, ::-1]
    is_word = begins[:, :-1] & (places[:-1] < available[:, None])
    return np.where(is_word, following[:, 1:] - places[:-1], 0)


def _stretch(columns: np.ndarray, first: np.ndarray, size: np.ndarray) -> np.ndarray:
    """True for `size` columns from `first` on, in every row: (B, T) bool."""
    return (columns >= first[:, None]) & (columns < (first + size)[:, None])
