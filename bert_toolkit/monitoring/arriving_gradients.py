"""Gradients as they arrive at parameters, for optimizers that use and free them inside the backward pass."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.monitoring.gradient_flow import PendingGradientFlow
from bert_toolkit.monitoring.guarded_hooks import GuardedHooks
from bert_toolkit.monitoring.tensor_statistics import PendingRows, local_absolute_rows, local_tensor
from bert_toolkit.processes import world_size

# Optimizers that are known to step there; others are found out at their first sampled step.
_KNOWN = ("Lomo", "AdaLomo", "LayerWiseDummyOptimizer")
_COLUMNS = 5
_LOOKED_AT, _SMALL = 4, 2**14


def steps_inside_backward(optimizer: Any) -> bool:
    """Return whether an optimizer is known to step inside the backward pass and to leave no gradient.

    Args:
        optimizer: A torch optimizer or Accelerate's wrapper of one.
    """
    return type(getattr(optimizer, "optimizer", optimizer)).__name__ in _KNOWN


class Moved:
    """Whether a few small parameters have moved since this was made.

    Args:
        named: Parameters by name.
    """

    def __init__(self, named: list[tuple[str, nn.Parameter]]) -> None:
        small = [p for _, p in named if 0 < p.numel() <= _SMALL and not isinstance(p, DTensor)]
        self._copies = [(p, p.detach().clone()) for p in small[:: max(len(small) // _LOOKED_AT, 1)][:_LOOKED_AT]]

    def __bool__(self) -> bool:
        return any(bool((p.detach() != copy).any()) for p, copy in self._copies)


class ArrivingGradients:
    """Statistics of the gradient that came last at each parameter, taken before any optimizer can use it.

    That is what an optimizer inside the backward pass uses, since it leaves nothing to accumulate. Where several
    processes train, nothing is taken: what arrives is this process' part.

    Args:
        named: Parameters by name.

    Attributes:
        batches: Backward passes that brought a gradient, of the parameter to which most came.
    """

    def __init__(self, named: list[tuple[str, nn.Parameter]]) -> None:
        self._named = named
        self._rows: dict[int, Tensor] = {}
        self._came = [0] * len(named)
        self._guard = GuardedHooks()
        whole = world_size() == 1
        whole = whole and not any(isinstance(p, DTensor) for _, p in named)
        hooks = [self._guard(partial(self._on_gradient, place)) for place in range(len(named))] if whole else []
        self._handles: list[Any] = [p.register_hook(hook) for (_, p), hook in zip(named, hooks, strict=False)]

    @property
    def batches(self) -> int:
        """The number of backward passes that brought a gradient, of the parameter to which most came."""
        return max(self._came, default=0)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> PendingGradientFlow | None:
        """Return what `finish(step)` turns into a record, None where no gradient came.

        Raises:
            Exception: Whatever went wrong in a hook.
        """
        self.close()
        self._guard.check()
        if not self._rows:
            return None
        rows = next(iter(self._rows.values()))
        table = rows.new_zeros(1, len(self._named), _COLUMNS)
        for place, found in self._rows.items():
            table[0, place] = found.to(table)[0]
        return PendingGradientFlow(
            names=tuple(name for name, _ in self._named),
            rows=PendingRows([(list(range(len(self._named))), table)], len(self._named)),
            watched=False,
            total_norm=None,
            max_norm=None,
            loss_scale=1.0,
            backward_scale=None,
        )

    @torch.no_grad()
    def _on_gradient(self, place: int, gradient: Tensor) -> None:
        self._came[place] += 1
        self._rows[place] = local_absolute_rows([local_tensor(gradient)])
