"""Statistics of many tensors at once: one pass over their memory, one transfer to the host, one collective if sharded.

Every function turns a list of tensors into *rows*, one per tensor. A row holds sums, never quotients, so rows of
the shards of one tensor can be combined exactly. Rows of absolute values are
(count, sum, squares, max, nonzero) with `squares` = sum((|x| - mean)^2), centred so that the standard deviation of
nearly constant values does not cancel away. Rows of an update are (count, changed, update squares, parameter squares).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

# 512 KiB of fp32 for each thread: a chunk stays in a core's second-level cache while all statistics read it.
_CHUNK = 2**17
# Chunks of all threads together. Sums of ones are exact in fp32 up to four times as many.
_LARGEST_CHUNK = 2**22
# Tensors up to this size are computed together, for they cost calls, not memory.
_SMALL = 2**14
# Squares of magnitudes outside this range overflow or lose digits in fp32; such chunks are computed in float64.
_SMALLEST, _LARGEST = 1e-15, 1e15
# A variance of this share of the mean square or more keeps its digits when one is taken from the other in fp32. That
# of |x| is 0.36 for Gaussian values and more for gradients, whose tails are heavier.
_ENOUGH_DIGITS = 0.3


class AbsoluteStatistics(NamedTuple):
    """Statistics of |x| for n tensors, each array of shape (n,) and float64.

    Args:
        elements: number of elements.
        mean: mean of |x|.
        max: largest |x|.
        std: population standard deviation of |x|.
        zero_share: share of elements that are exactly zero.
    """

    elements: np.ndarray
    mean: np.ndarray
    max: np.ndarray
    std: np.ndarray
    zero_share: np.ndarray


class UpdateStatistics(NamedTuple):
    """How far n tensors moved, each array of shape (n,) and float64.

    Args:
        update_norm: ||after - before||.
        parameter_norm: ||before||.
        changed_share: share of elements that changed.
    """

    update_norm: np.ndarray
    parameter_norm: np.ndarray
    changed_share: np.ndarray


class HostCopy:
    """A tensor on its way to the host: the copy starts at once, `read()` waits for it.

    Args:
        tensor: what to copy; may be on any device.
    """

    def __init__(self, tensor: Tensor):
        self._event = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.cpu()

    def read(self) -> np.ndarray:
        """Return the values as float64."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.double().numpy()


class PendingRows:
    """Rows on their way to the host, so that other work of the step can be queued behind them.

    Args:
        groups: (positions of the tensors in the caller's list, rows of shape (ranks, tensors, columns)) per
            device and mesh.
        size: number of tensors in the caller's list.
    """

    def __init__(self, groups: list[tuple[list[int], Tensor]], size: int):
        self._size = size
        self._groups = [(positions, HostCopy(rows)) for positions, rows in groups]

    def read(self) -> np.ndarray:
        """Return float64 rows of shape (ranks, tensors, columns); zeros where a rank holds nothing of a tensor."""
        arrays = [(positions, copy.read()) for positions, copy in self._groups]
        ranks = max(rows.shape[0] for _, rows in arrays)
        result = np.zeros((ranks, self._size, arrays[0][1].shape[2]))
        for positions, rows in arrays:
            result[: rows.shape[0], positions] = rows
        return result


def absolute_rows(
    tensors: Sequence[Tensor], values: Sequence[Tensor], extra: Sequence[Tensor] | None = None
) -> PendingRows:
    """Collect the rows of |x|; see `absolute_statistics`.

    Args:
        tensors: tell where the values belong (plain or sharded).
        values: flat values that this rank holds of each, possibly none.
        extra: one number per tensor that this rank found before, to travel as a last column.
    """
    zeros = [
        tensor.numel() - len(held) if tensor.is_sparse else 0 for tensor, held in zip(tensors, values, strict=True)
    ]

    def compute(values: list[Tensor], zeros: list[int], *extra: list[Tensor]) -> Tensor:
        rows = local_absolute_rows(values)
        if any(zeros):
            rows = _with_zeros(rows, zeros)
        columns = [torch.stack(numbers).to(rows)[:, None] for numbers in extra]
        return torch.cat([rows, *columns], dim=1)

    return _collect(tensors, compute, values, zeros, *([] if extra is None else [extra]))


