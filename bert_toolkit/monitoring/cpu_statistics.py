"""Rows of tensors on a CPU: large ones in chunks that stay in the cache, where norms of order 0 and infinity are slow.

See `tensor_statistics` for what rows are. Numbers are computed in fp32 where that keeps their digits.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

# 512 KiB of fp32 for each thread: a chunk stays in a core's second-level cache while all statistics read it.
_CHUNK = 2**17
# Chunks of all threads together. Sums of ones are exact in fp32 up to four times as many.
_LARGEST_CHUNK = 2**22
# Tensors up to this size are computed together, for they cost calls, not memory.
_SMALL = 2**14
# Runnable threads per core, over the last minute, from which on the machine counts as busy.
_BUSY = 1.25
# Squares of magnitudes outside this range overflow or lose digits in fp32; such chunks are computed in float64.
_SMALLEST, _LARGEST = 1e-15, 1e15
# A variance of this share of the mean square or more keeps its digits when one is taken from the other in fp32. That
# of |x| is 0.36 for Gaussian values and more for gradients, whose tails are heavier.
_ENOUGH_DIGITS = 0.3


def cpu_absolute_rows(values: list[Tensor]) -> Tensor:
    """Return the rows of |x|: (tensors, 5), float64.

    Args:
        values: Flat values of each tensor.
    """
    return _cpu_rows(_small_absolute_rows, _large_absolute_row, values)


def cpu_update_rows(after: list[Tensor], before: list[Tensor]) -> Tensor:
    """Return the rows of an update: (tensors, 4), float64.

    Args:
        after: Flat values of each tensor after the step.
        before: The same values before the step.
    """
    return _cpu_rows(_small_update_rows, _large_update_row, after, before)


def cpu_norms(values: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor: (tensors), float64.

    Args:
        values: Flat values of each tensor.
    """
    return _cpu_rows(_small_norm_rows, _large_norm_row, values)[:, 0]


