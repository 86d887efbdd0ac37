"""Keyed random numbers against published values of SplitMix64, and by counting."""

import numpy as np
import pytest
from scipy import stats

from bert_toolkit.pretraining.keyed_random import random_below, random_bits, random_fraction, stream_key

# P(chi-square above this quantile) = 1e-6: a right generator fails one test in a million.
CONFIDENCE = 1 - 1e-6


def test_published_splitmix64_sequence():
    # Vigna's splitmix64.c with seed 1234567, as listed by Rosetta Code ("Pseudo-random numbers/Splitmix64")
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert random_bits(np.uint64(1234567), np.arange(5)).tolist() == published


@pytest.mark.parametrize("bound", [2, 3, 10, 1000])
def test_uniform_over_positions_and_over_examples(bound):
    keys = random_bits(stream_key(1, 42, 7), np.arange(2000))
    draws = random_below(random_bits(keys[:, None], np.arange(512)[None, :]), bound)
    for counts in (np.bincount(draws.ravel(), minlength=bound), np.bincount(draws[:, 3], minlength=bound)):
        expected = counts.sum() / bound
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < stats.chi2.ppf(CONFIDENCE, bound - 1)


def test_every_bit_is_fair_and_neighbors_are_independent():
    keys = random_bits(stream_key(1, 0, 0), np.arange(4000))
    bits = random_bits(keys[:, None], np.arange(256)[None, :])
    n = bits.size
    limit = stats.norm.ppf(1 - (1 - CONFIDENCE) / 2) * np.sqrt(n) / 2
    for bit in range(64):
        ones = (bits >> np.uint64(bit)) & np.uint64(1)
        assert abs(int(ones.sum()) - n / 2) < limit
    low = (bits >> np.uint64(60)).astype(np.int64)  # 16 values
    for a, b in ((low[:-1], low[1:]), (low[:, :-1], low[:, 1:])):
        table = np.bincount((a * 16 + b).ravel(), minlength=256).reshape(16, 16)
        assert stats.chi2_contingency(table).pvalue > 1 - CONFIDENCE


def test_keys_of_different_parts_do_not_collide():
    keys = {int(stream_key(*parts)[0]) for parts in np.ndindex(8, 20, 50)}
    assert len(keys) == 8 * 20 * 50
    assert stream_key(1, 2) != stream_key(2, 1)
    assert stream_key(-1) == stream_key(2**64 - 1)


def test_share_and_bound_stay_in_range():
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert random_fraction(extremes).tolist() == [0.0, 1 - 2.0**-53]
    assert random_below(extremes, 7).tolist() == [0, 6]
    assert random_below(extremes, 1).tolist() == [0, 0]
