"""Whether plain modules give what their own weights say, or something around them changes their output.

A hook, or a function put in the place of `forward`, can scale, shift, zero or noise what a module returns, and no
weight, gradient or setting tells. The class's own formula on the module's own weights does.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.monitoring.guarded_hooks import GuardedHooks
from bert_toolkit.monitoring.parameter_roles import clean_name, named_unique_parameters, own_parameter, unwrap

MOST_MODULES = 64
_INSTANCES = 3  # of each kind: the first, the middle and the last
_PARTS = 4  # after the first time a fourth of the modules is looked at in turn
_ROWS, _COLUMNS = 16, 64
# What rounding may explain of an output, relative to its norm; the lower one holds for TF32 as well.
_TOLERANCE, _LOW_TOLERANCE = 3e-3, 3e-2

_Compared = tuple[Tensor, Tensor]


class ModuleIdentity:
    """A probe that compares outputs of plain modules with their formula, on a few rows of one forward pass.

    Plain are exactly `nn.Linear`, transformers' `Conv1D`, `nn.LayerNorm`, `nn.RMSNorm`, classes called `...RMSNorm`
    or `T5LayerNorm`, `nn.Embedding` and `nn.Dropout`. Subclasses and modules that adapters or quantization have put
    in their place are not judged, nor are those whose weights are sharded, offloaded or special tensors. Of each kind
    (the same place in every layer) at most three are watched, 64 in all, and after the first time a quarter in turn.

    Args:
        model: The module that is trained.

    Attributes:
        places: Name of a vector that is handed out to what its entries belong to: the modules, and of each the
            name of the parameter that is its weight (of another module's where the two are tied, empty where it has
            none).
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = _spread_over(unwrap(model))
        names = tuple(clean_name(name) for name, _ in self._modules)
        known = {id(parameter): name for name, parameter in named_unique_parameters(model)}
        weights = tuple(known.get(id(own_parameter(module, "weight")), "") for _, module in self._modules)
        self.places = {"identity_error": names, "identity_gain": names, "identity_weight": weights}
        self.guard = GuardedHooks()
        self._handles: list[Any] = []
        self._found: dict[int, Tensor] = {}
        self._tolerance = _TOLERANCE
        self._times = 0

    def start(self) -> None:
        """Watch from now on."""
        self.forget()
        places = range(len(self._modules))
        for place in places if self._times == 0 else places[self._times % _PARTS :: _PARTS]:
            module = self._modules[place][1]
            if getattr(module, "neftune_noise_alpha", None) is None:  # noise that Trainer was asked for
                self._handles.append(
                    module.register_forward_hook(self.guard(_Comparison(self, place)), with_kwargs=True)
                )
        self._times += 1

    def stop(self, device: torch.device) -> dict[str, Tensor | float]:
        """Stop watching.

        Args:
            device: Where the facts are put.

        Returns:
            `identity_error`, the norm of the difference from the formula relative to that of the formula's value, and
            `identity_gain`, the factor that explains most of it: (modules), NaN where a module was not called; and
            `identity_tolerance`, what rounding may explain of the error.
        """
        unknown = torch.full((2,), math.nan, device=device)
        rows = [self._found.get(place, unknown).to(device) for place in range(len(self._modules))]
        tolerance = self._tolerance
        self.forget()
        if not rows:
            return {}
        error, gain = torch.stack(rows).unbind(1)
        return {"identity_error": error, "identity_gain": gain, "identity_tolerance": tolerance}

    def forget(self) -> None:
        """Remove the hooks and drop what they have seen."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._found, self._tolerance = [], {}, _TOLERANCE

    def compare(self, place: int, given: Any, output: Any) -> None:
        """Compare the output of a module with its formula, the first time that it is called.

        Args:
            place: Its place among the modules that are watched.
            given: Its input; what is no plain tensor is passed over.
            output: Its output; likewise.
        """
        module = self._modules[place][1]
        if place in self._found or not torch.is_grad_enabled() or not _is_here(module, given, output):
            return
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            try:
                pair = _FORMULAS[_kind(module)](module, given.detach(), output.detach())
            except Exception:  # somebody's own normalization may refuse rows; no probe may end a training
                return
            if pair is None:
                return
            if output.dtype in (torch.float16, torch.bfloat16) or given.dtype in (torch.float16, torch.bfloat16):
                self._tolerance = _LOW_TOLERANCE
            expected, seen = (value.float() for value in pair)
            size = expected.square().sum()
            beside_zeros = torch.where((seen != 0).any(), math.inf, 0.0)  # where the formula gives zeros
            # A NaN stays one and says nothing here.
            error = torch.where(size == 0, beside_zeros, (seen - expected).norm() / size.sqrt())
            gain = torch.where(size == 0, math.nan, (seen * expected).sum() / size)
            self._found[place] = torch.stack([error, gain])


class _Comparison:
    """A forward hook that changes nothing."""

    def __init__(self, identity: ModuleIdentity, place: int) -> None:
        self._identity = identity
        self._place = place

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        values = (*args, *kwargs.values())
        if len(values) == 1:  # a gate or a residual beside it, and the formula is another
            self._identity.compare(self._place, values[0], output)


def _kind(module: nn.Module) -> str:
    """The name of the formula of a plain module; empty for any other."""
    cls = type(module)
    if cls in (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.Dropout):
        return cls.__name__
    if cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils":
        return "Conv1D"
    # Liger and others bind a kernel to the module; the class's own forward is the reference then.
    scales = cls.__name__.endswith(("RMSNorm", "T5LayerNorm")) and len(list(module.parameters())) == 1
    return "RMSNorm" if scales else ""


def _spread_over(model: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds: dict[tuple[str, str], list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        if kind := _kind(module):
            kinds[kind, re.sub(r"\d+", "*", name)].append((name, module))
    chosen: dict[str, nn.Module] = {}
    for turn in range(_INSTANCES):
        for members in kinds.values():
            place = (len(members) - 1) * turn // (_INSTANCES - 1)
            if len(chosen) < MOST_MODULES:
                chosen.setdefault(*members[place])
    return [(name, module) for name, module in model.named_modules() if name in chosen]


def _is_here(module: nn.Module, given: Any, output: Any) -> bool:
    """Whether input, output and weights are ordinary tensors on one device."""
    tensors = [given, output, *module.parameters(recurse=False)]
    weight = getattr(module, "weight", output)
    return (
        all(isinstance(tensor, Tensor) and not isinstance(tensor, DTensor) for tensor in tensors)
        and all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta for tensor in (*tensors, weight))
        and len({tensor.device for tensor in tensors}) == 1
        and all(tensor.numel() > 0 for tensor in tensors)
        and output.is_floating_point()
    )


def _rows(tensor: Tensor, trailing: int = 1) -> Tensor:
    """A few rows, spread over all leading axes."""
    flat = tensor.reshape(-1, *tensor.shape[tensor.ndim - trailing :])
    return flat[:: max(len(flat) // _ROWS, 1)][:_ROWS]


def _linear(module: Any, given: Tensor, output: Tensor) -> _Compared | None:
    weight, bias = module.weight.detach(), module.bias
    if weight.shape != (output.shape[-1], given.shape[-1]) or given.shape[:-1] != output.shape[:-1]:
        return None
    return _affine(weight, bias, given, output)


def _conv1d(module: Any, given: Tensor, output: Tensor) -> _Compared | None:
    weight, bias = module.weight.detach().t(), module.bias
    if weight.shape != (output.shape[-1], given.shape[-1]) or given.shape[:-1] != output.shape[:-1]:
        return None
    return _affine(weight, bias, given, output)


def _affine(weight: Tensor, bias: Tensor | None, given: Tensor, output: Tensor) -> _Compared:
    """In the precision of the output, which autocast may have lowered, on a few of its columns."""
    every = max(len(weight) // _COLUMNS, 1)
    dtype = output.dtype
    rows, part = _rows(given).to(dtype), weight[::every].to(dtype)
    expected = nn.functional.linear(rows, part, None if bias is None else bias.detach()[::every].to(dtype))
    return expected, _rows(output)[:, ::every]


def _norm(module: Any, given: Tensor, output: Tensor) -> _Compared | None:
    shape = tuple(getattr(module, "normalized_shape", ())) or given.shape[-1:]
    if given.shape != output.shape or given.shape[given.ndim - len(shape) :] != shape:
        return None
    rows, seen = _rows(given, len(shape)).float(), _rows(output, len(shape))
    scale, shift = (None if p is None else p.detach().float() for p in (module.weight, getattr(module, "bias", None)))
    if type(module) is nn.LayerNorm:
        return nn.functional.layer_norm(rows, shape, scale, shift, module.eps), seen
    if type(module) is nn.RMSNorm:
        return nn.functional.rms_norm(rows, shape, scale, module.eps), seen
    return type(module).forward(module, rows), seen


def _embedding(module: Any, given: Tensor, output: Tensor) -> _Compared | None:
    weight = module.weight.detach()
    if given.is_floating_point() or output.shape != (*given.shape, weight.shape[1]):
        return None
    return nn.functional.embedding(_rows(given, 0), weight), _rows(output)


def _dropout(module: Any, given: Tensor, output: Tensor) -> _Compared | None:
    """Zeros are granted to a dropout that is active, at about its rate; else it passes its input on."""
    if given.shape != output.shape or given.ndim < 1 or module.inplace or not 0.0 <= module.p < 1.0:
        return None
    rows, seen = _rows(given).float(), _rows(output).float()
    if not module.training or module.p == 0.0:
        return rows, seen
    p, scaled = module.p, rows / (1.0 - module.p)
    could, dropped = (rows != 0).sum(), ((rows != 0) & (seen == 0)).sum()
    rate = dropped / could.clamp(min=1)
    usual = (rate - p).abs() <= 5.0 * (p * (1.0 - p) / could.clamp(min=1)).sqrt() + 0.02
    # Where the rate is not the module's, all that is zero counts as missing.
    return torch.where((seen == 0) & usual, 0.0, scaled), seen


_FORMULAS: dict[str, Callable[[Any, Tensor, Tensor], _Compared | None]] = {
    "Linear": _linear,
    "Conv1D": _conv1d,
    "LayerNorm": _norm,
    "RMSNorm": _norm,
    "Embedding": _embedding,
    "Dropout": _dropout,
}
