"""Random numbers that are a function of their key alone: the same on every worker, rank and restart.

The generator is SplitMix64 (Steele, Lea and Flood, 2014: "Fast splittable pseudorandom number generators") used as a
counter-based hash: number `i` of a stream is the finalizer applied to `key + (i + 1) * GOLDEN_GAMMA`.

Why not `np.random.Philox`, which has a key and a counter as well and is just as independent of the order of calls: it
gives one stream per object, and a batch needs a stream for each of its examples, and single numbers for each of its
scattered sentences. `random_bits` draws them all in one call of numpy, where Philox takes one for each example
(`python benchmarks/collator_throughput.py` times both).
"""

import functools

import numpy as np

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def random_bits(key: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """Draw 64 uniform bits for every pair of key and counter.

    Args:
        key: Stream keys, uint64, any shape that broadcasts with `counter`.
        counter: Position in the stream, integers from 0.

    Returns:
        An array of uint64 in the broadcast shape.
    """
    z = np.atleast_1d(np.asarray(counter, dtype=np.uint64) + np.uint64(1))  # arrays wrap around without a warning
    z = z * GOLDEN_GAMMA + key
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= _MULTIPLIER_1
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= _MULTIPLIER_2
    np.right_shift(z, np.uint64(31), out=shifted)
    z ^= shifted
    return z


@functools.lru_cache(maxsize=1024)
def stream_key(*parts: int) -> np.ndarray:
    """Fold integers such as (purpose, seed, epoch) into the key of a stream.

    Args:
        parts: Integers of any sign; each is taken modulo 2**64.

    Returns:
        An array of uint64 of shape (1,), read-only.
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = random_bits(key, np.array(part % 2**64, dtype=np.uint64))
    key.flags.writeable = False
    return key


def random_below(bits: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Turn 64 random bits into an integer in [0, bound) by Lemire's multiplication, from the upper 32 bits.

    Args:
        bits: Uint64 array of `random_bits`.
        bound: Exclusive upper bound, 1 to 2**32, broadcast against `bits`.

    Returns:
        An array of int64. No value is more than 2**-32 away from probability 1 / bound.
    """
    product = (bits >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64)
    return (product >> np.uint64(32)).astype(np.int64)


def random_fraction(bits: np.ndarray) -> np.ndarray:
    """Turn 64 random bits into a uniform fraction, from the upper 53 bits.

    Args:
        bits: Uint64 array of `random_bits`.

    Returns:
        An array of float64 of the same shape, in [0, 1).
    """
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
