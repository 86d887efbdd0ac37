"""Trainer callback: how far every step moves every layer."""

import logging
from typing import TYPE_CHECKING, Any, get_args

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.callbacks.monitoring_output import MonitoringOutput, check_sampling, is_sampled
from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.observability import why_unobservable
from bert_toolkit.monitoring.update_ratios import (
    Mode,
    UpdateRatioMonitor,
    UpdateRatioRecord,
    update_ratio_scalars,
)

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


class UpdateRatioCallback(TrainerCallback):
    """Record ||after - before|| / ||before|| of every parameter around the optimizer's real step.

    Copies parameters at `on_pre_optimizer_step` and compares at `on_optimizer_step`, for any optimizer. The first
    step and every multiple of `every_n_steps` are sampled; on other steps it does nothing.

    Logs `update_ratio/<block>`, the figures `monitoring/update_ratios` and `monitoring/update_ratios_over_time`,
    and the file `output_dir/monitoring/update_ratio.npz`. Costs per sampled step, in exact mode, a copy of the
    trainable parameters (freed after the step), two reads of both and one transfer; in sampled mode less than
    10 MiB for BERT-base and an error as stated at `UpdateRatioMonitor`.

    Args:
        every_n_steps: distance of sampled optimizer steps.
        include_biases: draw biases too; records always hold them.
        skip_probability: share of parameters to leave out of figures, chosen by `seed`.
        seed: seed of that choice and of the sampled positions.
        figures: draw figures.
        per_parameter_scalars: log a scalar per parameter instead of per block.
        mode: `"exact"`, or `"sampled"` for at most 4,096 elements of each parameter.

    Attributes:
        records: `UpdateRatioRecord`s, oldest first; those of a resumed run included.
        monitor: the `UpdateRatioMonitor` of the run, None before training or where parameters cannot be seen.

    Raises:
        InputError: if `every_n_steps` is not positive, `skip_probability` lies outside [0, 1] or `mode` is unknown.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        include_biases: bool = False,
        skip_probability: float = 0.0,
        seed: int = 0,
        figures: bool = True,
        per_parameter_scalars: bool = False,
        mode: Mode = "exact",
    ):
        check_sampling(every_n_steps, skip_probability)
        if mode not in get_args(Mode):
            raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.every_n_steps = every_n_steps
        self.include_biases = include_biases
        self.skip_probability = skip_probability
        self.seed = seed
        self.per_parameter_scalars = per_parameter_scalars
        self.mode = mode
        self.records: list[UpdateRatioRecord] = []
        self.monitor: UpdateRatioMonitor | None = None
        self._output = MonitoringOutput("update_ratio", UpdateRatioRecord, figures)

    def attach(self, trainer: "Trainer") -> None:
        """Share the trainer's TensorBoard writer and put the scalars into its loss records, for every reporter.

        Args:
            trainer: the trainer to follow; the callback is added to it if it is not there yet.
        """
        self._output.attach(self, trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.records = self._output.begin(args, state)
        self._learning_rates = (0.0, 0.0)
        model = kwargs["model"]
        reason = why_unobservable(model, kwargs.get("optimizer"))
        if reason:
            logger.warning("Update ratios are not recorded: %s", reason)
            self.monitor = None
            return
        self.monitor = UpdateRatioMonitor(model, self.mode, self.seed)
        if self.monitor.frozen:
            logger.info("Update ratios leave out frozen parameters: %s", ", ".join(self.monitor.frozen))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor is not None and is_sampled(state.global_step + 1, self.every_n_steps):
            self.monitor.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step + 1
        if self.monitor is None or not is_sampled(step, self.every_n_steps):
            return
        record = self.monitor.after_step(step)
        self.records.append(record)
        parameters = self.monitor.parameters
        self._output.write_scalars(step, lambda: update_ratio_scalars(record, parameters, self.per_parameter_scalars))
        rate = max(group["lr"] for group in kwargs["optimizer"].param_groups)
        self._learning_rates = (rate, max(rate, self._learning_rates[1]))
        if self._output.figure_is_due(step):
            self._draw()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._output.complete_log(state, logs or {})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.monitor is not None:
            self._output.save(self.records, self.monitor.parameters)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor is not None:
            self._output.save(self.records, self.monitor.parameters)
            self._draw(at_end=True)
        self._output.close()

    def _draw(self, at_end: bool = False) -> None:
        if self.monitor is None or not self.records:
            return
        from bert_toolkit.monitoring.figures import drawn_names, heat_map_figure, update_ratios_figure

        parameters, latest = self.monitor.parameters, self.records[-1]
        names = drawn_names(parameters, self.include_biases, self.skip_probability, self.seed)
        # Ratios follow the learning rate: at the end of a decay they are small in every healthy run.
        rate, highest = self._learning_rates
        note = f"learning rate {rate:.2g}, highest so far {highest:.2g}"
        figures = {"update_ratios": lambda: update_ratios_figure(latest, parameters, names, note)}
        if at_end or self._output.has_time_to_draw:
            title, markers = "‖update‖ / ‖parameter‖", self._output.finding_markers()
            figures["update_ratios_over_time"] = lambda: heat_map_figure(
                self.records, "ratio", parameters, title, names, markers
            )
        self._output.write_figures(latest.step, figures, png=at_end)
