"""One reading of gradients and parameters for each sampled optimizer step, shared by all who observe that step."""

import logging
import weakref
from typing import Any, Literal

from torch import Tensor, nn

from bert_toolkit.monitoring.arriving_gradients import ArrivingGradients, Moved, steps_inside_backward
from bert_toolkit.monitoring.deepspeed_shards import is_deepspeed
from bert_toolkit.monitoring.deepspeed_step import DeepSpeedStep
from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor, GradientFlowRecord, PendingGradientFlow
from bert_toolkit.monitoring.parameter_roles import ParameterInfo, learning_rates, unwrap
from bert_toolkit.monitoring.update_ratios import Mode, UpdateRatioMonitor, UpdateRatioRecord

logger = logging.getLogger(__name__)

# What an observer wants to know of updates; `any` takes what another observer measures, or the cheap sample.
UpdateSampling = Literal["exact", "sampled", "any"]

_EVERY_STEP = 3  # steps read in a row: more follow, and memory is kept; the first two of a run may be all


class StepReader:
    """A reader of a model's gradients and updates, once per step however many observers want them.

    Observers of one model get the same reader from `StepReader.of(model)` and keep it for as long as they observe;
    it goes with the last of them. Between two readings it holds no tensor but the positions of sampled updates, and,
    where every step is read, the memory of one copy of the trainable parameters.

    Args:
        model: The module that is trained; DDP, FSDP2 and `torch.compile` wrappers are seen through.

    Raises:
        InputError: No parameter of the model is trainable.

    Examples:
        >>> model, inputs = torch.nn.Linear(4, 2), torch.ones(3, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> reader = StepReader.of(model)
        >>> reading = reader.begin(1)
        >>> reading.join(gradients=True, updates="exact")
        >>> model(inputs).square().sum().backward()
        >>> reading.before_step(optimizer)
        >>> optimizer.step()
        >>> reading.after_step()
        >>> reading.gradients.names == reading.updates().names
        True
        >>> reading.leave()
    """

    def __init__(self, model: nn.Module):
        self.model = unwrap(model)
        self.gradient_flow = GradientFlowMonitor(self.model)
        self._update_ratios: dict[tuple[Mode, int], UpdateRatioMonitor] = {}
        self._open: weakref.ref[StepReading] | None = None
        self._last_step = self._in_a_row = 0
        self._steps_inside_backward = False
        self._leaves_gradients = False  # the optimizer, as a sample has shown
        self._has_told_batches = False
        self._has_compared = False  # what DeepSpeed steps with what the model holds

    @staticmethod
    def of(model: nn.Module) -> "StepReader":
        """Return the reader that all observers of this model share.

        Args:
            model: The module that is trained, wrapped or not.

        Returns:
            The reader that another observer of the model holds, else a new one.

        Raises:
            InputError: No parameter of the model is trainable.
        """
        model = unwrap(model)
        held = _READERS.get(model)
        reader = None if held is None else held()
        if reader is None:
            reader = StepReader(model)
            _READERS[model] = weakref.ref(reader)
        return reader

    @property
    def parameters(self) -> dict[str, ParameterInfo]:
        """The description of every parameter by name, those included that were added or removed while training."""
        return self.gradient_flow.parameters

    def begin(self, step: int, optimizer: Any = None) -> "StepReading":
        """Return the reading of optimizer step `step`; the first observer that asks opens it.

        Args:
            step: Number of the step, 1 for the first.
            optimizer: What will take the step; needed where it does so inside the backward pass, as with DeepSpeed.

        Returns:
            The reading; ask before the forward pass, and say with `join` what you want of it.
        """
        reading = None if self._open is None else self._open()
        if reading is None or reading.step != step:
            self.forget()
            self._in_a_row = self._in_a_row + 1 if step == self._last_step + 1 else 1
            self._last_step = step
            self._steps_inside_backward |= steps_inside_backward(optimizer)
            reading = StepReading(self, step, optimizer)
            self._open = weakref.ref(reading)
        return reading

    def forget(self) -> None:
        """Free what a step that was interrupted has left."""
        reading = None if self._open is None else self._open()
        if reading is not None:
            reading.close()
        self.gradient_flow.forget()
        for monitor in self._update_ratios.values():
            monitor.forget()
        self._open = None

    def _update_monitor(self, mode: Mode, seed: int) -> UpdateRatioMonitor:
        key = mode, seed
        if key not in self._update_ratios:
            self._update_ratios[key] = UpdateRatioMonitor(self.model, mode, seed)
            self._update_ratios[key]._watched = self.gradient_flow._watched  # one description for all
        return self._update_ratios[key]


