"""How large the gradient of every parameter is, right before the optimizer uses it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.guarded_hooks import GuardedHooks
from bert_toolkit.monitoring.parameter_roles import (
    ParameterInfo,
    WatchedParameters,
    positions_by_block,
)
from bert_toolkit.monitoring.tensor_statistics import (
    HostCopy,
    PendingRows,
    absolute_rows,
    absolute_statistics,
    local_norms,
    local_tensor,
    summed,
)

# Tensors up to this size carry the clip coefficient: their fp32 norms are exact to 1e-7.
_SMALL = 2**16


@dataclass(frozen=True, eq=False)
class GradientFlowRecord:
    """Statistics of |gradient| of one optimizer step, after clipping and with any loss scale removed.

    Args:
        step: The optimizer step that used these gradients, 1 for the first (as Trainer logs it).
        names: Parameters with a gradient, in the model's order; the arrays below align with it.
        count: Number of elements of each parameter.
        mean, max, std: Of |gradient|, population standard deviation; arrays of shape `(len(names),)`.
        zero_share: Share of elements whose gradient is exactly zero.
        clip_coefficient: What clipping multiplied every gradient by (<= 1), so before clipping each value was
            `value / clip_coefficient`; NaN where it could not be known.
        nonfinite: Parameters whose gradient held a NaN or an infinity; seen before clipping where the monitor
            watched the backward pass, since clipping by a NaN norm spreads it over all parameters.
        missing: Trainable parameters without a gradient.
        skipped: The loss scaler skipped this step because gradients overflowed.
    """

    step: int
    names: tuple[str, ...]
    count: np.ndarray
    mean: np.ndarray
    max: np.ndarray
    std: np.ndarray
    zero_share: np.ndarray
    clip_coefficient: float = 1.0
    nonfinite: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    skipped: bool = False

    @classmethod
    def empty(cls, step: int) -> "GradientFlowRecord":
        """Return the record of a step whose gradients could not be seen.

        Args:
            step: Number of the optimizer step.
        """
        none = np.zeros(0)
        return cls(step, (), none, none, none, none, none)

    @property
    def norm(self) -> np.ndarray:
        """The Euclidean norm of each gradient, shape `(len(names),)`."""
        return np.sqrt(self.count * (self.mean**2 + self.std**2))


def gradient_flow_scalars(
    record: GradientFlowRecord, parameters: dict[str, ParameterInfo], per_parameter: bool = False
) -> dict[str, float]:
    """Return the scalars of one record for a tracker.

    Args:
        record: What to report.
        parameters: From the monitor that made the record.
        per_parameter: Report each parameter instead of each block.

    Returns:
        `gradient_flow/{mean,max,std,zero_share}/<block>` over all elements of the block's weights (its biases and
        norms only where it has nothing else), `gradient_flow/all/{largest_mean,median_mean,max}` of these, and
        `gradient_flow/clip_coefficient`. Values that are not finite are left out, since trackers cannot draw them.
    """
    if per_parameter:
        groups = {name: np.array([i]) for i, name in enumerate(record.names)}
    else:
        groups = positions_by_block(record.names, parameters)
    statistics: dict[str, dict[str, float]] = {"mean": {}, "max": {}, "std": {}, "zero_share": {}}
    for group, at in groups.items():
        weight = record.count[at] / record.count[at].sum()
        mean = weight @ record.mean[at]
        variance = weight @ (record.std[at] ** 2 + (record.mean[at] - mean) ** 2)
        statistics["mean"][group] = mean
        statistics["max"][group] = record.max[at].max()
        statistics["std"][group] = np.sqrt(variance)
        statistics["zero_share"][group] = weight @ record.zero_share[at]
    # What is wrong anywhere shows in a few curves; trackers sort names, and these come first.
    means = list(statistics["mean"].values())
    scalars = {
        "gradient_flow/all/largest_mean": max(means, default=math.nan),
        "gradient_flow/all/median_mean": np.median(means) if means else math.nan,
        "gradient_flow/all/max": max(statistics["max"].values(), default=math.nan),
        "gradient_flow/clip_coefficient": record.clip_coefficient,
    }
    for statistic, values in statistics.items():
        scalars |= {f"gradient_flow/{statistic}/{group}": value for group, value in values.items()}
    return {key: float(value) for key, value in scalars.items() if np.isfinite(value)}


class GradientFlowMonitor:
    """A monitor that observes gradients between backward (and clipping) and `zero_grad`.

    Knows torch only. One observation reads every gradient once, makes one transfer to the host, and one
    collective where gradients are sharded (so call it on every rank). Nothing is held between observations.

    Args:
        model: The module that is trained; DDP, FSDP2 and `torch.compile` wrappers are seen through.

    Raises:
        InputError: No parameter of the model is trainable.

    Examples:
        >>> model, inputs = torch.nn.Linear(4, 2), torch.ones(3, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = GradientFlowMonitor(model)
        >>> model(inputs).square().sum().backward()
        >>> total_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        >>> record = monitor.observe(1, total_norm=total_norm, max_norm=1.0)
        >>> optimizer.step()
        >>> optimizer.zero_grad()
        >>> record.names, record.clip_coefficient < 1
        (('weight', 'bias'), True)
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._watched = WatchedParameters(model, "gradient flow")
        self._backward: _BackwardWatch | None = None

    @property
    def parameters(self) -> dict[str, ParameterInfo]:
        """The description of every parameter by name, with those that were added or removed since the first step."""
        return self._watched.described

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the parameters that do not require a gradient."""
        return self._watched.frozen

    def watch_backward(self) -> None:
        """Watch the backward passes until the next observation; call it before the forward pass of a step.

        At the end of each backward pass the norm of every gradient is taken (one read of the gradients), which
        gives the exact clip coefficient without knowing who clips, and names non-finite gradients before
        clipping can spread them. Needed only where the norm that clipping returns is out of reach, as in Trainer.
        """
        self.forget()
        self._backward = _BackwardWatch(self._watched.now())

    def forget(self) -> None:
        """Stop watching without an observation."""
        if self._backward is not None:
            self._backward.close()
            self._backward = None

    def observe(
        self,
        step: int,
        *,
        total_norm: Tensor | float | None = None,
        max_norm: float | None = None,
        loss_scale: float = 1.0,
    ) -> GradientFlowRecord:
        """Read the gradients of this step.

        Args:
            step: Number to record, counting from 1.
            total_norm: What `clip_grad_norm_` returned, the norm before clipping.
            max_norm: The limit that was given to it. Without both, and without `watch_backward`, the gradients
                are taken as not clipped.
            loss_scale: By how much gradients are still multiplied: `scaler.get_scale()` in an fp16 loop that does
                not unscale before this call, otherwise 1.

        Returns:
            The record of this step.

        Raises:
            InputError: No parameter has a gradient, e.g. when called after `zero_grad()`.
        """
        pending = self.start(total_norm=total_norm, max_norm=max_norm, loss_scale=loss_scale)
        if pending is None:
            raise InputError(
                "no trainable parameter has a gradient; call observe() after backward() and before "
                "optimizer.zero_grad()"
            )
        return pending.finish(step)

    @torch.no_grad()
    def start(
        self,
        *,
        total_norm: Tensor | float | None = None,
        max_norm: float | None = None,
        loss_scale: float = 1.0,
        backward_scale: Tensor | None = None,
    ) -> "PendingGradientFlow | None":
        """Queue the work of an observation on the device without waiting for it.

        Args:
            total_norm: As for `observe`.
            max_norm: As for `observe`; 0 where gradients may have been clipped to a limit that is not known.
            loss_scale: As for `observe`.
            backward_scale: The loss scale that was active during the watched backward pass, as a tensor
                (`scaler.scale(torch.ones(()))`).

        Returns:
            What `finish(step)` turns into a record, or None if no parameter has a gradient.
        """
        watch, self._backward = self._backward, None
        if watch is not None:
            watch.close()
        named = self._watched.now() if watch is None else watch.named
        if all(p.grad is None for _, p in named):
            return None
        names = tuple(n for n, _ in named)
        # A parameter without a gradient has a row of zeros, so that every rank sends the same number of rows.
        gradients = [None if p.grad is None else summed(p.grad) for _, p in named]
        values = [
            p.new_empty(0) if gradient is None else local_tensor(gradient)
            for (_, p), gradient in zip(named, gradients, strict=True)
        ]
        layouts = [p if gradient is None else gradient for (_, p), gradient in zip(named, gradients, strict=True)]
        return PendingGradientFlow(
            names=names,
            rows=absolute_rows(layouts, values, None if watch is None else watch.norms(names)),
            watched=watch is not None,
            total_norm=None if total_norm is None else HostCopy(_whole(total_norm)),
            max_norm=max_norm,
            loss_scale=loss_scale,
            backward_scale=None if backward_scale is None else HostCopy(backward_scale),
        )


@dataclass(eq=False)
class PendingGradientFlow:
    """An observation whose numbers may still be on their way from the device.

    Args:
        names: Trainable parameters, in the model's order.
        rows: Their numbers, those of `absolute_rows`; with a last column, the norms before clipping, where `watched`.
        watched: Whether the backward passes were watched.
        total_norm: Norm of all gradients before clipping, as clipping has returned it; None where unknown.
        max_norm: Norm to which gradients were clipped, as for `GradientFlowMonitor.start`.
        loss_scale: Factor by which the gradients that were read are still multiplied.
        backward_scale: Scale of the loss in the backward pass, None without a loss scaler.
        measured_coefficient: Gives what clipping multiplied gradients by, where it was measured.
    """

    names: tuple[str, ...]
    rows: PendingRows
    watched: bool
    total_norm: HostCopy | None
    max_norm: float | None
    loss_scale: float
    backward_scale: HostCopy | None
    measured_coefficient: Callable[[], float] | None = None

    def finish(self, step: int) -> GradientFlowRecord:
        """Wait for the numbers and record them under `step`.

        Args:
            step: Number of the optimizer step.

        Returns:
            The record; parameters without a gradient are `missing`.
        """
        rows = self.rows.read()
        present = rows[..., 0].max(0) > 0
        rows = rows[:, present]
        names = tuple(compress(self.names, present))
        count, mean, largest, std, zero_share = absolute_statistics(rows)
        mean, largest, std = (values / self.loss_scale for values in (mean, largest, std))
        # A loss scaler guards the optimizer: it skips a step with gradients that are not finite.
        scaled = self.backward_scale is not None or self.loss_scale != 1.0
        finite: np.ndarray = np.isfinite(mean + std)
        squares = count * (mean**2 + std**2)
        # Squared norms at the end of the backward pass, before clipping.
        before = (rows[..., 5] ** 2).sum(0) if self.watched else None
        finite_before = finite if before is None else np.isfinite(before)
        bad = ~finite if finite_before.all() else ~finite_before
        return GradientFlowRecord(
            step=step,
            names=names,
            count=count,
            mean=mean,
            max=largest,
            std=std,
            zero_share=zero_share,
            clip_coefficient=self._clip_coefficient(squares, before, count),
            nonfinite=tuple(compress(names, bad)),
            missing=tuple(compress(self.names, ~present)),
            skipped=scaled and not finite.all(),
        )

    def _clip_coefficient(self, after: np.ndarray, before: np.ndarray | None, count: np.ndarray) -> float:
        """What clipping multiplied gradients by, from squared norms `after` and, where watched, `before` it."""
        if self.measured_coefficient is not None:
            return self.measured_coefficient()
        if self.total_norm is not None and self.max_norm is not None:
            return min(1.0, self.max_norm / (float(self.total_norm.read()) + 1e-6))
        if before is None:
            return 1.0
        total = math.sqrt(after.sum())
        if not math.isfinite(total):
            return math.nan
        # Clipped gradients have a norm of max_norm, so anything clearly below was left alone.
        if self.max_norm is None or total < 0.99 * self.max_norm:
            return 1.0
        usable = (before > 0) & (after > 0)
        if (usable & (count <= _SMALL)).any():
            usable &= count <= _SMALL
        if not usable.any():
            return math.nan
        scale = 1.0 if self.backward_scale is None else float(self.backward_scale.read())
        coefficient = scale * math.sqrt(after[usable].sum() / before[usable].sum())
        return 1.0 if coefficient > 1.0 - 1e-6 else coefficient


def _whole(total_norm: Tensor | float) -> Tensor:
    """The norm over all ranks: what clipping returns for sharded gradients is a part on each of them."""
    return total_norm.full_tensor() if isinstance(total_norm, DTensor) else torch.as_tensor(total_norm)


class _BackwardWatch:
    """Norms of all gradients as they are at the end of the latest backward pass, before anyone clips them."""

    def __init__(self, named: list[tuple[str, nn.Parameter]]):
        self.named = named
        self._queued = False
        self._guard = GuardedHooks()
        self._norms: dict[str, Tensor] = {}
        on_gradient = self._guard(self._on_gradient)
        self._hooks = [p.register_post_accumulate_grad_hook(on_gradient) for _, p in named]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def norms(self, names: Sequence[str]) -> list[Tensor]:
        """The local norm of each gradient before clipping; 0 where none was seen."""
        self._guard.check()
        return [self._norms[name] if name in self._norms else torch.zeros(()) for name in names]

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self._queued:
            self._queued = True
            # DDP and FSDP2 put gradients in place in their own final callbacks, queued before the backward pass
            # ends; a callback queued from a final callback runs after all of these.
            engine = torch.autograd.Variable._execution_engine
            on_backward_end = self._guard(self._on_backward_end)
            engine.queue_callback(lambda: engine.queue_callback(on_backward_end))

    @torch.no_grad()
    def _on_backward_end(self) -> None:
        self._queued = False
        names = [n for n, p in self.named if p.grad is not None]
        gradients = [summed(p.grad) for _, p in self.named if p.grad is not None]
        self._norms = dict(zip(names, local_norms(gradients), strict=True))
