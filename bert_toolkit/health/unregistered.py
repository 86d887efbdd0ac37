"""Modules that a model uses and does not know: kept in a plain list or dict, they are in no `parameters()`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bert_toolkit.health.settings import innermost
from bert_toolkit.monitoring.parameter_roles import unwrap


class UnregisteredModules:
    """Parameters of modules in plain containers: whether gradients reach them, and whether anybody moves them.

    A teacher or a loss that is hidden in a list on purpose gets no gradients, or has an optimizer of its own.

    Args:
        model: The module that is trained.

    Attributes:
        places: Attributes that hold such modules, by their names in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = unwrap(model)
        known = set(map(id, inner.parameters()))
        self._parameters: dict[str, list[nn.Parameter]] = {}
        for name, module in inner.named_modules():
            for attribute, value in vars(module).items():
                hidden = [p for m in _in_container(value) for p in m.parameters() if id(p) not in known]
                if hidden:
                    self._parameters[f"{name}.{attribute}".lstrip(".")] = hidden
        self.places = tuple(self._parameters)
        self._versions: dict[str, list[int]] = {}

    def facts(self, optimizer: Any) -> dict[str, torch.Tensor]:
        """Look at gradients; call it right before the optimizer's step.

        Args:
            optimizer: The optimizer, or Accelerate's wrapper of it.

        Returns:
            `unregistered`, one number per place: 1 where a gradient has arrived, the optimizer does not hold the
            parameters and nobody has changed them since the last look, else 0; nothing at the first look.
        """
        held = {id(p) for group in getattr(innermost(optimizer), "param_groups", ()) for p in group["params"]}
        before, self._versions = self._versions, {}
        stuck = []
        for name, parameters in self._parameters.items():
            self._versions[name] = [p._version for p in parameters]
            reached = any(p.grad is not None and id(p) not in held for p in parameters)
            stuck.append(float(reached and before.get(name) == self._versions[name]))
        return {"unregistered": torch.tensor(stuck)} if before and stuck else {}


def _in_container(value: Any) -> Iterator[nn.Module]:
    """Modules in a list, tuple, set or dict that is no `nn.Module` itself."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple, set)):
        return
    for part in value:
        if isinstance(part, nn.Module):
            yield part
        elif isinstance(part, (list, tuple)):
            yield from _in_container(part)
