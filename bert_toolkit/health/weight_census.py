"""What weights are like before the first step where whole rows or a module's behavior must be looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.monitoring.parameter_roles import named_unique_parameters, own_parameter, unwrap

_LINES = 256  # rows, and columns, that are looked at in each matrix, at equal distances
_NAMES = (
    *("zero_rows", "zero_columns", "same_rows", "fan_in"),
    *("norm_gain", "norm_gain_std", "norm_shift", "norm_shift_std"),
    "as_made",
)


@torch.no_grad()
def weight_census(model: nn.Module, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Look at lines of matrices and at what normalizations do, once, with one transfer to the host.

    Args:
        model: The module that is trained.
        names: Parameters in the order of the arrays.

    Returns:
        Each (parameters), NaN where it does not apply: of weights of linear layers and embeddings `zero_rows` (the
        fraction of units, or of tokens beside the padding, whose weights are all zero), `zero_columns` (of inputs of
        a linear layer without any weight), `same_rows` (of units that equal the first one), `fan_in` and `as_made`
        (1 where it may be a fresh one, else 0; see `_may_be_fresh`) of linear layers; of weights of normalizations
        the mean and the standard deviation of what they multiply by (`norm_gain`, `norm_gain_std`), and likewise of
        what they add (`norm_shift`), whatever formula they use.
    """
    place = {name: i for i, name in enumerate(names)}
    known = {id(parameter): name for name, parameter in named_unique_parameters(model)}
    found: dict[int, list[tuple[int, Tensor | float]]] = {}
    for module in unwrap(model).modules():
        weight = own_parameter(module, "weight")
        if weight is None or id(weight) not in known or not _is_here(weight):
            continue
        position = place.get(known[id(weight)])
        if position is not None:
            found.setdefault(position, list(_facts_of(module, weight)))
    table = np.full((len(_NAMES), len(names)), np.nan)
    entries = [(row, position, value) for position, facts in found.items() for row, value in facts]
    if entries:
        numbers = [torch.as_tensor(value, dtype=torch.float32).cpu() for _, _, value in entries]
        table[[row for row, _, _ in entries], [column for _, column, _ in entries]] = torch.stack(numbers).numpy()
    return dict(zip(_NAMES, table, strict=True))


def _is_here(weight: Tensor) -> bool:
    return bool(
        weight.is_floating_point() and weight.numel() and not weight.is_meta and not isinstance(weight, DTensor)
    )


def _facts_of(module: nn.Module, weight: Tensor) -> Iterator[tuple[int, Tensor | float]]:
    """Row of the table and value."""
    weight = weight.detach()
    if weight.ndim == 2 and isinstance(module, nn.Embedding):
        rows = weight[_without(module.padding_idx, len(weight))]
        if len(rows) >= 8:
            yield 0, _zero_fraction(rows, 1)
    elif weight.ndim == 2 and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
        by_unit = weight if isinstance(module, nn.Linear) else weight.t()
        units = by_unit[:: max(len(by_unit) // _LINES, 1)]
        inputs = by_unit[:, :: max(by_unit.shape[1] // _LINES, 1)]
        yield 0, _zero_fraction(units, 1)
        yield 1, _zero_fraction(inputs, 0)
        if len(units) >= 4 and by_unit.shape[1] > 1:
            yield 2, (units[1:] == units[:1]).all(1).float().mean()
        yield 3, float(by_unit.shape[1])
        yield 8, _may_be_fresh(by_unit, getattr(module, "bias", None))
    elif weight.ndim == 1 and len(weight) > 1 and "norm" in type(module).__name__.lower():
        effect = _effect_of_norm(module, weight)
        if effect is not None:
            gain, shift = effect
            yield from ((4, gain.mean()), (5, gain.std()), (6, shift.mean()), (7, shift.std()))


def _without(padding: int | None, length: int) -> list[int]:
    return [row for row in range(0, length, max(length // _LINES, 1)) if row != padding]


def _zero_fraction(lines: Tensor, dim: int) -> Tensor:
    return (lines.abs().amax(dim) == 0).float().mean()


def _may_be_fresh(by_unit: Tensor, bias: Tensor | None) -> Tensor | float:
    """1 where no step can be seen in a linear layer: its bias is zero, or all lies as PyTorch spreads it by default.

    That is evenly up to the inverse root of the inputs, which the first steps of a training already leave.
    """
    if bias is None:
        return 1.0
    bound = by_unit.shape[1] ** -0.5
    largest = torch.stack([by_unit.abs().amax(), bias.detach().abs().amax().to(by_unit.device)]).float()
    spread = (largest <= bound * 1.0001).all() & (largest[0] > 0.9 * bound)
    return ((largest[1] == 0) | spread).float()


def _effect_of_norm(module: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """What a normalization over the last axis multiplies by and adds, by feature; None where that is not its kind.

    It is asked, since some multiply by one plus their weight. An input whose entries are equal but for their signs,
    which take turns, is divided by its size alone, and any usual epsilon is nothing beside it.
    """
    if (
        isinstance(module, nn.GroupNorm)
        or list(module.buffers())
        or any(p.shape != weight.shape for p in module.parameters())
    ):
        return None
    signs = torch.ones(2, len(weight), dtype=weight.dtype, device=weight.device)
    signs[0, 1::2] = signs[1, ::2] = -1.0
    try:
        there, back = type(module).forward(module, 64.0 * signs).float()
        larger, _ = type(module).forward(module, 128.0 * signs).float()
    except Exception:  # over other axes, or with further inputs
        return None
    if not torch.allclose(there, larger, rtol=1e-2, atol=1e-3):  # scales only, as MobileBERT's NoNorm
        return None
    gain, shift = (there - back) / 2 * signs[0], (there + back) / 2
    return (gain, shift)
