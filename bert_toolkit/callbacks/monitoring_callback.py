"""What all monitoring callbacks share: which steps they sample, one reading of each, outputs, and resuming."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import torch
from transformers.trainer_callback import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.callbacks.live_figure import LiveFigure
from bert_toolkit.callbacks.monitored_run import MonitoredRun, length_of, tokenizer_of, trained_module
from bert_toolkit.callbacks.monitoring_output import MonitoringOutput, SubRun
from bert_toolkit.callbacks.record_views import RecordViews
from bert_toolkit.callbacks.safe_outputs import SafeOutputs
from bert_toolkit.callbacks.sampling import check_sampling
from bert_toolkit.callbacks.trainer_reporters import report_scalars, trainers_writer
from bert_toolkit.monitoring.observability import unsupported_reason
from bert_toolkit.monitoring.parameter_roles import ParameterInfo
from bert_toolkit.monitoring.record_file import Record
from bert_toolkit.monitoring.step_reading import StepReader, StepReading, UpdateSampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import Trainer

logger = logging.getLogger(__name__)


class MonitoringCallback(RecordViews, TrainerCallback, Generic[Record]):
    """The base of callbacks that look at some optimizer steps and keep a record of each.

    A subclass says with class attributes what it wants to see and fills in `measure`, and `scalars` and `draw` where
    it has something to show. The base samples steps, reads gradients and updates once for all callbacks of the model,
    writes TensorBoard, W&B, PNG files, the record file and `run.json`, and goes on where a resumed run was. Whatever
    fails is told in one warning and left out from then on; training goes on.

    | Trainer's event | what happens on a sampled step | what a subclass fills in |
    |---|---|---|
    | `on_train_begin` | records of a resumed run are read | `begin(run)` |
    | `on_step_begin` | the backward pass is watched | `before_forward(step)` |
    | `on_pre_optimizer_step` | gradients are read, parameters are copied | `before_step(reading, optimizer)` |
    | `on_optimizer_step` | parameters are compared with the copy | `after_step(reading)` |
    | `on_step_end` | the record is kept and reported | `measure(reading)`, `scalars(record)`, `draw(False)` |
    | `on_save` | the record file is written | |
    | `on_train_end` | record file and PNG files are written | `draw(True)` |

    `watch_loop` calls the same methods in a loop without Trainer.
    On other steps it does nothing.

    Args:
        every_n_steps: Distance of sampled optimizer steps. Of the first steps those of `early_steps` are sampled too.
        include_biases: Draw biases too; records always hold them.
        skip_probability: Fraction of the parameters to leave out of figures, chosen by `seed`.
        seed: Seed of that choice and of sampled positions.
        figures: Draw figures.
        per_parameter_scalars: Log a scalar per parameter instead of per block.

    Attributes:
        name: Names the record file `output_dir/monitoring/<name>.npz`.
        title: What a person calls it, for messages.
        early_steps: Steps that are sampled while they are smaller than `every_n_steps`.
        reads_gradients: Whether `reading.gradients` is wanted.
        needs_gradients: Whether nothing is observed where no parameter has a gradient before the optimizer's step.
        reads_updates: Which `reading.updates()` is wanted, see `StepReading.join`; None for none.
        record_class: Dataclass of the records, None where there is no record file; see `save_records`.
        records: What `measure` returned, oldest first; those of a resumed run included.
        parameters: Name -> `ParameterInfo`; empty before training and where nothing can be observed.

    Raises:
        InputError: `every_n_steps` is not positive or `skip_probability` lies outside [0, 1].
    """

    name: ClassVar[str]
    title: ClassVar[str]
    early_steps: ClassVar[tuple[int, ...]] = (1, 2, 5, 10, 20, 50)
    reads_gradients: ClassVar[bool] = False
    reads_updates: UpdateSampling | None = None
    needs_gradients: ClassVar[bool] = True
    record_class: ClassVar[type | None] = None

    def __init__(
        self,
        every_n_steps: int = 50,
        include_biases: bool = False,
        skip_probability: float = 0.0,
        seed: int = 0,
        figures: bool = True,
        per_parameter_scalars: bool = False,
    ):
        check_sampling(every_n_steps, skip_probability)
        self.every_n_steps = every_n_steps
        self.include_biases = include_biases
        self.skip_probability = skip_probability
        self.seed = seed
        self.figures = figures
        self.per_parameter_scalars = per_parameter_scalars
        self.records: list[Record] = []
        self.parameters: dict[str, ParameterInfo] = {}
        self._trainer: Trainer | None = None
        self._reader: StepReader | None = None
        self._reading: StepReading | None = None
        self._safe = SafeOutputs(self.title)
        self._run: MonitoredRun | None = None
        self._active = False  # on every process alike, while `_reader` is None where this one has failed
        self._sampling = False
        self._output: MonitoringOutput[Record] | None = None
        self._live: dict[str, LiveFigure] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy has settings and records, and watches a training of its own: not this model, trainer or writer."""
        return {
            **self.__dict__,
            "_trainer": None,
            "_reader": None,
            "_reading": None,
            "_run": None,
            "_output": None,
            "_live": {},
            "_safe": SafeOutputs(self.title),
            "_active": False,
            "_sampling": False,
        }

    # --- what a subclass fills in ---

    def begin(self, run: MonitoredRun) -> None:
        """Start a run whose model can be observed.

        Args:
            run: The run; `first_step` is not 0 where one is resumed.
        """

    def before_forward(self, step: int) -> None:
        """Do what is due before the forward pass of a sampled step.

        Args:
            step: Number of the step.
        """

    def check(self) -> None:
        """Raise what went wrong in hooks of this step, which must not raise within the forward pass themselves."""

    def before_step(self, reading: StepReading, optimizer: Any) -> None:
        """Do what is due right before the optimizer's step, once gradients are read.

        Args:
            reading: The reading of this step.
            optimizer: The optimizer, or Accelerate's wrapper of it.
        """

    def after_step(self, reading: StepReading) -> None:
        """Do what is due right after the optimizer's step, while gradients are still there.

        Args:
            reading: The reading of this step.
        """

    def release(self) -> None:
        """Free what `before_forward` has set up, where the step was interrupted and when the run ends."""

    def measure(self, reading: StepReading) -> Record | None:
        """Make the record of a sampled step; called on every process.

        Args:
            reading: Holds the model and what was read around the optimizer's step.

        Returns:
            The record to keep, or None for no record.

        Raises:
            NotImplementedError: A subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define measure(reading)")

    def scalars(self, record: Record) -> dict[str, float]:
        """Return what is logged of a record.

        Args:
            record: The newest record.

        Returns:
            Names, which begin with the group `<name>/`, and values; those that are not finite are left out.
        """
        return {}

    def draw(self, at_end: bool) -> "dict[str, Callable[[], Figure]]":
        """Return the figures that are due.

        Args:
            at_end: The run is over, or there is time enough for figures of the whole run.

        Returns:
            Name -> function that draws it.
        """
        return {}

    # --- attaching ---

    def attach(self, trainer: "Trainer") -> None:
        """Write to the trainer's own TensorBoard run, and to all its other reporters and `state.log_history`.

        Args:
            trainer: The trainer to follow; the callback is added to it if it is not there yet.
        """
        callbacks = trainer.callback_handler.callbacks
        if any(callback is self for callback in callbacks):
            callbacks.remove(self)
        # Ahead of the reporter that closes the writer at the end of training, but not of the one that decides about
        # logs and checkpoints, which other callbacks want to come first.
        flows = [position for position, callback in enumerate(callbacks) if isinstance(callback, DefaultFlowCallback)]
        callbacks.insert(max(flows, default=-1) + 1, self)
        self._trainer = trainer

    # --- a run, whoever runs it ---

    @property
    def wants_stop(self) -> bool:
        """Whether the step that ended last is reason to end training."""
        return False

    @property
    def is_observing(self) -> bool:
        """Whether the model of the run can be observed, and nothing has failed so far."""
        return self._reader is not None

    @property
    def is_sampling(self) -> bool:
        """Whether the step that goes on is sampled, on every process alike."""
        return self._sampling

    def start_run(self, run: MonitoredRun) -> None:
        """Find out whether the model can be observed, and read the records of a run that is resumed.

        Args:
            run: The run that begins.
        """
        self.stop_run()
        self._safe = SafeOutputs(self.title)
        self.records, self.parameters = [], {}
        for live in self._live.values():
            live.begin()
        self._active, self._sampling = True, False
        self._safe.attempt("measurements", lambda: self._start_run(run))

    def _start_run(self, run: MonitoredRun) -> None:
        self._run = run
        self._output = MonitoringOutput(self.name, self.record_class, self.figures, self._safe, run)
        self._output.write_run_record()
        reason = unsupported_reason(run.model, run.optimizer, by_trainer=run.arguments is not None)
        if reason:  # all processes agree about it at the first sampled step
            self._stop_observing(reason, of_all=True)
            return
        reader = StepReader.of(run.model)
        reader.forget()
        self._reader = reader
        self.parameters = reader.parameters
        if reader.gradient_flow.frozen:
            logger.info("%s leaves out frozen parameters: %s", self.title, ", ".join(reader.gradient_flow.frozen))
        self.records = self._output.earlier_records()
        self.begin(run)

    def open_step(self, step: int) -> None:
        """Prepare the reading of a step if it is sampled; called before its forward pass.

        Args:
            step: Number of the step, 1 for the first.
        """
        self._sampling = self._active and self.is_sampled(step)
        if self._sampling and self._reader is not None:
            self._observe(lambda: self._open_step(step))

    def _open_step(self, step: int) -> None:
        assert self._reader is not None
        reading = self._reader.begin(step, None if self._run is None else self._run.optimizer)
        reading.join(self.reads_gradients, self.reads_updates, self.seed)
        self._reading = reading
        self.before_forward(step)

    def read_before(
        self,
        optimizer: Any,
        max_norm: float | None = None,
        backward_scale: torch.Tensor | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        """Read gradients and copy parameters of a sampled step; called right before the optimizer's step.

        Args:
            optimizer: The optimizer, or Accelerate's wrapper of it.
            max_norm: See `StepReading.before_step`.
            backward_scale: See `StepReading.before_step`.
            loss_scale: See `StepReading.before_step`.
        """
        if not self._sampling:
            return
        reading = self._reading
        if reading is not None:
            self._observe(lambda: self._read_before(reading, optimizer, max_norm, backward_scale, loss_scale))
        self._agree()
        agreed = self._reading
        if agreed is not None:
            self._observe(lambda: self.before_step(agreed, optimizer))

    def _read_before(
        self,
        reading: StepReading,
        optimizer: Any,
        max_norm: float | None,
        backward_scale: torch.Tensor | None,
        loss_scale: float,
    ) -> None:
        self.check()
        reading.before_step(optimizer, max_norm, backward_scale, loss_scale)
        reading.check(self.reads_gradients, self.reads_updates is not None)
        if reading.came_too_late:
            if reading.steps_inside_backward:
                logger.warning(
                    "%s: the optimizer steps inside the backward pass; samples begin with the next", self.title
                )
        elif self.reads_gradients and self.needs_gradients and not reading.has_gradients:
            self._stop_observing(
                "no parameter has a gradient before the optimizer's step, so the optimizer or its wrapper keeps "
                "gradients elsewhere"
            )

    def _agree(self) -> None:
        """Let all processes go on or none, before what may be a collective."""
        run, failed = self._run, self._reader is None
        if run is not None and self._safe.attempt("agreement of the processes", lambda: run.any_rank(failed)):
            if not failed:
                self._stop_observing("another process has failed to measure")
            self._active = self._sampling = False

    def read_after(self) -> None:
        """Compare the parameters of a sampled step with their copy; called right after the optimizer's step."""
        if not self._sampling:
            return
        self._agree()
        if (reading := self._reading) is not None:
            self._observe(lambda: self._read_after(reading))

    def _read_after(self, reading: StepReading) -> None:
        reading.gather()
        if self.reads_updates is not None:
            reading.after_step()
        self.after_step(reading)

    def close_step(self) -> None:
        """Keep and report the record of a sampled step."""
        reading, self._reading, self._sampling = self._reading, None, False
        if reading is None or self._output is None:
            return
        record = self._observe(lambda: self.measure(reading))
        reading.leave()
        if record is None or self._reader is None:
            return
        self.parameters = self._reader.parameters
        self.records.append(record)
        self._output.write_scalars(reading.step, lambda: self.scalars(record))
        if self._output.figure_is_due(reading.step):
            self._draw(reading.step)
        self._show_live()

    def save(self) -> None:
        """Write the record file, from which a run that is resumed here goes on."""
        if self._output is not None:
            self._output.write_run_record()
            self._output.save(self.records, self.parameters)

    def end_run(self, step: int) -> None:
        """Write the record file and the figures of the whole run.

        Args:
            step: Number of the last step.
        """
        MonitoringCallback.save(self)  # a subclass has written what is its own
        if self._output is not None and self.records:
            self._draw(step, at_end=True)
            self._show_live(at_end=True)
        self.stop_run()

    def stop_run(self) -> None:
        """Let go of model, writer and hooks; called at the end, and where a run breaks off."""
        self._let_go()
        if self._output is not None:
            self._output.close()

    # --- Trainer's events ---

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start a run; see `start_run`."""
        output_dir = str(args.output_dir or ".")
        sub_run = SubRun.of(output_dir)
        self.start_run(
            MonitoredRun(
                model=trained_module(kwargs["model"]),
                optimizer=kwargs.get("optimizer"),
                output_dir=Path(output_dir),
                is_main=state.is_world_process_zero,
                first_step=state.global_step,
                last_step=state.max_steps,
                writer=lambda: trainers_writer(self._trainer) or sub_run.writer(),
                wandb="wandb" in (args.report_to or ()),
                reporter=None if self._trainer is None else self._report,
                schedule=kwargs.get("lr_scheduler"),
                tokenizer=tokenizer_of(kwargs.get("processing_class"), kwargs.get("train_dataloader")),
                arguments=args,
                batches_per_epoch=length_of(kwargs.get("train_dataloader")),
                log_history=state.log_history,
                watch_forward=not args.torch_compile and args.n_gpu <= 1,
                device=args.device,
            )
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare the reading of a sampled step; see `open_step`."""
        self.open_step(state.global_step + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read gradients and copy parameters of a sampled step; see `read_before`."""
        if self._sampling:
            optimizer = kwargs.get("optimizer")
            scale = self._observe(lambda: self._backward_scale(optimizer))
            self.read_before(optimizer, args.max_grad_norm or None, scale)

    def _backward_scale(self, optimizer: Any) -> torch.Tensor | None:
        """The loss scale; Accelerate's wrapper of the optimizer carries the gradient scaler."""
        scaler = getattr(optimizer, "scaler", None)
        if scaler is None or self._reading is None:
            return None
        return scaler.scale(torch.ones((), device=next(self._reading.model.parameters()).device))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the parameters of a sampled step with their copy; see `read_after`."""
        self.read_after()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep and report the record of a sampled step; see `close_step`."""
        self.close_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the record file; see `save`."""
        self.save()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the record file and the figures of the whole run; see `end_run`."""
        self.end_run(state.global_step)

    def _report(self, scalars: dict[str, float], step: int) -> None:
        assert self._trainer is not None
        report_scalars(self._trainer, scalars, step, self._safe, silent=MonitoringCallback)

    # --- shared work ---

    def is_sampled(self, step: int) -> bool:
        """Return whether optimizer step `step` is observed.

        Args:
            step: Number of the step, 1 for the first.
        """
        return step % self.every_n_steps == 0 or (step < self.every_n_steps and step in self.early_steps)

    def _observe(self, action: Callable[[], Any]) -> Any:
        """Run a part of the observation; if it fails, nothing more is observed in this run."""
        result = self._safe.attempt("measurements", action)
        if "measurements" in self._safe.failed:
            self._let_go()
        return result

    def _stop_observing(self, reason: str, of_all: bool = False) -> None:
        """What is true of all processes is told by one of them."""
        told = logging.INFO if of_all and self._run is not None and not self._run.is_main else logging.WARNING
        logger.log(told, "%s: nothing is observed. %s", self.title, reason)
        self._let_go()

    def _let_go(self) -> None:
        """Free what a step that was interrupted has left; the reader goes with the last callback that holds it."""
        if self._reading is not None:
            self._reading.leave()
        self._reader = self._reading = None
        with suppress(Exception):  # what had gone wrong was told already, and training goes on
            self.release()
