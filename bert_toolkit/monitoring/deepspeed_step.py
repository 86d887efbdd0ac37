"""Gradients and updates of one step under DeepSpeed, read while its optimizer steps.

DeepSpeed steps inside `backward`, one group of parameters after the other, and then frees the gradients. Hooks of
the torch optimizer see each group right before and right after its step: gradients there are those that it uses,
reduced, unscaled and clipped, and parameters are its fp32 ones. Every rank takes the rows of its own parts, and one
collective joins them.
"""

import logging
import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bert_toolkit.monitoring.deepspeed_shards import Shard, shards_of, torch_optimizer
from bert_toolkit.monitoring.gradient_flow import PendingGradientFlow
from bert_toolkit.monitoring.guarded_hooks import GuardedHooks
from bert_toolkit.monitoring.tensor_statistics import (
    HostCopy,
    gathered_rows,
    local_absolute_rows,
    local_norms,
    local_update_rows,
)
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor, UpdateRatioRecord

logger = logging.getLogger(__name__)

_ABSOLUTE, _UPDATE = 5, 4  # columns of gradients and of updates
# What the backward passes brought: its norm, whether anything came, its projection, and that of what came of it.
_NORM, _CAME, _PROJECTION, _USED, _ARRIVAL = 0, 1, 2, 3, 4
_BEGIN, _END, _ELSEWHERE, _OWN = 4, 5, 6, 7  # which part of the parameter this is, and whether its values are others
_PROJECTED = 4096  # elements of each gradient


