"""A few values of every trainable parameter, watched over the step and from one sample to the next.

They show what no norm shows: parameters that something else than the optimizer moved, steps that point up the
gradient, weights that are constant or equal to those of another layer, and replicas that have drifted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.monitoring.parameter_roles import named_unique_parameters

SAMPLE_SIZE = 256


class SampledValues:
    """At most 256 fixed positions of each trainable parameter; at BERT-base size 600 KiB stay between samples.

    Sharded parameters are left out: a rank does not hold all positions.

    Args:
        model: The module that is trained.
        names: Parameters in the order of the vectors that are handed out; NaN stands for those not looked at.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        self._model = model
        self._place = {name: i for i, name in enumerate(names)}
        self._positions: dict[str, Tensor] = {}
        self._before: _Values | None = None
        self._left: _Values | None = None
        self._met: _Values | None = None  # what the step sampled last began with

    @torch.no_grad()
    def before_step(self) -> dict[str, Tensor]:
        """Take parameters and gradients; call it right before the optimizer's step.

        Returns:
            How far each parameter has moved since the end of the step sampled last (`drift`) and since its beginning
            (`progress`), each (parameters); nothing at first.
        """
        self._before = self._take(gradients=True)
        if self._left is None or self._before is None or self._left.names != self._before.names:
            return {}
        found = {"drift": self._before.spread((self._before.values - self._left.values).square()).sqrt()}
        if self._met is not None and self._met.names == self._before.names:
            found["progress"] = self._before.spread((self._before.values - self._met.values).square()).sqrt()
        return found

    @torch.no_grad()
    def after_step(self) -> dict[str, Tensor]:
        """Compare with `before_step`.

        Returns:
            `moved` and `held_norm`, lengths of the step and of the parameter before it; `ascent`, the cosine of the
            angle between step and gradient: negative where a step descends, NaN where either is zero. Each
            (parameters).
        """
        before, self._before = self._before, None
        self._left, self._met = self._take(), before
        if before is None or self._left is None or before.names != self._left.names:
            return {}
        step = self._left.values - before.values
        assert before.gradients is not None
        moved, norms = before.spread(step.square()).sqrt(), before.spread(before.values.square()).sqrt()
        size = moved * before.spread(before.gradients.square()).sqrt()
        ascent = before.spread(step * before.gradients) / torch.where(size > 0, size, torch.nan)
        return {"moved": moved, "held_norm": norms, "ascent": ascent}

    @torch.no_grad()
    def checksums(self) -> Tensor:
        """Return sums of the parameters and gradients that `before_step` took, (2): equal on replicas."""
        if self._before is None or self._before.gradients is None:
            return torch.full((2,), torch.nan, dtype=torch.float64)
        return torch.stack([v.double().sum() for v in (self._before.values, self._before.gradients)])

    def forget(self) -> None:
        """Drop what a step that was interrupted has left."""
        self._before = None

    @torch.no_grad()
    def census(self) -> dict[str, np.ndarray]:
        """Return what the weights are like now, each array (parameters): meant to be taken before the first step.

        Returns:
            `mean`, `std`, `largest` (absolute), `excess_kurtosis` (0 for Gaussian values, -1.2 for uniform ones) of
            the sampled values; `twin`, the place of an earlier parameter with the very same values, -1 where none has;
            `loaded`, 1 where transformers marked the parameter as read from a checkpoint.
        """
        names = ("mean", "std", "largest", "excess_kurtosis")
        table = np.full((len(names), len(self._place)), np.nan)
        twins = np.full(len(self._place), -1.0)
        taken, seen = self._take(), dict[bytes, int]()
        parts = [] if taken is None else np.split(taken.values.double().cpu().numpy(), np.cumsum(taken.sizes)[:-1])
        for place, values in zip([] if taken is None else taken.places.tolist(), parts, strict=True):
            std = values.std()
            kurtosis = ((values - values.mean()) ** 4).mean() / std**4 - 3.0 if std > 0 else np.nan
            table[:, place] = values.mean(), std, np.abs(values).max(), kurtosis
            if len(values) >= 16 and std > 0:
                twins[place] = seen.setdefault(values.tobytes(), place)
        twins[twins == np.arange(len(twins))] = -1
        loaded = np.zeros(len(self._place))
        for name, parameter in named_unique_parameters(self._model):
            loaded[self._place[name]] = float(getattr(parameter, "_is_hf_initialized", False))
        return {**dict(zip(names, table, strict=True)), "twin": twins, "loaded": loaded}

    def _take(self, gradients: bool = False) -> _Values | None:
        parameters = [
            (name, p)
            for name, p in named_unique_parameters(self._model)
            if name in self._place
            and p.requires_grad
            and p.numel()
            and p.is_floating_point()
            and not isinstance(p, DTensor)
            and not p.is_meta
        ]
        if not parameters:
            return None
        device = parameters[0][1].device
        values = [self._sampled(name, p) for name, p in parameters]
        taken = None
        if gradients:
            found = [
                torch.zeros(len(value), device=device) if p.grad is None else self._sampled(name, p.grad)
                for (name, p), value in zip(parameters, values, strict=True)
            ]
            taken = torch.cat([value.to(device, torch.float32) for value in found])
        places = torch.tensor([self._place[name] for name, _ in parameters])
        return _Values(
            tuple(name for name, _ in parameters),
            places,
            [len(v) for v in values],
            len(self._place),
            torch.cat([v.to(device, torch.float32) for v in values]),
            taken,
        )

    def _sampled(self, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        flat = (tensor.to_dense() if tensor.is_sparse else tensor).reshape(-1)
        if len(flat) <= SAMPLE_SIZE:
            return flat
        if name not in self._positions:
            # By size, not by name: parameters that are equal then have equal samples.
            generator = torch.Generator().manual_seed(len(flat))
            strata = torch.arange(SAMPLE_SIZE) + torch.rand(SAMPLE_SIZE, generator=generator, dtype=torch.float64)
            positions = (strata * (len(flat) / SAMPLE_SIZE)).long().clamp(max=len(flat) - 1)
            self._positions[name] = positions.to(flat.device)
        return flat.index_select(0, self._positions[name])


@dataclass(frozen=True, eq=False)
class _Values:
    """Sampled values of all parameters end to end.

    Args:
        names: Of the parameters.
        places: Their places in the vectors that are handed out.
        sizes: Number of values of each.
        width: Length of those vectors.
        values: All of them, float32.
        gradients: Likewise, zeros where there is no gradient; None where they were not taken.
    """

    names: tuple[str, ...]
    places: Tensor
    sizes: list[int]
    width: int
    values: Tensor
    gradients: Tensor | None

    def spread(self, numbers: Tensor) -> Tensor:
        """Sum `numbers`, one for each value, over each parameter: (width), NaN at places without values."""
        segments = torch.repeat_interleave(self.places, torch.tensor(self.sizes)).to(numbers.device)
        result = torch.zeros(self.width, device=numbers.device).index_add_(0, segments, numbers)
        present = torch.zeros(self.width, dtype=torch.bool)
        present[self.places] = True
        return torch.where(present.to(numbers.device), result, torch.nan)