def local_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Norms of the values that this rank holds, left on the device; not finite where a value is not."""
    values = [local_tensor(tensor) for tensor in tensors]
    norms: list[Tensor] = [torch.empty(0)] * len(values)
    for positions in _positions_by([v.device for v in values]).values():
        found = _norms([values[p] for p in positions])
        for position, norm in zip(positions, found, strict=True):
            norms[position] = norm
    return norms


def update_rows(tensors: Sequence[Tensor], after: Sequence[Tensor], before: Sequence[Tensor]) -> PendingRows:
    """Collect the rows of an update; see `update_statistics`. On an accelerator it overwrites `before`.

    Args:
        tensors: tell where the values belong (plain or sharded).
        after: flat values that this rank holds of each, all of them or a sample, after the step.
        before: the same values before the step.
    """
    return _collect(tensors, local_update_rows, after, before)


def absolute_statistics(rows: np.ndarray) -> AbsoluteStatistics:
    """Combine the rows of all ranks into statistics of the whole tensors.

    Args:
        rows: (ranks, tensors, 5 or more) from `absolute_rows(...).read()`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        counts, sums, squares, largest, nonzero = np.moveaxis(rows[..., :5], -1, 0)
        count = counts.sum(0)
        mean = sums.sum(0) / count
        between = np.where(counts > 0, counts * (sums / counts - mean) ** 2, 0.0)
        variance = (squares + between).sum(0) / count
        return AbsoluteStatistics(
            count, mean, largest.max(0), np.sqrt(variance.clip(min=0.0)), 1.0 - nonzero.sum(0) / count
        )


def update_statistics(rows: np.ndarray) -> UpdateStatistics:
    """Combine the rows of all ranks into the update of the whole tensors.

    Args:
        rows: (ranks, tensors, 4) from `update_rows(...).read()`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        count, changed, update, parameter = np.moveaxis(rows, -1, 0).sum(1)
        return UpdateStatistics(np.sqrt(update), np.sqrt(parameter), changed / count)


def summed(tensor: Tensor) -> Tensor:
    """Return the tensor with the sums taken that tensor parallelism has left to the ranks; every rank must call it.

    Args:
        tensor: a gradient, plain or distributed; others than such sums are returned as they are.
    """
    if not isinstance(tensor, DTensor) or not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the flat values that this rank holds, a view where memory allows it; of a sparse tensor those stored.

    Raises:
        TypeError: if the values are no real numbers.
    """
    if not tensor.is_floating_point():
        raise TypeError(f"a tensor of {tensor.dtype} has no statistics here; they are those of real numbers")
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    if tensor.is_sparse:
        return tensor.coalesce().values().reshape(-1)
    if not tensor.is_contiguous() and torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def _collect(tensors: Sequence[Tensor], compute: Callable[..., Tensor], *columns: Sequence[Any]) -> PendingRows:
    """Group by device and mesh, compute the rows of each group, gather them where values are split over ranks."""
    groups = []
    for (_, mesh, dims), positions in _positions_by([(t.device, *_sharding(t)) for t in tensors]).items():
        rows = compute(*([column[p] for p in positions] for column in columns))[None]
        for dim in dims:
            rows = gathered_rows(rows, mesh.get_group(dim))
        groups.append((positions, rows))
    return PendingRows(groups, len(tensors))


def gathered_rows(rows: Tensor, group: Any = None) -> Tensor:
    """Return the rows of all ranks, (ranks, tensors, columns); one collective.

    Gathering (not reducing) keeps the maximum and the centred squares exact, in one message of fixed size.

    Args:
        rows: of this rank, or of those that were joined with it before: (ranks, tensors, columns).
        group: process group, None for all processes.
    """
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, rows.contiguous(), group=group)
    return torch.cat(parts)


