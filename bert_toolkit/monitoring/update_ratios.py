"""How far the optimizer's step really moved every parameter, relative to its size."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.cpu_statistics import threads_that_run
from bert_toolkit.monitoring.parameter_roles import (
    ParameterInfo,
    Role,
    WatchedParameters,
    positions_by_block,
)
from bert_toolkit.monitoring.tensor_statistics import (
    absolute_rows,
    local_tensor,
    summed,
    update_rows,
    update_statistics,
)

Mode = Literal["exact", "sampled"]
SAMPLE_SIZE = 4096

# Where update ratios of healthy trainings with Adam lie at their working learning rate, by role. Matrices: cs231n's
# rule of thumb of 1e-3, one decade each way. Embeddings: rows that a batch does not mention hardly move. Norms:
# weights near 1 move by the learning rate. Biases and adapters start at or near zero, so early ratios are large.
# A small BERT at 2e-4 shows 7e-4...1e-3 for matrices, 2e-5 for norms and 2e-2...6e-2 for biases.
TYPICAL_RATIOS: dict[Role, tuple[float, float]] = {
    "matrix": (1e-4, 1e-2),
    "embedding": (1e-5, 1e-2),
    "norm": (1e-6, 1e-3),
    "bias": (1e-4, 1e-1),
    "adapter": (1e-4, 1e-1),
}


@dataclass(frozen=True, eq=False)
class UpdateRatioRecord:
    """How far one optimizer step moved each parameter.

    Args:
        step: The optimizer step, 1 for the first (as Trainer logs it).
        names: Trainable parameters in the model's order; the arrays below align with it.
        ratio: `update_norm / parameter_norm`; 0 where nothing moved, NaN where a parameter of norm zero moved
            (LoRA's B and fresh biases have no ratio at their first step) or where the step was skipped.
        update_norm: ||after - before||.
        parameter_norm: ||before||.
        changed_share: Share of elements that the step changed; low in pure bf16, where small updates round away.
        skipped: The step was skipped because gradients overflowed; the update is then NaN, not zero.
        learning_rate: Largest learning rate of the step, NaN where unknown.
        peak_learning_rate: The largest that the schedule reaches, as far as the optimizer tells or was seen so far.
    """

    step: int
    names: tuple[str, ...]
    ratio: np.ndarray
    update_norm: np.ndarray
    parameter_norm: np.ndarray
    changed_share: np.ndarray
    skipped: bool = False
    learning_rate: float = math.nan
    peak_learning_rate: float = math.nan

    @property
    def nothing_can_move(self) -> bool:
        """Whether the learning rate is 0, as at the first step of a warm-up: the ratios say nothing then."""
        return self.learning_rate == 0


def update_ratio_scalars(
    record: UpdateRatioRecord, parameters: dict[str, ParameterInfo], per_parameter: bool = False
) -> dict[str, float]:
    """Return the scalars of one record for a tracker.

    Args:
        record: What to report.
        parameters: From the monitor that made the record.
        per_parameter: Report each parameter instead of each block.

    Returns:
        `update_ratio/<block>`: the ratio of the block's weights taken as one vector (its biases and norms only
        where it has nothing else), and `update_ratio/all/{largest,median}` of these. Values that are not finite are
        left out; a skipped step gives none, and neither does one with a learning rate of 0.
    """
    if record.nothing_can_move:
        return {}
    if per_parameter:
        groups = {name: np.array([i]) for i, name in enumerate(record.names)}
    else:
        groups = positions_by_block(record.names, parameters)
    scalars = {}
    for group, at in groups.items():
        parameter_norm = np.linalg.norm(record.parameter_norm[at])
        if parameter_norm > 0:
            scalars[f"update_ratio/{group}"] = float(np.linalg.norm(record.update_norm[at]) / parameter_norm)
    scalars = {key: value for key, value in scalars.items() if np.isfinite(value)}
    if not scalars:
        return {}
    ratios = list(scalars.values())
    return {
        "update_ratio/all/largest": max(ratios),
        "update_ratio/all/median": float(np.median(ratios)),
        **scalars,
    }


class UpdateRatioMonitor:
    """A monitor that measures ||after - before|| / ||before|| around `optimizer.step()`, for any optimizer.

    `mode="exact"` copies the trainable parameters in `before_step` and frees the copy in `after_step`; with `keep` its
    memory serves the next step as well, since on CPUs fresh pages cost several times what copying does.
    `mode="sampled"` copies a fixed random subset of at most 4,096 elements of each tensor. On Gaussian values the
    sampled ratio has a relative standard deviation of 1.6 %; where only a share s of the elements moves (rows of an
    embedding) about sqrt(1 / (4096 s)) / 2. Norms of sampled mode are scaled up to the whole tensor.

    Call both methods on every rank; sharded parameters cost one collective.

    Args:
        model: The module that is trained; DDP, FSDP2 and `torch.compile` wrappers are seen through.
        mode: `"exact"` or `"sampled"`.
        seed: Seed of the sampled positions.

    Attributes:
        keep: Hold the memory of the copy, as large as the trainable parameters, until a step without `keep`.

    Raises:
        InputError: `mode` is unknown or no parameter of the model is trainable.

    Examples:
        >>> model, inputs = torch.nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> monitor = UpdateRatioMonitor(model)
        >>> model(inputs).square().sum().backward()
        >>> monitor.before_step()
        >>> optimizer.step()
        >>> record = monitor.after_step(1)
        >>> record.names, record.ratio.tolist()  # a learning rate of 0 moves nothing
        (('weight',), [0.0])
    """

    def __init__(self, model: nn.Module, mode: Mode = "exact", seed: int = 0):
        if mode not in get_args(Mode):
            raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.model = model
        self.mode = mode
        self.seed = seed
        self._watched = WatchedParameters(model, "update ratio")
        self.keep = False
        self._before: list[tuple[str, nn.Parameter, Tensor]] = []
        self._kept: dict[str, Tensor] = {}
        self._rate = self._peak = math.nan
        self._positions: dict[tuple[str, int], Tensor] = {}  # by name and size: a parameter may be replaced

    @property
    def parameters(self) -> dict[str, ParameterInfo]:
        """The description of every parameter by name, with those that were added or removed since the first step."""
        return self._watched.described

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the parameters that do not require a gradient."""
        return self._watched.frozen

    @torch.no_grad()
    def before_step(self, optimizer: Any = None) -> None:
        """Remember the parameters; call it right before `optimizer.step()`.

        Args:
            optimizer: What takes the step, to record its learning rate.
        """
        self.note_rates(optimizer)
        with threads_that_run():
            self._before = [
                (name, parameter, self._copy_of(name, self.compared_values(name, parameter)))
                for name, parameter in self._watched.now()
            ]
        self._kept = {}

    def _copy_of(self, name: str, values: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype, kept.device) != (values.shape, values.dtype, values.device):
            return values.clone()
        return kept.copy_(values)

    def note_rates(self, optimizer: Any) -> None:
        """Remember the learning rate of the step.

        Args:
            optimizer: What takes the step; anything without parameter groups gives none.
        """
        self._rate, self._peak = _rates(optimizer, self._peak)

    def forget(self) -> None:
        """Free the remembered parameters without measuring."""
        self._before = []

    @torch.no_grad()
    def after_step(self, step: int) -> UpdateRatioRecord:
        """Compare with the remembered parameters and free them; call it before `zero_grad()`.

        Args:
            step: Number to record, counting from 1.

        Returns:
            The record of this step.

        Raises:
            InputError: `before_step` was not called for this step.
        """
        if not self._before:
            raise InputError("after_step() needs before_step() right before optimizer.step() of the same step")
        names, parameters, before = zip(*self._before, strict=True)
        self._before = []
        after = [self.compared_values(n, p) for n, p in zip(names, parameters, strict=True)]
        rows = update_rows(parameters, after, before).read()
        if self.keep and self.mode == "exact":
            self._kept = {n: copy for n, copy in zip(names, before, strict=True) if copy.device.type == "cpu"}
        del before
        moved = rows[..., 2].any()
        skipped = not moved and not self._gradients_are_finite(parameters)
        return self.record(step, names, [p.numel() for p in parameters], rows, skipped)

    def record(
        self, step: int, names: tuple[str, ...], sizes: Sequence[int], rows: np.ndarray, skipped: bool = False
    ) -> UpdateRatioRecord:
        """Turn rows of all ranks into a record.

        Args:
            step: Number to record.
            names: Of the parameters.
            sizes: Elements of each whole parameter.
            rows: (ranks, parameters, 4), see `update_rows`.
            skipped: The step was skipped because gradients overflowed.

        Returns:
            The record.
        """
        update_norm, parameter_norm, changed_share = update_statistics(rows)
        if self.mode == "sampled":
            scale = np.sqrt(sizes / rows[..., 0].sum(0))
            update_norm, parameter_norm = update_norm * scale, parameter_norm * scale
        if skipped:
            update_norm, changed_share = np.full_like(update_norm, np.nan), np.full_like(update_norm, np.nan)
        # A parameter of norm zero that moved has no ratio; one that did not move has ratio zero.
        ratio = np.full_like(update_norm, np.nan)
        np.divide(update_norm, parameter_norm, out=ratio, where=parameter_norm > 0)
        ratio[update_norm == 0] = 0.0
        return UpdateRatioRecord(
            step, names, ratio, update_norm, parameter_norm, changed_share, skipped, self._rate, self._peak
        )

    @staticmethod
    def _gradients_are_finite(parameters: Sequence[nn.Parameter]) -> bool:
        """Looked at only when nothing moved: to tell an overflow that a loss scaler skipped from a zero rate."""
        gradients = [summed(p.grad) for p in parameters if p.grad is not None]
        if not gradients:
            return True
        return bool(np.isfinite(absolute_rows(gradients, [local_tensor(g) for g in gradients]).read()).all())

    def compared_values(self, name: str, parameter: Tensor) -> Tensor:
        """Return the values of this rank that are compared, flat: all of them, or the sampled ones.

        Args:
            name: Of the parameter.
            parameter: The parameter, or this rank's part of it.
        """
        values = local_tensor(parameter)
        if self.mode == "exact" or values.numel() <= SAMPLE_SIZE:
            return values
        key = name, values.numel()
        if key not in self._positions:
            self._positions[key] = self._draw(name, values)
        return values.index_select(0, self._positions[key])

    def _draw(self, name: str, values: Tensor) -> Tensor:
        """One position from each of 4,096 equal strata: no repeats, and memory is read in order."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        offsets = torch.rand(SAMPLE_SIZE, generator=generator, dtype=torch.float64)
        strata = torch.arange(SAMPLE_SIZE, dtype=torch.float64) + offsets
        positions = (strata * (values.numel() / SAMPLE_SIZE)).long().clamp(max=values.numel() - 1)
        return positions.to(torch.int32 if values.numel() < 2**31 else torch.int64).to(values.device)


def _rates(optimizer: Any, seen: float) -> tuple[float, float]:
    """The largest learning rate now, and the largest of the schedule: schedulers leave it in the parameter groups."""
    rates, peaks = [], [seen]
    for group in getattr(optimizer, "param_groups", ()):
        told = [float(group[key]) for key in ("lr", "initial_lr", "max_lr") if group.get(key) is not None]
        rates += told[:1] if group.get("lr") is not None else []
        peaks += told
    finite = [peak for peak in peaks if math.isfinite(peak)]
    return max(rates, default=math.nan), max(finite, default=math.nan)
