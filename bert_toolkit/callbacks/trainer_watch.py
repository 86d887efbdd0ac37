"""One line that watches a training: gradient flow, update ratios and training health of a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from transformers.trainer_callback import TrainerCallback

from bert_toolkit.callbacks.gradient_flow import GradientFlowCallback
from bert_toolkit.callbacks.run_report import ReportCallback
from bert_toolkit.callbacks.training_health import TrainingHealthCallback
from bert_toolkit.callbacks.update_ratios import UpdateRatioCallback
from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.update_ratios import Mode

if TYPE_CHECKING:
    from transformers import Trainer

Callback = TypeVar("Callback", bound=TrainerCallback)


@dataclass(frozen=True)
class WatchingCallbacks:
    """The callbacks that watch a training.

    Args:
        gradient_flow: Its `records` hold the statistics of all gradients; None where health alone is watched.
        update_ratios: Its `records` hold how far steps moved the parameters; None where health alone is watched.
        health: Its `findings` hold what is wrong; None where health is not watched.
    """

    gradient_flow: GradientFlowCallback | None
    update_ratios: UpdateRatioCallback | None
    health: TrainingHealthCallback | None


def watch(
    trainer: Trainer,
    every_n_steps: int = 50,
    health: bool | TrainingHealthCallback = True,
    *,
    figures: bool = True,
    mode: Mode = "exact",
    report: bool = False,
) -> WatchingCallbacks:
    """Watch gradients, updates and health of a training, in the trainer's own TensorBoard run and other reporters.

    The same as `callbacks=[GradientFlowCallback(50), UpdateRatioCallback(50), TrainingHealthCallback()]`: the same
    scalars at the same steps and the same files. Callbacks cannot reach Trainer's TensorBoard writer by themselves and
    write a sub-run beside it; here all is one run, and every other reporter and `trainer.state.log_history` have the
    scalars too. Callbacks of these classes that the trainer has already are taken as they are.

    Args:
        trainer: Any Trainer, before `train()`.
        every_n_steps: Distance of the steps of which gradients and updates are recorded, 0 for health alone; health
            looks at every tenth.
        health: Watch health too; or a `TrainingHealthCallback` with settings of its own. False adds none, and one that
            the trainer has already stays.
        figures: Draw figures.
        mode: Of the update ratios, `"exact"` or `"sampled"`; see `UpdateRatioCallback`.
        report: Write the page of the run, `report.html`, when training ends; see `ReportCallback`.

    Returns:
        The callbacks, with their records and findings.

    Raises:
        InputError: `every_n_steps` is negative, `mode` is unknown, `health` is a second `TrainingHealthCallback`, or
            `report` is asked for without plotly.

    Examples:
        >>> trainer = make_trainer()  # any Trainer
        >>> watching = bert_toolkit.watch(trainer, every_n_steps=2)
        >>> _ = trainer.train()
        Training health: no fault found in ...
        >>> [record.step for record in watching.update_ratios.records]
        [1, 2, 4]
        >>> watching.health.findings
        []
    """
    watching = chosen_callbacks(trainer.callback_handler.callbacks, every_n_steps, health, figures, mode)
    for callback in (watching.gradient_flow, watching.update_ratios, watching.health):
        if callback is not None:
            callback.attach(trainer)
    if report and _first(trainer.callback_handler.callbacks, ReportCallback) is None:
        trainer.add_callback(ReportCallback())
    return watching


def chosen_callbacks(
    present: Sequence[TrainerCallback],
    every_n_steps: int,
    health: bool | TrainingHealthCallback,
    figures: bool,
    mode: Mode,
) -> WatchingCallbacks:
    """Return the callbacks that arguments of `watch` mean, none twice: two of a class would write the same files.

    Args:
        present: The callbacks that are there already.
        every_n_steps: See `watch`.
        health: See `watch`.
        figures: See `watch`.
        mode: See `watch`.

    Raises:
        InputError: `every_n_steps` is negative, `mode` is unknown, or `health` is a second `TrainingHealthCallback`.
    """
    flow, ratios = _first(present, GradientFlowCallback), _first(present, UpdateRatioCallback)
    watching_health = _first(present, TrainingHealthCallback)
    if every_n_steps != 0:
        flow = flow or GradientFlowCallback(every_n_steps, figures=figures)
        ratios = ratios or UpdateRatioCallback(every_n_steps, figures=figures, mode=mode)
    if isinstance(health, TrainingHealthCallback):
        if watching_health not in (None, health):
            raise InputError(
                "health must be True, False or the TrainingHealthCallback that is among the callbacks already, got a "
                "second one, which would write the same files: leave one of them out"
            )
        watching_health = health
    elif health:
        watching_health = watching_health or TrainingHealthCallback()
    return WatchingCallbacks(flow, ratios, watching_health)


def _first(callbacks: Sequence[TrainerCallback], kind: type[Callback]) -> Callback | None:
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