class DeepSpeedStep:
    """Hooks of one sampled step.

    Set it up before the forward pass, `close` it once DeepSpeed has stepped, then `gather` on every rank.

    Args:
        model: The module that is trained.
        optimizer: Accelerate's wrapper of the optimizer.
        compares: Look whether what DeepSpeed steps is what the model computes with; once in a training is enough.

    Attributes:
        learning_rates: Parameter name -> learning rate of this step.
        gradients: Once gathered, what `finish(step)` turns into a record.
    """

    def __init__(self, model: nn.Module, optimizer: Any, compares: bool = True) -> None:
        self.gradients: PendingGradientFlow | None = None
        self._engine, self._inner = optimizer.optimizer, torch_optimizer(optimizer)
        self._shards = shards_of(model, optimizer)
        self._reads_gradients, self._compares = False, compares
        self._elsewhere: dict[int, Tensor] = {}
        self._monitors: Sequence[UpdateRatioMonitor] = ()
        rates = [float(group["lr"]) if "lr" in group else math.nan for group in self._inner.param_groups]
        self.learning_rates = {
            shard.name: math.nan if rates[shard.group] is None else float(rates[shard.group]) for shard in self._shards
        }
        # Where DeepSpeed tells no norm, the coefficient shows in what clipping makes of the gradients.
        self._projects = self._engine is self._inner
        self._signs: dict[int, Tensor] = {}
        self._arrivals: dict[int, Tensor] = {}
        self._rows: list[tuple[list[int], Tensor]] = []
        self._before: dict[UpdateRatioMonitor, tuple[list[int], list[Tensor]]] = {}
        self._moves: dict[UpdateRatioMonitor, list[tuple[list[int], Tensor]]] = {}
        self._updates: dict[UpdateRatioMonitor, np.ndarray] = {}
        self._total_norm: Tensor | None = None
        self._has_stepped = False
        self._guard = GuardedHooks()
        self._handles: list[Any] = [
            self._inner.register_step_pre_hook(self._guard(self._before_part)),
            self._inner.register_step_post_hook(self._guard(self._after_part)),
        ]
        for place, shard in enumerate(self._shards):
            self._handles.append(shard.parameter.register_hook(self._guard(partial(self._on_gradient, place))))

    def watch(self, gradients: bool, monitors: Sequence[UpdateRatioMonitor]) -> None:
        """Say what is looked at; call it before the forward pass.

        Args:
            gradients: Take statistics of the gradients.
            monitors: What looks at updates.
        """
        self._reads_gradients, self._monitors = gradients, monitors
        for monitor in monitors:
            monitor.note_rates(self._inner)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._before = [], {}

    def check(self) -> None:
        """Raise what went wrong in a hook.

        Raises:
            Exception: Whatever it was.
        """
        self._guard.check()

    @torch.no_grad()
    def gather(self) -> None:
        """Join the numbers of all ranks in one collective; every rank must call it.

        Raises:
            RuntimeError: The parts of all ranks together are not the whole of a parameter.
        """
        device = self._shards[0].parameter.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        arrivals = torch.zeros(len(self._shards), _OWN, dtype=wide, device=device)
        parts_held = [[shard.begin, shard.begin + shard.length] for shard in self._shards]
        arrivals[:, [_BEGIN, _END]] = torch.tensor(parts_held, dtype=wide, device=device)
        for place, arrival in self._arrivals.items():
            arrivals[place, :_ARRIVAL] = arrival.to(wide)
        for place, elsewhere in self._elsewhere.items():
            arrivals[place, _ELSEWHERE] = elsewhere.to(wide)
        parts = [arrivals, self._table(self._rows, _ABSOLUTE, arrivals)]
        if not self._has_stepped:  # DeepSpeed skips steps whose gradients are not finite; nothing moves
            parts[1][:, 1:] = math.nan
            parts[1][:, 0] = torch.tensor([float(shard.length) for shard in self._shards])
            self._copy([place for place, shard in enumerate(self._shards) if shard.length])
            self._compare()
        parts += [self._table(self._moves.get(monitor, []), _UPDATE, arrivals) for monitor in self._monitors]
        rows = gathered_rows(torch.cat(parts, dim=1)[None])
        self._rows, self._moves, self._arrivals = [], {}, {}
        gathered = _Gathered(rows, self._shards)
        gathered.check()
        for number, monitor in enumerate(self._monitors):
            start = _OWN + _ABSOLUTE + number * _UPDATE
            self._updates[monitor] = gathered.read_columns(start, start + _UPDATE)
        if self._reads_gradients:
            self.gradients = PendingGradientFlow(
                names=tuple(shard.name for shard in self._shards),
                rows=gathered,  # type: ignore[arg-type]
                watched=True,
                total_norm=None,
                max_norm=None,
                loss_scale=1.0,
                backward_scale=HostCopy(torch.ones(())) if self._is_scaled else None,
                measured_coefficient=self._coefficient(gathered),
            )

    def _coefficient(self, gathered: "_Gathered") -> Callable[[], float]:
        """What tells by how much clipping multiplied the gradients of this step: DeepSpeed's norm, or what came of it.

        NaN where DeepSpeed has neither a norm nor the limit where they are expected, and where it took no step.
        """
        if self._projects:
            return gathered.coefficient
        limit, norm = getattr(self._engine, "clip_grad", None), self._total_norm
        if not self._has_stepped:
            return lambda: math.nan
        if limit is not None and not limit > 0:
            return lambda: 1.0
        if limit is None or norm is None:
            _tell_once(self._engine)
            return lambda: math.nan
        total = HostCopy(norm)
        return lambda: min(1.0, float(limit) / (float(total.read()) + 1e-6))

    def update(self, monitor: UpdateRatioMonitor, step: int) -> UpdateRatioRecord:
        """Return how far the step moved the parameters.

        Args:
            monitor: One of those of `watch`.
            step: Number to record.
        """
        names, sizes = zip(*((shard.name, shard.size) for shard in self._shards), strict=True)
        skipped = self._is_scaled and not self._has_stepped
        return monitor.record(step, names, sizes, self._updates[monitor], skipped)

    @property
    def _is_scaled(self) -> bool:
        """A loss scaler skips steps whose gradients overflow."""
        return self._shards[0].parameter.dtype == torch.float16

    def _table(self, found: list[tuple[list[int], Tensor]], columns: int, like: Tensor) -> Tensor:
        table = like.new_zeros(len(self._shards), columns)
        for places, rows in found:
            table[places] = rows.to(table)
        return table

    @torch.no_grad()
    def _on_gradient(self, place: int, gradient: Tensor) -> None:
        """One micro-batch's gradient of one parameter, on this rank only; whole, before it is reduced."""
        if not self._reads_gradients:
            return
        norm = local_norms([gradient])[0].to(gradient.device)
        projection = self._project(gradient) if self._projects else torch.zeros_like(norm)
        arrival = torch.stack([norm, torch.ones_like(norm), projection.to(norm), torch.zeros_like(norm)])
        known = self._arrivals.get(place)
        self._arrivals[place] = arrival if known is None else known + arrival

    @torch.no_grad()
    def _before_part(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        now = {id(p) for group in optimizer.param_groups for p in group["params"]}
        norm = getattr(self._engine, "_global_grad_norm", None)
        self._total_norm = None if norm is None else torch.as_tensor(norm).detach().clone()
        stepping = [place for place, shard in enumerate(self._shards) if id(shard.holder) in now]
        places = [place for place in stepping if self._shards[place].length]
        if self._compares:
            self._elsewhere |= {place: self._shards[place].is_elsewhere() for place in places}
        if self._reads_gradients and places:
            gradients = [self._shards[place].gradient() for place in places]
            self._rows.append((places, local_absolute_rows(gradients)))
        if self._reads_gradients and self._projects:
            for place in stepping:
                if (gradient := self._shards[place].parameter.grad) is not None:
                    arrival = self._arrivals.setdefault(place, gradient.new_zeros(_ARRIVAL, dtype=torch.float64))
                    arrival[_USED] = self._project(gradient)
        self._copy(places)

    @torch.no_grad()
    def _after_part(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._has_stepped = True
        self._compare()

    def _copy(self, places: list[int]) -> None:
        for monitor in self._monitors:
            shards = [self._shards[place] for place in places]
            copies = [monitor.compared_values(shard.name, shard.values()).clone() for shard in shards]
            self._before[monitor] = places, copies

    def _compare(self) -> None:
        before, self._before = self._before, {}
        for monitor, (places, copies) in before.items():
            shards = [self._shards[place] for place in places]
            after = [monitor.compared_values(shard.name, shard.values()) for shard in shards]
            if after:
                self._moves.setdefault(monitor, []).append((places, local_update_rows(after, copies)))

    def _project(self, gradient: Tensor) -> Tensor:
        """Onto fixed random signs: summing over batches and averaging over ranks may be done before or after it."""
        flat = gradient.detach().reshape(-1)
        chosen = flat[:: max(len(flat) // _PROJECTED, 1)].double()
        if len(chosen) not in self._signs:
            generator = torch.Generator().manual_seed(len(chosen))
            signs = torch.randint(0, 2, (len(chosen),), generator=generator).double() * 2 - 1
            self._signs[len(chosen)] = signs.to(chosen.device)
        return chosen @ self._signs[len(chosen)]


_TOLD: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _tell_once(engine: Any) -> None:
    """Say it once in a training, in one of its processes."""
    if engine not in _TOLD and torch.distributed.get_rank() == 0:
        logger.warning(
            "clip_coefficient is not recorded: DeepSpeed's %s does not tell the norm or the limit of its gradients as "
            "version 0.19 does; gradients are recorded as they are after clipping",
            type(engine).__name__,
        )
    _TOLD.add(engine)


class _Gathered:
    """The joined numbers, on their way to the host."""

    def __init__(self, rows: Tensor, shards: Sequence[Shard]) -> None:
        self._copy = HostCopy(rows)
        self._names = [shard.name for shard in shards]
        self._sizes = np.array([shard.size for shard in shards])

    def check(self) -> None:
        """Find out whether the parts of all ranks, one after the other, are each parameter.

        Raises:
            RuntimeError: They leave something out, overlap, or hold other values than the model.
        """
        table = self._copy.read()
        for place, (name, size) in enumerate(zip(self._names, self._sizes, strict=True)):
            parts = sorted((begin, end) for begin, end in table[:, place, [_BEGIN, _END]] if end > begin)
            ends = [0.0, *(end for _, end in parts)]
            if [begin for begin, _ in parts] != ends[:-1] or ends[-1] != size:
                told = ", ".join(f"{begin:.0f} to {end:.0f}" for begin, end in parts)
                raise RuntimeError(
                    f"the parts of {name} that DeepSpeed's processes hold ({told or 'none'}) are not the whole "
                    f"parameter, which has {size} elements; version 0.19 is expected"
                )
        elsewhere = np.flatnonzero(table[..., _ELSEWHERE].any(axis=0))
        if len(elsewhere):
            raise RuntimeError(
                f"what DeepSpeed steps for {self._names[elsewhere[0]]} are not the values that the model computes "
                "with; version 0.19 is expected, and weights must be loaded by its engine"
            )

    def read(self) -> np.ndarray:
        """Rows of gradients and, last, norms before clipping; zeros where no gradient came on any rank.

        Raises:
            RuntimeError: A gradient came, and DeepSpeed's optimizer did not step all parts of the parameter.
        """
        table = self._copy.read()
        rows = np.concatenate([table[..., _OWN : _OWN + _ABSOLUTE], table[..., _NORM : _NORM + 1]], axis=-1)
        came, counts = table[..., _CAME].max(0) > 0, rows[..., 0].sum(0)
        if len(wrong := np.flatnonzero(came & (counts != self._sizes))):
            raise RuntimeError(
                f"{self._names[wrong[0]]} got a gradient, and DeepSpeed's optimizer stepped {counts[wrong[0]]:.0f} of "
                f"its {self._sizes[wrong[0]]} elements; version 0.19 is expected"
            )
        rows[:, ~came] = 0.0
        return rows

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        """Rows of an update."""
        return self._copy.read()[..., start:stop]

    def coefficient(self) -> float:
        """What clipping multiplied gradients by, the least squares of all projections; NaN where none is there."""
        table = self._copy.read()
        before, after = table[..., _PROJECTION].mean(0), table[..., _USED].mean(0)
        size = before @ before
        if not (math.isfinite(size) and size > 0 and np.isfinite(after).all()):
            return math.nan
        coefficient = float(before @ after / size)
        return 1.0 if coefficient > 1.0 - 1e-6 else coefficient
