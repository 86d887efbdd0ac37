"""What flows through a model on a sampled step, seen by hooks that are there on that step only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bert_toolkit.health.attention_probe import AttentionProbe
from bert_toolkit.health.module_identity import ModuleIdentity
from bert_toolkit.monitoring.parameter_roles import unwrap


class FlowWatch:
    """All probes of the forward pass behind one switch.

    Nothing is watched where a part is compiled, since hooks would compile it anew.

    Args:
        model: The module that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = unwrap(model)
        compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in inner.modules())
        self._model = inner
        self._probes = () if compiled else (ModuleIdentity(model), AttentionProbe(model))

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """The names of facts that are vectors -> what their entries belong to."""
        return {name: entries for probe in self._probes for name, entries in probe.places.items()}

    def start(self) -> None:
        """Watch the step that begins now."""
        for probe in self._probes:
            probe.start()

    def stop(self) -> dict[str, Tensor | float]:
        """Stop watching and hand out the facts of the step.

        Returns:
            Name -> scalar or vector; the same names on every rank and in every step.
        """
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        return {name: fact for probe in self._probes for name, fact in probe.stop(device).items()}

    def check(self) -> None:
        """Raise what went wrong in a hook."""
        for probe in self._probes:
            probe.guard.check()

    def forget(self) -> None:
        """Leave no hook and no number behind."""
        for probe in self._probes:
            probe.forget()
