"""Rules on the mode of the model: training while it trains, evaluation while it is evaluated."""

from __future__ import annotations

from bert_toolkit.health.findings import Finding, Severity
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import latest
from bert_toolkit.health.rules.registry import OUTCOME, rule


@rule(
    needs="forward",
    explains=(),
    cause="model.eval() was called, to evaluate or to look at predictions, and model.train() was not called again",
    remedy="call model.train() before the training steps",
)
def evaluation_mode(history: HealthHistory, *, samples: int = 2) -> Finding | None:
    """The model is in evaluation mode while it trains, so dropout does nothing and BatchNorm learns no statistics.

    Judged where the model has dropout above zero or BatchNorm in parts that train; elsewhere the mode changes nothing.
    """
    training = latest(history, "training_mode", samples)
    modes = latest(history, "modes_that_matter", samples)
    if len(training) < samples or not len(modes) or (training > 0).any() or not (modes > 0).all():
        return None
    return evaluation_mode.finding(
        history,
        value=0.0,
        threshold=1.0,
        seen=f"model.training is False in {samples} samples in a row, and {modes[-1]:.0f} modules depend on it",
    )


@rule(
    needs="forward",
    explains=(),
    severity="warning",
    cause="eval() was called on a part of the model, or a part was added in evaluation mode",
    remedy="call model.train(); to freeze a part on purpose, switch off requires_grad of its parameters as well",
)
def dropout_inactive(history: HealthHistory, *, samples: int = 2, share: float = 0.5) -> Finding | None:
    """Most dropout modules of trainable parts are in evaluation mode although the model itself is in training mode."""
    training = latest(history, "training_mode", samples)
    inactive = latest(history, "inactive_dropout", samples)
    if len(training) < samples or len(inactive) < samples or not (training > 0).all():
        return None
    if not (inactive > share).all():
        return None
    severity: Severity = "error" if inactive[-1] >= 0.999 else "warning"
    return dropout_inactive.finding(
        history,
        value=inactive[-1],
        threshold=share,
        seen=f"{inactive[-1]:.0%} of the dropout modules in trainable parts are in evaluation mode",
        severity=severity,
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    severity="warning",
    cause="evaluation runs without model.eval(), so dropout blurs its scores",
    remedy="call model.eval() before evaluation and model.train() after it; Trainer does both itself",
)
def training_mode_in_evaluation(history: HealthHistory) -> Finding | None:
    """The model was in training mode during an evaluation, and has dropout or BatchNorm."""
    modes = history.fact("modes_that_matter")
    if not history.evaluated_in_training_mode or not (modes > 0).any():
        return None
    return training_mode_in_evaluation.finding(
        history, value=1.0, threshold=0.0, seen="model.training was True during an evaluation"
    )