def positions_by(keys: Sequence) -> dict[Any, list[int]]:
    """Return where each key stands.

    Args:
        keys: Anything that can be a key of a dict.
    """
    positions: dict[Any, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    return positions


class _Scratch:
    """Two reusable chunks per precision, alive only while one sampled step is computed."""

    def __init__(self) -> None:
        self.size = min(_CHUNK * torch.get_num_threads(), _LARGEST_CHUNK)
        self._buffers: dict[torch.dtype, Tensor] = {}

    def __call__(self, tensor: Tensor, exact: bool = False) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if exact or tensor.dtype == torch.float64 else torch.float32
        if dtype not in self._buffers:
            self._buffers[dtype] = torch.empty(2, self.size, dtype=dtype)
        first, second = self._buffers[dtype][:, : tensor.numel()]
        return first, second


def _cpu_rows(small: Callable[..., Tensor], large: Callable[..., Sequence[float]], *columns: list[Tensor]) -> Tensor:
    """Rows of tensors: small ones of one size stacked as float64 of shape (tensors, size), large ones one by one."""
    with threads_that_run():
        return _computed_rows(small, large, columns)


@contextmanager
def threads_that_run() -> Iterator[None]:
    """Run one thread inside while other work holds the cores, then as many as before.

    Each operation on a chunk ends when the slowest thread has come to run, so where they wait for a core, several take
    a multiple of the time of one.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not _is_busy():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_busy() -> bool:
    """Whether clearly more threads want to run than the machine has cores; its load counts this process too."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > _BUSY * (os.cpu_count() or 1)


def _computed_rows(
    small: Callable[..., Tensor], large: Callable[..., Sequence[float]], columns: Sequence[list[Tensor]]
) -> Tensor:
    scratch = _Scratch()
    sizes = [(v.numel(), v.dtype) if v.numel() <= _SMALL else position for position, v in enumerate(columns[0])]
    order, rows = [], []
    for size, positions in positions_by(sizes).items():
        order += positions
        if isinstance(size, int):
            rows.append(torch.tensor([large(*(column[size] for column in columns), scratch)], dtype=torch.float64))
        else:
            rows.append(small(*(torch.stack([column[p] for p in positions]).double() for column in columns)))
    result = torch.empty(len(order), rows[0].shape[1], dtype=torch.float64)
    result[order] = torch.cat(rows)
    return result


def _bounds(magnitude: Tensor) -> tuple[float, float]:
    """Smallest and largest of values >= 0, whose bits are ordered as integers; a NaN is then above infinity.

    Comparing integers takes a third of the time, for it need not look for NaN.
    """
    low, high = torch.aminmax(magnitude.view(torch.int64 if magnitude.dtype == torch.float64 else torch.int32))
    return float(low.view(magnitude.dtype)), float(high.view(magnitude.dtype))


def _count_nonzero(magnitude: Tensor, smallest: float, other: Tensor) -> int:
    if smallest > 0.0:
        return magnitude.numel()
    if magnitude.dtype == torch.float64:  # may hold NaN, which has no sign
        return int(torch.count_nonzero(magnitude))
    return int(torch.sign(magnitude, out=other).sum())  # exact, and faster than count_nonzero


def _small_norm_rows(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=1, keepdim=True)


def _large_norm_row(values: Tensor, scratch: _Scratch) -> tuple[float]:
    values = values if values.itemsize > 2 else values.float()
    # dot() reads memory once and writes nothing; it is right to 1e-4, where all values are equal.
    norm = math.sqrt(sum(float(torch.dot(chunk, chunk)) for chunk in values.split(scratch.size)))
    if not _SMALLEST < norm < _LARGEST:  # squares left fp32's range, or there is nothing, or NaN
        return (float(torch.linalg.vector_norm(values, dtype=torch.float64)),)
    return (norm,)


def _small_absolute_rows(values: Tensor) -> Tensor:
    count, size = values.shape
    if size == 0:
        return values.new_zeros(count, 5)
    values.abs_()
    total, largest, nonzero = values.sum(1), values.amax(1), torch.count_nonzero(values, dim=1)
    squares = values.sub_(total[:, None] / size).square_().sum(1)
    return torch.stack([torch.full_like(total, size), total, squares, largest, nonzero], dim=1)


def _large_absolute_row(values: Tensor, scratch: _Scratch) -> tuple[float, ...]:
    count, mean, squares, largest, nonzero = 0, 0.0, 0.0, 0.0, 0
    for chunk in values.split(scratch.size):
        row = _absolute_chunk(chunk, *scratch(chunk)) or _absolute_chunk(chunk, *scratch(chunk, exact=True))
        assert row is not None
        chunk_mean, chunk_squares, chunk_largest, chunk_nonzero = row
        size = chunk.numel()
        difference = chunk_mean - mean
        mean += difference * size / (count + size)
        squares += chunk_squares + difference * difference * count * size / (count + size)
        count += size
        nonzero += chunk_nonzero
        largest = chunk_largest if math.isnan(chunk_largest) or chunk_largest > largest else largest
    return float(count), mean * count, squares, largest, float(nonzero)


def _absolute_chunk(chunk: Tensor, magnitude: Tensor, other: Tensor) -> tuple[float, float, float, int] | None:
    """Mean, centered squares, maximum and non-zero count of |chunk|; None where fp32 cannot hold the squares.

    The squares are those around zero less those of the mean. Where too few digits would be left, they are summed
    around the mean.
    """
    size = chunk.numel()
    if chunk.dtype == magnitude.dtype:
        torch.abs(chunk, out=magnitude)
    else:
        magnitude.copy_(chunk).abs_()
    low, high = _bounds(magnitude)
    if high == 0.0:
        return 0.0, 0.0, 0.0, 0
    exact = magnitude.dtype == torch.float64
    if not exact and not _SMALLEST < high < _LARGEST:
        return None
    nonzero = _count_nonzero(magnitude, low, other)
    mean = float(magnitude.sum()) / size
    around_zero = float(torch.mul(magnitude, magnitude, out=other).sum())  # sum() is pairwise, dot() is not
    squares = around_zero - size * mean * mean
    if not squares >= _ENOUGH_DIGITS * around_zero and math.isfinite(around_zero):
        center = mean if exact else float(np.float32(mean))
        magnitude.sub_(center)
        offset = float(magnitude.sum()) / size
        squares = float(magnitude.square_().sum()) - size * offset * offset
        mean = center + offset
    return mean, max(squares, 0.0) if squares == squares else squares, high, nonzero


def _small_update_rows(after: Tensor, before: Tensor) -> Tensor:
    moved = after - before
    changed, update, parameter = torch.count_nonzero(moved, dim=1), moved.square_().sum(1), before.square_().sum(1)
    return torch.stack([torch.full_like(update, after.shape[1]), changed, update, parameter], dim=1)


def _large_update_row(after: Tensor, before: Tensor, scratch: _Scratch) -> tuple[float, ...]:
    changed, update, parameter = 0.0, 0.0, 0.0
    for new, old in zip(after.split(scratch.size), before.split(scratch.size), strict=True):
        row = _update_chunk(new, old, *scratch(new)) or _update_chunk(new, old, *scratch(new, exact=True))
        assert row is not None
        changed, update, parameter = changed + row[0], update + row[1], parameter + row[2]
    return float(after.numel()), changed, update, parameter


def _update_chunk(new: Tensor, old: Tensor, difference: Tensor, other: Tensor) -> tuple[float, float, float] | None:
    """Changed count, squares of new - old and of old; None where fp32 cannot hold the squares."""
    if old.dtype == difference.dtype:
        reference = old
        torch.sub(new, old, out=difference)
    else:
        reference = other.copy_(old)
        torch.sub(difference.copy_(new), reference, out=difference)
    # The first step of Adam moves all elements by one length: sum() is pairwise, dot() adds up their rounding.
    parameter = float(torch.mul(reference, reference, out=other).sum())
    smallest, _ = _bounds(difference.abs_())
    changed = float(_count_nonzero(difference, smallest, other))
    update = float(difference.square_().sum())
    if difference.dtype == torch.float64:
        return changed, update, parameter
    low, high = _SMALLEST**2, _LARGEST**2
    if not (low < update < high or changed == 0.0) or not (low < parameter < high or parameter == 0.0):
        return None
    return changed, update, parameter
