"""Masks by counting on more than a million tokens, and by properties on any shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bert_toolkit.pretraining.keyed_random import random_bits, stream_key
from bert_toolkit.pretraining.masking import choose_tokens, choose_words, replace_tokens

# Two-sided confidence of every counted frequency: a right implementation fails once in a million runs (and as the
# random numbers are fixed, a test that passes always passes).
CONFIDENCE = 1 - 1e-6
MASK = 4
REPLACEMENTS = np.arange(10, 1010)


def keys(n, seed=0):
    return random_bits(stream_key(0, seed, 0), np.arange(n))


def interval(n, p):
    """Counts that a binomial(n, p) variable leaves with probability 1e-6."""
    return stats.binom.interval(CONFIDENCE, n, p)


@pytest.fixture(scope="module")
def million():
    """10,000 sequences of up to 128 tokens, 1.1 million of them candidates."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(96, 129, 10_000)
    candidates = np.arange(128) < lengths[:, None]
    candidates[:, 0] = False
    ids = generator.integers(10, 1010, (10_000, 128))
    assert candidates.sum() > 1_000_000
    return ids, candidates


def test_number_of_targets_is_exact(million):
    _, candidates = million
    targets = choose_tokens(candidates, keys(len(candidates)), 0.15)
    expected = [max(1, round(0.15 * n)) for n in candidates.sum(1).tolist()]
    assert targets.sum(1).tolist() == expected
    assert not (targets & ~candidates).any()


def test_every_position_is_equally_likely(million):
    _, candidates = million
    targets = choose_tokens(candidates, keys(len(candidates)), 0.15)
    shares = np.rint(0.15 * candidates.sum(1)) / candidates.sum(1)
    for position in range(128):
        here = candidates[:, position]
        if not here.any():
            continue
        mean, variance = shares[here].sum(), (shares * (1 - shares))[here].sum()
        deviation = abs(targets[:, position].sum() - mean) / np.sqrt(variance)
        assert deviation < stats.norm.ppf(1 - (1 - CONFIDENCE) / 2)


def test_neighbors_are_chosen_independently(million):
    _, candidates = million
    full = candidates[candidates.sum(1) == 127]
    targets = choose_tokens(full, keys(len(full)), 0.15)
    k, n = 19, 127  # round(0.15 * 127) of 127 without replacement
    both = (targets[:, 1:-1] & targets[:, 2:]).sum()
    trials = len(full) * 126
    assert k == targets[0].sum()
    low, high = interval(trials, k * (k - 1) / (n * (n - 1)))
    assert low <= both <= high


@pytest.mark.parametrize(("mask_share", "random_share"), [(0.8, 0.1), (0.5, 0.5), (1.0, 0.0), (0.0, 0.0)])
def test_80_10_10(million, mask_share, random_share):
    ids, candidates = million
    targets = candidates  # every candidate, so that more than a million are counted
    masked = replace_tokens(ids, targets, keys(len(ids)), MASK, REPLACEMENTS, mask_share, random_share)
    n = int(targets.sum())
    became_mask = int((masked == MASK)[targets].sum())
    kept = int((masked == ids)[targets].sum())
    low, high = interval(n, mask_share)
    assert low <= became_mask <= high
    # a random word is the old one by chance once in a thousand
    low, high = interval(n, 1 - mask_share - random_share + random_share / len(REPLACEMENTS))
    assert low <= kept <= high
    assert (masked == ids)[~targets].all()


def test_random_words_are_uniform_over_the_allowed_ones(million):
    ids, candidates = million
    masked = replace_tokens(ids, candidates, keys(len(ids)), MASK, REPLACEMENTS, 0.0, 1.0)
    counts = np.bincount(masked[candidates], minlength=1010)
    assert counts[:10].sum() == 0
    expected = candidates.sum() / 1000
    chi2 = ((counts[10:] - expected) ** 2 / expected).sum()
    assert stats.chi2.ppf(1 - CONFIDENCE, 999) < chi2 < stats.chi2.ppf(CONFIDENCE, 999)


def test_action_is_independent_of_the_choice_and_of_the_neighbor(million):
    ids, candidates = million
    masked = replace_tokens(ids, candidates, keys(len(ids)), MASK, REPLACEMENTS, 0.5, 0.0) == MASK
    chosen = choose_tokens(candidates, keys(len(ids)), 0.15)
    for other in (chosen[candidates], np.roll(masked, 1, axis=1)[candidates]):
        table = np.bincount(masked[candidates] * 2 + other, minlength=4).reshape(2, 2)
        assert stats.chi2_contingency(table).pvalue > 1 - CONFIDENCE


@pytest.fixture(scope="module")
def words():
    """Like `million`, with words of one to five pieces."""
    generator = np.random.default_rng(2)
    lengths = generator.integers(96, 129, 10_000)
    candidates = np.arange(128) < lengths[:, None]
    candidates[:, 0] = False
    return candidates, generator.random((10_000, 128)) < 0.3


