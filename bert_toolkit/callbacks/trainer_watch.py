"""One line that watches a training: gradient flow, update ratios and training health of a Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from transformers.trainer_callback import TrainerCallback

from bert_toolkit.callbacks.gradient_flow import GradientFlowCallback
from bert_toolkit.callbacks.run_report import ReportCallback
from bert_toolkit.callbacks.training_health import TrainingHealthCallback
from bert_toolkit.callbacks.update_ratios import UpdateRatioCallback
from bert_toolkit.monitoring.update_ratios import Mode

if TYPE_CHECKING:
    from transformers import Trainer

Callback = TypeVar("Callback", bound=TrainerCallback)


@dataclass(frozen=True)
class WatchingCallbacks:
    """The callbacks that watch a training.

    Args:
        gradient_flow: Its `records` hold the statistics of all gradients.
        update_ratios: Its `records` hold how far steps moved the parameters.
        health: Its `findings` hold what is wrong; None where health is not watched.
    """

    gradient_flow: GradientFlowCallback
    update_ratios: UpdateRatioCallback
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
        every_n_steps: Distance of the steps of which gradients and updates are recorded; health looks at every tenth.
        health: Watch health too; or a `TrainingHealthCallback` with settings of its own.
        figures: Draw figures.
        mode: Of the update ratios, `"exact"` or `"sampled"`; see `UpdateRatioCallback`.
        report: Write the page of the run, `report.html`, when training ends; see `ReportCallback`.

    Returns:
        The callbacks, with their records and findings.

    Raises:
        InputError: `every_n_steps` is not positive, `mode` is unknown, or `report` is asked for without plotly.

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
    watching = WatchingCallbacks(
        _present(trainer, GradientFlowCallback) or GradientFlowCallback(every_n_steps, figures=figures),
        _present(trainer, UpdateRatioCallback) or UpdateRatioCallback(every_n_steps, figures=figures, mode=mode),
        health_callback(health, _present(trainer, TrainingHealthCallback)),
    )
    for callback in (watching.gradient_flow, watching.update_ratios, watching.health):
        if callback is not None:
            callback.attach(trainer)
    if report and _present(trainer, ReportCallback) is None:
        trainer.add_callback(ReportCallback())
    return watching


def health_callback(
    health: bool | TrainingHealthCallback, present: TrainingHealthCallback | None = None
) -> TrainingHealthCallback | None:
    """Return the callback that an argument `health` means.

    Args:
        health: Whether to watch health, or what watches it.
        present: The callback that is there already.
    """
    if isinstance(health, TrainingHealthCallback):
        return health
    return (present or TrainingHealthCallback()) if health else present


def _present(trainer: Trainer, kind: type[Callback]) -> Callback | None:
    found = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind))
    return next(found, None)
