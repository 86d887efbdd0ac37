"""Whether the loop does what a step of training is: backward into clean gradients, one step, nothing lost between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.health.settings import innermost
from bert_toolkit.monitoring.guarded_hooks import GuardedHooks
from bert_toolkit.monitoring.parameter_roles import named_unique_parameters

_PARAMETERS_WATCHED = 4
_LARGEST = 2**14  # elements; of each parameter that is watched one gradient is held during a backward pass


class ProtocolWatch:
    """Hooks on a few small parameters, there only while a step is sampled.

    Args:
        model: The module that is trained.
        unheld: Parameters that the optimizer does not hold; nobody clears their gradients, and nobody uses them.
    """

    def __init__(self, model: nn.Module, unheld: tuple[str, ...] = ()) -> None:
        self._model = model
        self._unheld = frozenset(unheld)
        self.guard = GuardedHooks()
        self._handles: list[Any] = []
        self._watched: list[nn.Parameter] = []
        self._incoming: dict[int, Tensor] = {}
        self._stale: dict[int, Tensor] = {}
        self._arrived: dict[int, Tensor] = {}
        self._values: list[Tensor] = []

    def start(self) -> None:
        """Watch the backward passes from now on; call it before the forward pass of a step."""
        self.stop()
        candidates = [
            p
            for name, p in named_unique_parameters(self._model)
            if p.requires_grad
            and 0 < p.numel() <= _LARGEST
            and not isinstance(p, DTensor)
            and p.is_floating_point()
            and name not in self._unheld
        ]
        # Spread over the model: a head that is used, a layer, an embedding.
        step = max(1, len(candidates) // _PARAMETERS_WATCHED)
        self._watched = candidates[::-1][::step][:_PARAMETERS_WATCHED]
        self._values = [p.detach().clone() for p in self._watched]
        for parameter in self._watched:
            self._handles.append(parameter.register_hook(self.guard(self._before(parameter))))
            self._handles.append(parameter.register_post_accumulate_grad_hook(self.guard(self._after)))

    def stop(self) -> None:
        """Remove the hooks and forget what they saw."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._watched = [], []
        self._incoming, self._stale, self._arrived, self._values = {}, {}, {}, []

    def _before(self, parameter: nn.Parameter) -> Any:
        key = id(parameter)

        def hook(gradient: Tensor) -> None:
            self._incoming[key] = gradient.detach().clone()

        return hook

    @torch.no_grad()
    def _after(self, parameter: Tensor) -> None:
        incoming = self._incoming.pop(id(parameter), None)
        if incoming is None or incoming.is_sparse:
            return
        key, size = id(parameter), incoming.norm()
        is_first = key not in self._arrived
        self._arrived.setdefault(key, size)
        if parameter.grad is None:
            return
        # What was there before the first backward pass of this step, relative to what it brought; a later pass that
        # finds nothing tells that it was cleared meanwhile (the other player's loss came before this one's).
        before = (parameter.grad - incoming).norm() / size.clamp(min=1e-30)
        self._stale[key] = before if is_first else torch.where(before == 0, before, self._stale[key])

    @torch.no_grad()
    def facts(self, optimizer: Any) -> dict[str, Tensor | float]:
        """Return what was seen, and the optimizer's own count of its steps; call it right before the optimizer's step.

        Args:
            optimizer: A torch optimizer or a wrapper of one.

        Returns:
            `stale_gradient`: what the gradients held before the first backward pass, relative to what it brought.
            `cleared_gradient`: share of the watched parameters whose gradient arrived and is gone.
            `optimizer_steps`: steps that the optimizer counts for a parameter that it has moved, before this one.
            `optimizer_steps_in_all`: sum of these counts over all parameters.
            `optimizer_state`: share of the watched parameters for which it keeps anything.
        """
        found: dict[str, Tensor | float] = {}
        if self._arrived:
            if self._stale:
                found["stale_gradient"] = torch.stack(list(self._stale.values())).float().amax()
            gone = [
                torch.ones((), device=size.device) * (size > 0)
                if p.grad is None
                else ((p.grad.detach() == 0).all() & (size > 0)).float()
                for p in self._watched
                if (size := self._arrived.get(id(p))) is not None
            ]
            # Optimizers that step inside the backward pass free gradients there; parameters have then moved already.
            moved = torch.stack([(p != old).any() for p, old in zip(self._watched, self._values, strict=True)]).any()
            found["cleared_gradient"] = torch.where(moved, 0.0, torch.stack(gone).mean())
        state: Mapping[Any, Any] = getattr(innermost(optimizer), "state", {})
        if self._arrived and state is not None:
            held = [p for p in self._watched if id(p) in self._arrived]
            found["optimizer_state"] = sum(bool(state.get(p)) for p in held if hasattr(state, "get")) / len(held)
            # Of all parameters: several may take turns.
            states = list(state.values()) if hasattr(state, "values") else []
            counts = [s["step"] for s in states if isinstance(s, Mapping) and "step" in s]
            numbers = [torch.as_tensor(c, dtype=torch.float32).reshape(()) for c in counts]
            if numbers:
                steps = torch.stack([n.to(numbers[0].device) for n in numbers])
                found |= {"optimizer_steps": steps.amax(), "optimizer_steps_in_all": steps.sum()}
        return found
