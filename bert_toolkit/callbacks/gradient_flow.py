"""Trainer callback: how large the gradient of every layer is."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.callbacks.monitoring_output import MonitoringOutput, check_sampling, is_sampled
from bert_toolkit.monitoring.gradient_flow import (
    GradientFlowMonitor,
    GradientFlowRecord,
    PendingGradientFlow,
    gradient_flow_scalars,
)
from bert_toolkit.monitoring.observability import why_unobservable

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


class GradientFlowCallback(TrainerCallback):
    """Record mean, maximum, standard deviation and zero share of |gradient| of every parameter.

    Reads gradients at `on_pre_optimizer_step`, after accumulation, unscaling and clipping; the norms before
    clipping come from the end of the backward pass. The first step and every multiple of `every_n_steps` are
    sampled; on other steps it does nothing.

    Logs `gradient_flow/{mean,max,std,zero_share}/<block>` and `gradient_flow/clip_coefficient`, the figures
    `monitoring/gradients` and `monitoring/gradients_over_time`, and the file
    `output_dir/monitoring/gradient_flow.npz`. Costs two reads of the gradients and one transfer per sampled step.

    Args:
        every_n_steps: distance of sampled optimizer steps.
        include_biases: draw biases too; records always hold them.
        skip_probability: share of parameters to leave out of figures, chosen by `seed`.
        seed: seed of that choice.
        figures: draw figures.
        per_parameter_scalars: log a scalar per parameter instead of per block.

    Attributes:
        records: `GradientFlowRecord`s, oldest first; those of a resumed run included.
        monitor: the `GradientFlowMonitor` of the run, None before training or where gradients cannot be seen.

    Raises:
        InputError: if `every_n_steps` is not positive or `skip_probability` lies outside [0, 1].
    """

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
        self.per_parameter_scalars = per_parameter_scalars
        self.records: list[GradientFlowRecord] = []
        self.monitor: GradientFlowMonitor | None = None
        self._output = MonitoringOutput("gradient_flow", GradientFlowRecord, figures)
        self._pending: PendingGradientFlow | None = None

    def attach(self, trainer: "Trainer") -> None:
        """Share the trainer's TensorBoard writer and put the scalars into its loss records, for every reporter.

        Args:
            trainer: the trainer to follow; the callback is added to it if it is not there yet.
        """
        self._output.attach(self, trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor is not None:
            self.monitor.forget()
        self._pending = None
        self.records = self._output.begin(args, state)
        model = kwargs["model"]
        reason = why_unobservable(model, kwargs.get("optimizer"))
        if reason:
            logger.warning("Gradient flow is not recorded: %s", reason)
            self.monitor = None
            return
        self.monitor = GradientFlowMonitor(model)
        if self.monitor.frozen:
            logger.info("Gradient flow leaves out frozen parameters: %s", ", ".join(self.monitor.frozen))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor is not None and is_sampled(state.global_step + 1, self.every_n_steps):
            self.monitor.watch_backward()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor is None or not is_sampled(state.global_step + 1, self.every_n_steps):
            return
        self._pending = start_in_trainer(self.monitor, args, kwargs.get("optimizer"))
        if self._pending is None:
            logger.warning(
                "Gradient flow is not recorded: no parameter has a gradient before the optimizer's step, so the "
                "optimizer or its wrapper keeps gradients elsewhere"
            )
            self.monitor = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._pending is None or self.monitor is None:
            return
        record, self._pending = self._pending.finish(state.global_step), None
        self.records.append(record)
        parameters = self.monitor.parameters
        self._output.write_scalars(
            record.step, lambda: gradient_flow_scalars(record, parameters, self.per_parameter_scalars)
        )
        if self._output.figure_is_due(record.step):
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
            self.monitor.forget()
            self._output.save(self.records, self.monitor.parameters)
            self._draw(at_end=True)
        self._output.close()

    def _draw(self, at_end: bool = False) -> None:
        if self.monitor is None or not self.records:
            return
        from bert_toolkit.monitoring.figures import drawn_names, gradients_figure, heat_map_figure

        parameters, latest = self.monitor.parameters, self.records[-1]
        names = drawn_names(parameters, self.include_biases, self.skip_probability, self.seed)
        figures = {"gradients": lambda: gradients_figure(latest, parameters, names)}
        if at_end or self._output.has_time_to_draw:
            title, markers = "mean |gradient| (after clipping)", self._output.finding_markers()
            figures["gradients_over_time"] = lambda: heat_map_figure(
                self.records, "mean", parameters, title, names, markers
            )
        self._output.write_figures(latest.step, figures, png=at_end)


def start_in_trainer(
    monitor: GradientFlowMonitor, args: TrainingArguments, optimizer: Any
) -> PendingGradientFlow | None:
    """Start an observation at `on_pre_optimizer_step`, with what Trainer knows of clipping and loss scaling.

    Args:
        monitor: monitor whose `watch_backward()` was called at `on_step_begin`.
        args: the trainer's arguments.
        optimizer: the optimizer that the event brought; Accelerate's wrapper carries the gradient scaler.

    Returns:
        The pending observation, or None if no parameter has a gradient.
    """
    scaler = getattr(optimizer, "scaler", None)
    device = next(monitor.model.parameters()).device
    return monitor.start(
        max_norm=args.max_grad_norm if args.max_grad_norm else None,
        backward_scale=None if scaler is None else scaler.scale(torch.ones((), device=device)),
    )
