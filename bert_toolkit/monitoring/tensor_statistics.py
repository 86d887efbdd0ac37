"""Statistics of many tensors at once: one pass over their memory, one transfer to the host, one collective if sharded.

Every function turns a list of tensors into *rows*, one per tensor. A row holds sums, never quotients, so rows of
the shards of one tensor can be combined exactly. Rows of absolute values are
(count, sum, squares, max, nonzero) with `squares` = sum((|x| - mean)^2), centered so that the standard deviation of
nearly constant values does not cancel away. Rows of an update are (count, changed, update squares, parameter squares).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from bert_toolkit.monitoring.cpu_statistics import cpu_absolute_rows, cpu_norms, cpu_update_rows, positions_by


class AbsoluteStatistics(NamedTuple):
    """Statistics of |x| for n tensors, each array of shape (n,) and float64.

    Args:
        elements: Number of elements.
        mean: Mean of |x|.
        max: Largest |x|.
        std: Population standard deviation of |x|.
        zero_share: Share of elements that are exactly zero.
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
        changed_share: Share of elements that changed.
    """

    update_norm: np.ndarray
    parameter_norm: np.ndarray
    changed_share: np.ndarray


class HostCopy:
    """A tensor on its way to the host: the copy starts at once, `read()` waits for it.

    Args:
        tensor: What to copy; may be on any device.
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
        size: Number of tensors in the caller's list.
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
        tensors: Tell where the values belong (plain or sharded).
        values: Flat values that this rank holds of each, possibly none.
        extra: One number per tensor that this rank found before, to travel as a last column.

    Returns:
        The rows, (ranks, tensors, 5), or 6 columns with `extra`.
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
    """Return the norms of the values that this rank holds, left on the device; not finite where a value is not.

    Args:
        tensors: Plain or sharded.

    Returns:
        A scalar for each tensor.
    """
    values = [local_tensor(tensor) for tensor in tensors]
    norms: list[Tensor] = [torch.empty(0)] * len(values)
    for positions in positions_by([v.device for v in values]).values():
        found = _norms([values[p] for p in positions])
        for position, norm in zip(positions, found, strict=True):
            norms[position] = norm
    return norms


def update_rows(tensors: Sequence[Tensor], after: Sequence[Tensor], before: Sequence[Tensor]) -> PendingRows:
    """Collect the rows of an update; see `update_statistics`. On an accelerator it overwrites `before`.

    Args:
        tensors: Tell where the values belong (plain or sharded).
        after: Flat values that this rank holds of each, all of them or a sample, after the step.
        before: The same values before the step.

    Returns:
        The rows, (ranks, tensors, 4).
    """
    return _collect(tensors, local_update_rows, after, before)


def absolute_statistics(rows: np.ndarray) -> AbsoluteStatistics:
    """Combine the rows of all ranks into statistics of the whole tensors.

    Args:
        rows: (ranks, tensors, 5 or more) from `absolute_rows(...).read()`.

    Returns:
        Statistics of |x|, each of shape (tensors,); NaN for a tensor without elements.
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

    Returns:
        Norm of the update, norm of the parameter before it, and share of elements that changed, each (tensors,).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        count, changed, update, parameter = np.moveaxis(rows, -1, 0).sum(1)
        return UpdateStatistics(np.sqrt(update), np.sqrt(parameter), changed / count)


def summed(tensor: Tensor) -> Tensor:
    """Return the tensor with the sums taken that tensor parallelism has left to the ranks; every rank must call it.

    Args:
        tensor: A gradient, plain or distributed; others than such sums are returned as they are.
    """
    if not isinstance(tensor, DTensor) or not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the flat values that this rank holds, a view where memory allows it; of a sparse tensor those stored.

    Args:
        tensor: Plain, sharded or sparse.

    Raises:
        TypeError: The values are no real numbers.
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
    for (_, mesh, dims), positions in positions_by([(t.device, *_sharding(t)) for t in tensors]).items():
        rows = compute(*([column[p] for p in positions] for column in columns))[None]
        for dim in dims:
            rows = gathered_rows(rows, mesh.get_group(dim))
        groups.append((positions, rows))
    return PendingRows(groups, len(tensors))


def gathered_rows(rows: Tensor, group: Any = None) -> Tensor:
    """Return the rows of all ranks, (ranks, tensors, columns); one collective.

    Gathering (not reducing) keeps the maximum and the centered squares exact, in one message of fixed size.

    Args:
        rows: Of this rank, or of those that were joined with it before: (ranks, tensors, columns).
        group: Process group, None for all processes.
    """
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, rows.contiguous(), group=group)
    return torch.cat(parts)


def _with_zeros(rows: Tensor, zeros: list[int]) -> Tensor:
    """Rows of absolute values as if so many zeros had been among them, which sparse tensors do not store."""
    added = torch.tensor(zeros, dtype=rows.dtype, device=rows.device)
    count, total, squares, largest, nonzero = rows.unbind(1)
    between = torch.where(count > 0, added * total.square() / (count * (count + added)).clamp(min=1), 0.0)
    return torch.stack([count + added, total, squares + between, largest, nonzero], dim=1)


def local_absolute_rows(values: list[Tensor]) -> Tensor:
    """Return the rows of |x| of values on one device, left there: (tensors, 5).

    Args:
        values: Flat values of each tensor.
    """
    if values[0].device.type == "cpu":
        return cpu_absolute_rows(values)
    return _foreach_absolute_rows(values)


def local_update_rows(after: list[Tensor], before: list[Tensor]) -> Tensor:
    """Return the rows of an update of values on one device, left there: (tensors, 4). It may overwrite `before`.

    Args:
        after: Flat values of each tensor after the step.
        before: The same values before the step.
    """
    if after[0].device.type == "cpu":
        return cpu_update_rows(after, before)
    return _foreach_update_rows(after, before)


def _norms(values: list[Tensor]) -> Sequence[Tensor]:
    if values[0].device.type == "cpu":
        return cpu_norms(values).unbind()
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
    for positions in positions_by([t.dtype for t in filled]).values():
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