def _positions_by(keys: Sequence) -> dict[Any, list[int]]:
    positions: dict[Any, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    return positions


def _with_zeros(rows: Tensor, zeros: list[int]) -> Tensor:
    """Rows of absolute values as if so many zeros had been among them, which sparse tensors do not store."""
    added = torch.tensor(zeros, dtype=rows.dtype, device=rows.device)
    count, total, squares, largest, nonzero = rows.unbind(1)
    between = torch.where(count > 0, added * total.square() / (count * (count + added)).clamp(min=1), 0.0)
    return torch.stack([count + added, total, squares + between, largest, nonzero], dim=1)


def local_absolute_rows(values: list[Tensor]) -> Tensor:
    """Return the rows of |x| of values on one device, left there: (tensors, 5).

    Args:
        values: flat values of each tensor.
    """
    if values[0].device.type == "cpu":
        return _cpu_rows(_small_absolute_rows, _large_absolute_row, values)
    return _foreach_absolute_rows(values)


def local_update_rows(after: list[Tensor], before: list[Tensor]) -> Tensor:
    """Return the rows of an update of values on one device, left there: (tensors, 4). It may overwrite `before`.

    Args:
        after: flat values of each tensor after the step.
        before: the same values before the step.
    """
    if after[0].device.type == "cpu":
        return _cpu_rows(_small_update_rows, _large_update_row, after, before)
    return _foreach_update_rows(after, before)


def _norms(values: list[Tensor]) -> Sequence[Tensor]:
    if values[0].device.type == "cpu":
        return _cpu_rows(_small_norm_rows, _large_norm_row, values)[:, 0].unbind()
    return _foreach_norms(values, 2).unbind()


def _sharding(tensor: Tensor) -> tuple:
    """The mesh and those of its dimensions over which the values are split; replicated ones hold everything."""
    if not isinstance(tensor, DTensor):
        return None, ()
    if any(placement.is_partial() for placement in tensor.placements):
        raise NotImplementedError("a parameter with a partial placement has no values to observe")
    return tensor.device_mesh, tuple(d for d, p in enumerate(tensor.placements) if p.is_shard())


def _upload(numbers: list[float], like: Tensor) -> Tensor:
    host = torch.tensor(numbers, dtype=like.dtype, pin_memory=like.device.type == "cuda")
    return host.to(like.device, non_blocking=True)


def _wide(tensor: Tensor) -> torch.dtype:
    """Float64 accumulation: rounding then never shows, at no cost where memory is the limit. MPS has none."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


# --- accelerators: batched norms, no wait, no copy of the values -------------------------------------------------


def _foreach_norms(tensors: list[Tensor], order: float) -> Tensor:
    dtype = _wide(tensors[0])
    filled = [t if t.numel() else t.new_zeros(1) for t in tensors]  # the infinity norm refuses empty shards
    norms: list[Tensor | None] = [None] * len(filled)
    for positions in _positions_by([t.dtype for t in filled]).values():
        found = torch._foreach_norm([filled[p] for p in positions], order, dtype=dtype)
        for position, norm in zip(positions, found, strict=True):
            norms[position] = norm
    return torch.stack(norms)  # type: ignore[arg-type]


def _foreach_absolute_rows(tensors: list[Tensor]) -> Tensor:
    total, euclidean, largest, nonzero = (_foreach_norms(tensors, order) for order in (1, 2, math.inf, 0))
    count = _upload([t.numel() for t in tensors], total)
    squares = euclidean.square() - total.square() / count.clamp(min=1)
    return torch.stack([count, total, squares.clamp(min=0), largest, nonzero], dim=1)


def _foreach_update_rows(after: list[Tensor], before: list[Tensor]) -> Tensor:
    parameter = _foreach_norms(before, 2)
    torch._foreach_sub_(before, after)
    count = _upload([t.numel() for t in after], parameter)
    update, changed = _foreach_norms(before, 2), _foreach_norms(before, 0)
    return torch.stack([count, changed, update.square(), parameter.square()], dim=1)


# --- CPU: chunks that stay in the cache; 0- and infinity norms are 3 to 20 times slower there ---------------------


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
    scratch = _Scratch()
    sizes = [(v.numel(), v.dtype) if v.numel() <= _SMALL else position for position, v in enumerate(columns[0])]
    order, rows = [], []
    for size, positions in _positions_by(sizes).items():
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
    """Mean, centred squares, maximum and non-zero count of |chunk|; None where fp32 cannot hold the squares.

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
        centre = mean if exact else float(np.float32(mean))
        magnitude.sub_(centre)
        offset = float(magnitude.sum()) / size
        squares = float(magnitude.square_().sum()) - size * offset * offset
        mean = centre + offset
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