def word_numbers(candidates, continues):
    begins = candidates & ~(continues & np.pad(candidates, ((0, 0), (1, 0)))[:, :-1])
    return np.where(candidates, begins.cumsum(1), 0)


def test_whole_words_keep_words_whole_and_the_count(words):
    candidates, continues = words
    targets = choose_words(candidates, continues, keys(len(candidates)), 0.15)
    assert not (targets & ~candidates).any()
    numbers = word_numbers(candidates, continues)
    inside = (numbers[:, 1:] == numbers[:, :-1]) & candidates[:, 1:] & candidates[:, :-1]
    assert (targets[:, 1:] == targets[:, :-1])[inside].all()
    expected = np.maximum(1, np.rint(0.15 * candidates.sum(1)))
    assert (targets.sum(1) == expected).mean() > 0.999


def test_whole_words_are_the_greedy_choice_in_random_order(words):
    """Against a plain loop over words: take each that fits, in the order of the same random numbers."""
    candidates, continues = words[0][:300], words[1][:300]
    stream = keys(300)
    targets = choose_words(candidates, continues, stream, 0.15)
    numbers = word_numbers(candidates, continues)
    from bert_toolkit.pretraining.masking import _priorities

    for row in range(300):
        places: dict[int, list[int]] = {}
        for place in np.flatnonzero(candidates[row]):
            places.setdefault(int(numbers[row, place]), []).append(int(place))
        begins = np.zeros((1, 128), dtype=bool)
        begins[0, [word[0] for word in places.values()]] = True
        priority = _priorities(begins, stream[row : row + 1])[0]
        left, expected = max(1, round(0.15 * candidates[row].sum())), set()
        for word in sorted(places.values(), key=lambda word: priority[word[0]]):
            if len(word) <= left:
                expected |= set(word)
                left -= len(word)
        assert set(np.flatnonzero(targets[row])) == expected


def test_whole_word_without_room_takes_the_shortest():
    candidates = np.ones((1, 5), dtype=bool)
    continues = np.array([[False, True, True, False, True]])
    targets = choose_words(candidates, continues, keys(1), 0.15)
    assert targets.tolist() == [[False, False, False, True, True]]


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 512),
    rows=st.integers(1, 4),
    share=st.floats(0.01, 0.99),
    density=st.floats(0, 1),
    pieces=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_any_shape(length, rows, share, density, pieces, seed):
    generator = np.random.default_rng(seed)
    candidates = generator.random((rows, length)) < density
    continues = generator.random((rows, length)) < pieces
    stream = keys(rows, seed)
    tokens = choose_tokens(candidates, stream, share)
    available = candidates.sum(1)
    counts = np.minimum(np.maximum(1, np.rint(share * available)), available)
    assert not (tokens & ~candidates).any()
    assert (tokens.sum(1) == counts).all()
    whole = choose_words(candidates, continues, stream, share)
    assert not (whole & ~candidates).any()
    assert (whole.any(1) == (available > 0)).all()
    numbers = word_numbers(candidates, continues)
    for row in range(rows):
        for number in set(numbers[row][candidates[row]].tolist()):
            assert len(set(whole[row][(numbers[row] == number) & candidates[row]].tolist())) == 1
        if whole[row].sum() > counts[row]:  # only where no word fits
            sizes = np.bincount(numbers[row][candidates[row]])
            assert sizes[sizes > 0].min() > counts[row]
            assert whole[row].sum() == sizes[sizes > 0].min()


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 512), n_words=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_tiny_vocabulary(length, n_words, seed):
    allowed = np.arange(100, 100 + n_words)
    ids = np.random.default_rng(seed).choice(allowed, (2, length))
    everything = np.ones_like(ids, dtype=bool)
    masked = replace_tokens(ids, everything, keys(2, seed), MASK, allowed, 0.8, 0.1)
    assert set(np.unique(masked)) <= {MASK, *allowed.tolist()}


def test_positions_do_not_depend_on_padding_or_on_the_batch():
    candidates = np.ones((3, 40), dtype=bool)
    ids = np.full((3, 40), 500)
    stream = keys(3)
    alone = choose_tokens(candidates[1:2], stream[1:2], 0.15)
    padded = choose_tokens(np.pad(candidates, ((0, 0), (0, 24))), stream, 0.15)
    assert (padded[1, :40] == alone[0]).all()
    masked = replace_tokens(ids, choose_tokens(candidates, stream, 0.15), stream, MASK, REPLACEMENTS, 0.8, 0.1)
    masked_alone = replace_tokens(ids[1:2], alone, stream[1:2], MASK, REPLACEMENTS, 0.8, 0.1)
    assert (masked[1] == masked_alone[0]).all()
