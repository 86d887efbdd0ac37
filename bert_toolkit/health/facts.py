"""Named numbers that a sampled step leaves, gathered on the device and read by the host in one transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Number = Tensor | float
FactValue = float | np.ndarray

SUMMED = frozenset({"loss_weight"})
"""Facts that add up over the forward passes of a step; all others are means of the passes that have them."""


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices without it.

    Args:
        device: Where something is computed.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def merged(passes: Sequence[Mapping[str, Number]], device: torch.device) -> dict[str, Tensor]:
    """Return the facts of one optimizer step from those of its forward passes.

    Args:
        passes: Facts of each pass, scalars or vectors of one length per name; NaN where a pass does not know one.
        device: Where the result is put together.

    Returns:
        Name to a float64 vector (float32 on devices without float64).
    """
    dtype = widest(device)
    found: dict[str, list[Tensor]] = {}
    for facts in passes:
        for name, value in facts.items():
            vector = torch.as_tensor(value, dtype=dtype, device=device).detach().reshape(-1)
            found.setdefault(name, []).append(vector)
    return {
        name: torch.stack(values).nansum(0) if name in SUMMED else torch.stack(values).nanmean(0)
        for name, values in found.items()
        if len({len(value) for value in values}) == 1
    }


def flattened(facts: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Return all facts end to end, in the order of their names.

    Args:
        facts: Name to a vector, as `merged` returns them.
        device: Where they are.

    Returns:
        A vector; empty without facts.
    """
    return torch.cat([torch.empty(0, dtype=torch.float64, device=device), *facts.values()])


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of each entry over the ranks that know it (no NaN), by one collective.

    Args:
        values: A vector of the same length on every rank, NaN where this one does not know an entry.

    Returns:
        A vector of that length, NaN where no rank knows an entry.
    """
    known = ~values.isnan()
    message = torch.cat([values.nan_to_num(0.0), known.to(values.dtype)])
    torch.distributed.all_reduce(message)
    total, count = message.chunk(2)
    return torch.where(count > 0, total / count.clamp(min=1), math.nan)


def named(facts: Mapping[str, Tensor], numbers: np.ndarray) -> dict[str, FactValue]:
    """Undo `flattened` on the host: scalars as floats, vectors as arrays.

    Args:
        facts: The facts that were flattened, for their names and lengths.
        numbers: The vector, as the host read it.

    Returns:
        Name to a float, or to an array where there are several numbers.
    """
    read: dict[str, FactValue] = {}
    position = 0
    for name, like in facts.items():
        part = numbers[position : position + len(like)]
        read[name] = float(part[0]) if len(part) == 1 else part
        position += len(like)
    return read
