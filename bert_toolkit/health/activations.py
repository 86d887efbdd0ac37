"""Whether the activation functions of a transformers model are those that its config names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from bert_toolkit.monitoring.parameter_roles import clean_name, unwrap

_ATTRIBUTES = ("activation", "act", "act_fn", "activation_fn", "intermediate_act_fn", "transform_act_fn")
_SETTINGS = ("hidden_act", "activation_function", "hidden_activation", "activation")


def changed_activations(model: nn.Module) -> dict[str, str]:
    """Return activation modules in the layers of a model that compute another function than the nearest config names.

    Many models have further activations of their own, so nothing is said where one in the layers is as configured.

    Args:
        model: The module that is trained.

    Returns:
        Path of the module -> what is there and what the config names.
    """
    inner = unwrap(model)
    modules = dict(inner.named_modules())
    changed = {}
    for name, module in modules.items():
        path, _, attribute = name.rpartition(".")
        if attribute in _ATTRIBUTES and not isinstance(module, nn.Identity) and re.search(r"\.\d+\.", f".{name}"):
            wanted = _configured(modules, path)
            if wanted is None:
                continue
            if _alike(module, ACT2FN[wanted]):
                return {}
            changed[clean_name(name)] = f"{type(module).__name__} where the config says {wanted}"
    return changed


@torch.no_grad()
def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two functions agree but for the way in which they are approximated."""
    points = torch.linspace(-4.0, 4.0, 33)
    try:
        return bool((one(points) - other(points)).abs().amax() < 0.05)
    except Exception:  # a gate, or one with weights elsewhere: not to be compared
        return True


def _configured(modules: dict[str, Any], path: str) -> str | None:
    """The activation that the config of the nearest module above names, if it names one alone."""
    while True:
        config = getattr(modules[path], "config", None)
        if config is not None:
            named = {getattr(config, setting, None) for setting in _SETTINGS}
            known = [value for value in named if isinstance(value, str) and value in ACT2FN]
            return known[0] if len(known) == 1 else None
        if not path:
            return None
        path = path.rpartition(".")[0]
