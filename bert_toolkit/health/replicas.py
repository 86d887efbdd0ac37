"""Whether the ranks of a data-parallel run are replicas: same parameters, same gradients, different rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def replica_facts(checksums: Tensor, batch_fingerprint: Tensor | float | None) -> dict[str, Tensor | float]:
    """Compare this rank's numbers with those of the others; one small collective, on every rank at the same place.

    Args:
        checksums: Of parameters and of gradients, (2), from `SampledValues.checksums`.
        batch_fingerprint: Of this rank's first batch of the step, None where unknown.

    Returns:
        `replica_parameters` and `replica_gradients` (largest difference between ranks, relative), `replica_same_rows`
        (share of ranks that have the same batch as another one).
    """
    rows_here = torch.as_tensor(math.nan if batch_fingerprint is None else batch_fingerprint)
    mine = torch.cat([checksums, rows_here.to(checksums).reshape(1)])
    everybody = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everybody, mine)
    table = torch.stack(everybody)  # (ranks, 3)
    spread = (table.amax(0) - table.amin(0)) / table.abs().amax(0).clamp(min=1e-12)
    rows = table[:, 2]
    same = (rows[:, None] == rows[None, :]).sum(1) > 1
    return {
        "replica_parameters": spread[0],
        "replica_gradients": spread[1],
        "replica_same_rows": torch.where(rows.isnan().any(), math.nan, same.double().mean()),
    }
