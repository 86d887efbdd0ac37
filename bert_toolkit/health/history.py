"""What the health rules look at: statistics of the sampled steps of one run, as arrays of bounded size."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bert_toolkit.errors import InputError
from bert_toolkit.files import replaced_at_once
from bert_toolkit.health.facts import FactValue
from bert_toolkit.health.forward_statistics import ForwardStatistics
from bert_toolkit.health.settings import RunSettings
from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.parameter_roles import describe_parameters, named_unique_parameters, whole_shape
from bert_toolkit.monitoring.record_file import read_arrays
from bert_toolkit.monitoring.update_ratios import UpdateRatioRecord

LONGEST = 256


@dataclass(frozen=True, eq=False)
class HealthSample:
    """One sampled optimizer step.

    Args:
        gradients: Its gradient statistics.
        updates: Its update ratios.
        learning_rates: Parameter name -> learning rate of this step, for parameters that the optimizer holds.
        forward: Its forward passes.
        logged_loss: The loss that the training loop reported last, for models that return none; NaN if none.
        facts: Further numbers of this step by name, beside those of `forward`: scalars, or vectors whose entries
            belong to `HealthHistory.places`.
    """

    gradients: GradientFlowRecord
    updates: UpdateRatioRecord
    learning_rates: dict[str, float]
    forward: ForwardStatistics
    logged_loss: float = math.nan
    facts: Mapping[str, FactValue] = field(default_factory=dict)


class _Column:
    """An array over the samples, `(samples,)` or `(samples, parameters)`, stored with room to grow."""

    def __init__(self, per_parameter: bool = False, dtype: Any = np.float64):
        self.per_parameter = per_parameter
        self.dtype = dtype

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, history: "HealthHistory", owner: type) -> np.ndarray:
        return history._stored[self.name][: len(history)]


class HealthHistory:
    """Statistics of the sampled steps, oldest first; arrays have the shape `(samples, parameters)` or `(samples,)`.

    At most 256 samples are held: when they are full, every second one of the older half is dropped, so the recent
    part stays dense and the beginning stays in view.

    Args:
        model: The module that is trained; only names, shapes and roles are kept.
        last_step: The optimizer step at which the run will end.

    Attributes:
        names, roles, blocks: Of all parameters, in the model's order; tuples of the same length.
        count, fan, item_size: Elements of each parameter, geometric mean of its two sides (1 where it is not a
            matrix), bytes per element; shape `(parameters,)`.
        is_matrix, in_layer: It is a matrix of more than a few elements, it is in a layer of a stack.
        bias_of: Position of the bias that belongs to a weight, -1 where there is none.
        stacks: For each stack of layers the positions of its parameters, shape `(kinds, layers)`, lowest layer first;
            a kind is what does the same and has the same shape in every layer.
        initializer_range: Standard deviation that the model's config names for fresh weights, None where it does not.
        step: Optimizer step. clip_coefficient: what clipping multiplied gradients by. skipped: the loss scaler
            skipped the step. loss, loss_nonfinite, classes, top_share, identical_inputs, masked_share,
            integer_labels, several_losses: see `ForwardStatistics`. prior_loss: entropy in nats of the labels, what a
            model that knows nothing but their frequencies would score, estimated from those so far; NaN where labels
            are not one class per example.
        gradient: Root mean square before clipping, NaN where there is no gradient. zero_share: of its elements.
        ratio, weight, changed_share: ||update|| / ||parameter||, root mean square of the parameter before the step,
            share of elements that changed; NaN where frozen. learning_rate: NaN where the optimizer does not hold
            the parameter. trainable, missing, nonfinite: it requires a gradient, has none, has a bad one.
        rate, gradient_norm: Largest learning rate, norm of all gradients before clipping (NaN where one was not
            finite). median_ratio, largest_ratio: of the matrices that move, NaN where none does.
        settings: How the run was set up, see `RunSettings`.
        start: What the weights were like before the first step, name of a statistic -> `(parameters,)`; empty where
            they were not looked at.
        places: Name of a fact that is a vector -> what its entries belong to (layers, heads, classes).
    """

    step = _Column(dtype=np.int64)
    clip_coefficient = _Column()
    skipped = _Column(dtype=bool)
    loss = _Column()
    loss_nonfinite = _Column(dtype=bool)
    classes = _Column(dtype=np.int64)
    top_share = _Column()
    integer_labels = _Column(dtype=bool)
    several_losses = _Column(dtype=bool)
    identical_inputs = _Column(dtype=bool)
    masked_share = _Column()
    prior_loss = _Column()
    rate = _Column()
    gradient_norm = _Column()
    median_ratio = _Column()
    largest_ratio = _Column()
    gradient = _Column(per_parameter=True)
    zero_share = _Column(per_parameter=True)
    ratio = _Column(per_parameter=True)
    weight = _Column(per_parameter=True)
    changed_share = _Column(per_parameter=True)
    learning_rate = _Column(per_parameter=True)
    trainable = _Column(per_parameter=True, dtype=bool)
    missing = _Column(per_parameter=True, dtype=bool)
    nonfinite = _Column(per_parameter=True, dtype=bool)

    def __init__(self, model: nn.Module, last_step: int, settings: RunSettings | None = None) -> None:
        described = describe_parameters(model)
        tensors = dict(named_unique_parameters(model))
        self.names = tuple(described)
        self.roles = tuple(info.role for info in described.values())
        self.blocks = tuple(info.block for info in described.values())
        shapes = {name: whole_shape(parameter) for name, parameter in tensors.items()}
        self.count = np.array([shape.numel() for shape in shapes.values()])
        self.fan = np.array([math.sqrt(shape.numel()) if len(shape) > 1 else 1.0 for shape in shapes.values()])
        self.item_size = np.array([p.element_size() for p in tensors.values()])
        # Statistics of very small matrices mean little.
        self.is_matrix = np.array([role == "matrix" for role in self.roles]) & (self.fan >= 8)
        self.in_layer = np.array([".layer." in f".{block}" for block in self.blocks])
        self.stacks = _stacks(self, {name: tuple(shape) for name, shape in shapes.items()})
        position = {name: i for i, name in enumerate(self.names)}
        self.bias_of = np.array([position.get(f"{n.removesuffix('weight')}bias", -1) for n in self.names])
        spread = getattr(getattr(model, "config", None), "initializer_range", None)
        self.initializer_range: float | None = spread if isinstance(spread, float) else None
        self.last_step = last_step
        self.settings = settings or RunSettings()
        self.start: dict[str, np.ndarray] = {}
        self.places: dict[str, tuple[str, ...]] = {}
        self.evaluated_in_training_mode = False
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self._columns = {name: c for name, c in vars(HealthHistory).items() if isinstance(c, _Column)}
        self._position = {name: position for position, name in enumerate(self.names)}
        self._length = 0
        self._stored = {
            name: np.zeros((LONGEST, len(self.names)) if c.per_parameter else LONGEST, dtype=c.dtype)
            for name, c in self._columns.items()
        }
        self._stored["label_counts"] = np.zeros((LONGEST, 0))  # of all samples so far
        self._facts: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    @property
    def now(self) -> int:
        """The optimizer step of the newest sample, 0 before the first."""
        return int(self.step[-1]) if len(self) else 0

    def where(self, *roles: str) -> np.ndarray:
        """Return a mask over parameters of these roles, shape `(parameters,)`.

        Args:
            *roles: Any of `matrix`, `embedding`, `norm`, `bias`, `adapter`, `other`.
        """
        return np.array([role in roles for role in self.roles])

    def add(self, sample: HealthSample) -> None:
        """Append one sampled step.

        Args:
            sample: The step, later than those before.
        """
        if self._length == LONGEST:
            kept = np.r_[0 : LONGEST // 2 : 2, LONGEST // 2 : LONGEST]
            for array in (*self._stored.values(), *self._facts.values()):
                array[: len(kept)] = array[kept]
            self._length = len(kept)
        gradients, updates, forward = sample.gradients, sample.updates, sample.forward
        row: dict[str, Any] = {
            "step": gradients.step,
            "clip_coefficient": gradients.clip_coefficient,
            "skipped": gradients.skipped or updates.skipped,
            "loss": forward.loss if math.isfinite(forward.loss) else sample.logged_loss,
            "label_counts": self._labels_so_far(forward.label_counts),
        }
        row["prior_loss"] = _entropy(row["label_counts"])
        for name in (
            "loss_nonfinite",
            "classes",
            "top_share",
            "integer_labels",
            "several_losses",
            "identical_inputs",
            "masked_share",
        ):
            row[name] = getattr(forward, name)
        rms = gradients.norm / np.sqrt(np.maximum(gradients.count, 1))
        row["gradient"] = self._spread(gradients.names, rms)
        # A coefficient that clipping by a NaN norm destroyed says nothing about the others.
        row["gradient"] /= gradients.clip_coefficient if gradients.clip_coefficient > 0 else 1.0
        row["zero_share"] = self._spread(gradients.names, gradients.zero_share)
        row["ratio"] = self._spread(updates.names, updates.ratio)
        row["weight"] = self._spread(updates.names, updates.parameter_norm) / np.sqrt(np.maximum(self.count, 1))
        # Those that were measured and are lost are infinite here, so that NaN stands for those that were not measured.
        measured = np.isfinite(self._spread(updates.names, np.zeros(len(updates.names))))
        row["weight"][measured & ~np.isfinite(row["weight"])] = np.inf
        row["changed_share"] = self._spread(updates.names, updates.changed_share)
        rates = sample.learning_rates
        row["learning_rate"] = self._spread(tuple(rates), np.array(list(rates.values())))
        for name, members in (
            ("trainable", (*gradients.names, *gradients.missing)),
            ("missing", gradients.missing),
            ("nonfinite", gradients.nonfinite),
        ):
            row[name] = np.zeros(len(self.names), dtype=bool)
            row[name][[self._position[member] for member in members if member in self._position]] = True
        row["rate"] = max(rates.values(), default=0.0)
        finite = not (row["nonfinite"].any() or row["skipped"])
        row["gradient_norm"] = math.sqrt(np.nansum(row["gradient"] ** 2 * self.count)) if finite else math.nan
        moving = row["ratio"][self.is_matrix]
        moving = moving[moving > 0]
        row["median_ratio"] = np.median(moving) if len(moving) else math.nan
        row["largest_ratio"] = moving.max() if len(moving) else math.nan
        for name, array in self._stored.items():
            array[self._length] = row[name]
        self._add_facts({**forward.facts, **sample.facts})
        self._length += 1

    @property
    def label_counts(self) -> np.ndarray:
        """The count of each class among the labels so far, `(classes,)`; empty where labels are no classes."""
        return self.label_counts_so_far[-1] if len(self) else np.zeros(0)

    @property
    def label_counts_so_far(self) -> np.ndarray:
        """The count of each class among the labels up to each sample, `(samples, classes)`."""
        return self._stored["label_counts"][: len(self)]

    def fact(self, name: str) -> np.ndarray:
        """Return a fact of every sample, `(samples,)` or `(samples, places)`; NaN in samples that do not have it.

        Args:
            name: Name of the fact.
        """
        if name not in self._facts:
            return np.full(len(self), np.nan)
        return self._facts[name][: len(self)]

    def _add_facts(self, facts: Mapping[str, FactValue]) -> None:
        for name, value in facts.items():
            shape = (LONGEST, *np.shape(value))
            if name not in self._facts or self._facts[name].shape != shape:
                self._facts[name] = np.full(shape, np.nan)
        for name, array in self._facts.items():
            array[self._length] = facts.get(name, np.nan)

    def _spread(self, names: tuple[str, ...], values: np.ndarray) -> np.ndarray:
        """Values of these parameters at their places; a parameter that came later has none."""
        row = np.full(len(self.names), np.nan)
        known = [i for i, name in enumerate(names) if name in self._position]
        row[[self._position[names[i]] for i in known]] = np.asarray(values, dtype=float)[known]
        return row

    def _labels_so_far(self, counts: np.ndarray) -> np.ndarray:
        if len(counts) and self._stored["label_counts"].shape[1] != len(counts):
            self._stored["label_counts"] = np.zeros((LONGEST, len(counts)))
        before = self._stored["label_counts"][self._length - 1] if self._length else 0.0
        return before + counts if len(counts) else np.zeros(self._stored["label_counts"].shape[1]) + before

    def shorten(self, length: int) -> None:
        """Show only the first `length` of the samples that are stored.

        Args:
            length: Number of samples.
        """
        self._length = length

    def save(self, path: Path) -> None:
        """Write the samples to a compressed npz file, replacing it in one move.

        Args:
            path: The file; its folder is made.
        """
        arrays = {name: array[: self._length] for name, array in self._stored.items()}
        arrays["names"] = np.array(self.names)
        arrays |= {f"fact/{name}": array[: self._length] for name, array in self._facts.items()}
        arrays |= {f"start/{name}": array for name, array in self.start.items()}
        arrays["about"] = np.array(json.dumps({"settings": self.settings.as_json(), "places": self.places}))
        with replaced_at_once(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def load(self, path: Path, last_step: int) -> bool:
        """Take over the samples of a file, unless they are those of another model.

        Args:
            path: The file that `save` wrote.
            last_step: The last optimizer step that is taken over.

        Returns:
            Whether the file belongs to a model with these parameters.

        Raises:
            InputError: No such file, or a damaged one; the history is then as it was.
        """
        arrays = read_arrays(path)
        if tuple(arrays.get("names", np.array([])).ravel().tolist()) != self.names:
            return False
        counts = arrays.get("label_counts", np.zeros(0))
        samples, labels = counts.shape if counts.ndim == 2 else (0, 0)
        stored = {**self._stored, "label_counts": np.zeros((LONGEST, labels))}
        for name, column in stored.items():
            array = arrays.get(name)
            if array is None or array.shape != (samples, *column.shape[1:]) or array.dtype != column.dtype:
                raise InputError(f"{path} is damaged: {name!r} is not what was saved")
        kept = arrays["step"] <= last_step
        length = int(kept.sum())
        if length > LONGEST:
            raise InputError(f"{path} is damaged: it holds {length} samples, {LONGEST} at most are saved")
        for name, column in stored.items():
            column[:length] = arrays[name][kept]
        self._stored, self._length = stored, length
        self._load_facts(arrays, kept)
        return True

    def _load_facts(self, arrays: Mapping[str, np.ndarray], kept: np.ndarray) -> None:
        """Facts of the samples that are kept; a run goes on without those that a file lacks."""
        length = int(kept.sum())
        self._facts = {}
        for name, array in arrays.items():
            kind, _, fact = name.partition("/")
            if kind == "fact" and array.ndim in (1, 2) and len(array) == len(kept) and array.dtype.kind == "f":
                self._facts[fact] = np.full((LONGEST, *array.shape[1:]), np.nan)
                self._facts[fact][:length] = array[kept]
            elif kind == "start" and array.shape == (len(self.names),) and array.dtype.kind == "f":
                self.start[fact] = array


def _entropy(counts: np.ndarray) -> float:
    if not counts.sum() > 0:
        return math.nan
    seen, number = counts[counts > 0], counts.sum()
    shares = seen / number
    # Few labels look less varied than they are: Miller and Madow's correction.
    return float(-(shares * np.log(shares)).sum() + (len(seen) - 1) / (2 * number))


def _stacks(history: HealthHistory, shapes: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
    kinds: dict[tuple, list[int]] = defaultdict(list)
    for position, name in enumerate(history.names):
        if history.in_layer[position]:
            kinds[re.sub(r"\d+", "*", name, count=1), shapes[name]].append(position)
    stacks: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for positions in kinds.values():
        blocks = tuple(history.blocks[p] for p in positions)
        if len(set(blocks)) == len(blocks) > 1:
            stacks[blocks].append(positions)
    return [np.array(rows) for rows in stacks.values()]