class StepReading:
    """What the observers of one optimizer step read together; every method may be called by each of them.

    Args:
        reader: Made by `StepReader.begin`.
        step: Number of the step, 1 for the first.
        optimizer: See `StepReader.begin`.

    Attributes:
        model: The module that is trained, unwrapped.
        steps_inside_backward: The optimizer steps inside the backward pass and leaves no gradient: gradients are read
            as they arrive, and parameters are compared with those before the forward pass.
        came_too_late: That was found out in `before_step` only, or may be so; nothing is known of this step.
        learning_rates: Parameter name -> learning rate of this step, for parameters that the optimizer holds; empty
            before `before_step` and where it was given no optimizer.
    """

    def __init__(self, reader: StepReader, step: int, optimizer: Any = None):
        self.step = step
        self.model = reader.model
        self.learning_rates: dict[str, float] = {}
        self._reader = reader
        self._observers = 0
        self._wants_gradients = False
        self._wants_updates: list[tuple[UpdateSampling, int]] = []
        self._read_before = self._has_gathered = False
        self._gradient_failure: Exception | None = None
        self._update_failure: Exception | None = None
        self._pending: PendingGradientFlow | None = None
        self._gradients: GradientFlowRecord | None = None
        self._copies: dict[tuple[Mode, int], UpdateRatioMonitor] = {}
        self._updates: dict[tuple[Mode, int], UpdateRatioRecord] = {}
        self._engine: DeepSpeedStep | None = None
        if is_deepspeed(optimizer):
            self._engine = DeepSpeedStep(self.model, optimizer, compares=not reader._has_compared)
        self.steps_inside_backward = reader._steps_inside_backward and self._engine is None
        self.came_too_late = False
        self._arriving: ArrivingGradients | None = None
        in_doubt = self._engine is None and not reader._leaves_gradients
        self._moved = Moved(reader.gradient_flow._watched.now() if in_doubt else [])

    def close(self) -> None:
        """Leave no hook behind."""
        if self._engine is not None:
            self._engine.close()
        if self._arriving is not None:
            self._arriving.close()

    def join(self, gradients: bool = False, updates: UpdateSampling | None = None, seed: int = 0) -> None:
        """Say what one observer wants; call it once for each, before the forward pass.

        Args:
            gradients: Statistics of the gradients.
            updates: `"exact"`, `"sampled"`, or `"any"` for what other observers measure anyway, else a sample.
            seed: Seed of the sampled positions.
        """
        self._observers += 1
        if gradients and not self._wants_gradients:
            self._wants_gradients = True
            if self.steps_inside_backward:
                self._arriving = ArrivingGradients(self._reader.gradient_flow._watched.now())
            elif self._engine is None:
                self._reader.gradient_flow.watch_backward()
        if updates is not None:
            self._wants_updates.append((updates, seed))
        if self._engine is not None:
            monitors = [self._reader._update_monitor(*needed) for needed in self._needed()]
            self._engine.watch(self._wants_gradients, monitors)
        elif self.steps_inside_backward:
            self._copy(None)

    def leave(self) -> None:
        """Say that one observer is done; with the last of them everything that was read is freed."""
        self._observers -= 1
        if self._observers == 0:
            self._reader.forget()

    def before_step(
        self,
        optimizer: Any = None,
        max_norm: float | None = None,
        backward_scale: Tensor | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        """Read gradients and copy parameters; call it after clipping, right before the optimizer's step.

        Args:
            optimizer: What will take the step, for its learning rates.
            max_norm: Limit to which gradients were clipped, None if they were not, 0 where it is not known.
            backward_scale: Loss scale of the backward pass, as a tensor; see `GradientFlowMonitor.start`.
            loss_scale: By how much gradients are still multiplied.
        """
        if self._read_before:
            return
        self._read_before = True
        if self._engine is not None:  # it has stepped, and was read meanwhile
            self.learning_rates = self._engine.learning_rates
            self._engine.close()
            try:
                self._engine.check()
            except Exception as error:
                self._gradient_failure = self._update_failure = error
            return
        self.learning_rates = learning_rates(self.model, optimizer)
        if self.steps_inside_backward:
            try:
                self._pending = None if self._arriving is None else self._arriving.take()
            except Exception as error:
                self._gradient_failure = error
            self._tell_batches()
            for monitor in self._copies.values():
                monitor.note_rates(optimizer)
            return
        if all(p.grad is None for _, p in self._reader.gradient_flow._watched.now()):
            # At a rate of zero, as at the start of a warm-up, nothing tells yet.
            rates = [float(group.get("lr") or 0.0) for group in getattr(optimizer, "param_groups", ())]
            self.steps_inside_backward = self._reader._steps_inside_backward = bool(self._moved)
            self.came_too_late = bool(self._moved) or (bool(rates) and not any(rates))
            if self.came_too_late:
                self._reader.gradient_flow.forget()
                return
        else:
            self._reader._leaves_gradients = True
        if self._wants_gradients:
            try:
                self._pending = self._reader.gradient_flow.start(
                    max_norm=max_norm, loss_scale=loss_scale, backward_scale=backward_scale
                )
            except Exception as error:  # told to those who want gradients; the others go on
                self._gradient_failure = error
        self._copy(optimizer)

    def _tell_batches(self) -> None:
        batches = 0 if self._arriving is None else self._arriving.batches
        if batches > 1 and not self._reader._has_told_batches:
            self._reader._has_told_batches = True
            logger.warning(
                "the optimizer steps inside the backward pass, so for each of the %d batches of a step: recorded are "
                "the gradients of the last batch, and the updates of all batches together",
                batches,
            )

    def _copy(self, optimizer: Any) -> None:
        """Copy parameters for all observers, and free copies that another observer's serve as well."""
        try:
            needed = self._needed()
            for key in set(self._copies).difference(needed):
                self._copies.pop(key).forget()
            for key in needed:
                if key not in self._copies:
                    monitor = self._reader._update_monitor(*key)
                    monitor.keep = self._reader._in_a_row >= _EVERY_STEP
                    monitor.before_step(optimizer)
                    self._copies[key] = monitor
        except Exception as error:
            self._fail_updates(error)

    def gather(self) -> None:
        """Join what the processes have read of a step inside the backward pass; all of them must call it."""
        if self._engine is not None and not self._has_gathered:
            self._has_gathered = self._reader._has_compared = True
            try:
                self._engine.gather()
                self._pending = self._engine.gradients
            except RuntimeError as error:  # on every process alike
                self._gradient_failure = self._update_failure = error

    def after_step(self) -> None:
        """Compare the parameters with their copies and free these; call it after the step, before `zero_grad()`.

        Only those who joined for updates may call it: where parameters are sharded, every process must.
        """
        if self._engine is not None:
            for needed in self._needed() if self._update_failure is None else ():
                if needed not in self._updates:
                    monitor = self._reader._update_monitor(*needed)
                    self._updates[needed] = self._engine.update(monitor, self.step)
            return
        copies, self._copies = self._copies, {}
        try:
            for key, monitor in copies.items():
                self._updates[key] = monitor.after_step(self.step)
        except Exception as error:
            self._fail_updates(error)

    def _fail_updates(self, error: Exception) -> None:
        self._update_failure = error
        for monitor in self._copies.values():
            monitor.forget()
        self._copies, self._updates = {}, {}

    def check(self, gradients: bool, updates: bool) -> None:
        """Raise what went wrong while this was read.

        Args:
            gradients: With gradients.
            updates: With updates.

        Raises:
            Exception: Whatever it was.
        """
        if gradients and self._gradient_failure is not None:
            raise self._gradient_failure
        if updates and self._update_failure is not None:
            raise self._update_failure

    @property
    def has_gradients(self) -> bool:
        """Whether a parameter had a gradient in `before_step`."""
        return self._engine is not None or self._pending is not None or self._gradients is not None

    @property
    def gradients(self) -> GradientFlowRecord | None:
        """The statistics of the gradients, once the device has sent them; None where no parameter had a gradient."""
        self.check(gradients=True, updates=False)
        if self._pending is not None:
            self._gradients, self._pending = self._pending.finish(self.step), None
        return self._gradients

    def updates(self, mode: UpdateSampling = "any", seed: int = 0) -> UpdateRatioRecord | None:
        """Return how far the step moved the parameters.

        Args:
            mode: What was asked for in `join`; an exact record serves all.
            seed: What was asked for in `join`.

        Returns:
            The record, or None before `after_step` and where nobody asked for one.

        Raises:
            Exception: What went wrong while parameters were copied or compared.
        """
        self.check(gradients=False, updates=True)
        for key, record in self._updates.items():
            if mode == "any" or key[0] == "exact" or key == (mode, seed):
                return record
        return None

    def _needed(self) -> list[tuple[Mode, int]]:
        """The fewest copies of the parameters that serve all observers."""
        if any(mode == "exact" for mode, _ in self._wants_updates):
            return [("exact", 0)]
        seeds = dict.fromkeys(seed for mode, seed in self._wants_updates if mode == "sampled")
        if self._wants_updates and not seeds:
            seeds = {0: None}
        return [("sampled", seed) for seed in seeds]


_READERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[StepReader]] = weakref.WeakKeyDictionary()
