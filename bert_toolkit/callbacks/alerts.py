"""Findings for those who do not read the log: TensorBoard text and alerts of trackers that are running."""

from __future__ import annotations

import sys
from typing import Any

from bert_toolkit.callbacks.monitored_run import MonitoredRun
from bert_toolkit.callbacks.safe_outputs import SafeOutputs
from bert_toolkit.health.findings import Finding, message


def send_alerts(finding: Finding, run: MonitoredRun, safe: SafeOutputs) -> None:
    """Hand a finding to TensorBoard (as text), and to W&B and trackio where a run of theirs is going on.

    Only modules that the training has imported itself are used. What fails is told once and left out from then on.

    Args:
        finding: The finding.
        run: Knows the TensorBoard writer.
        safe: Runs the outputs.
    """
    title, text = f"Training health: {finding.rule.replace('_', ' ')}", message(finding)
    if run.writer is not None:
        safe.attempt("findings in TensorBoard", lambda: _to_tensorboard(run, finding, text))
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        level = "ERROR" if finding.severity == "error" else "WARN"
        safe.attempt("alerts in W&B", lambda: wandb.alert(title=title, text=text, level=level))
    trackio: Any = sys.modules.get("trackio")
    if trackio is not None and trackio.context_vars.current_run.get() is not None:
        levels = trackio.AlertLevel
        alert_level = levels.ERROR if finding.severity == "error" else levels.WARN
        safe.attempt("alerts in trackio", lambda: trackio.alert(title=title, text=text, level=alert_level))


def _to_tensorboard(run: MonitoredRun, finding: Finding, text: str) -> None:
    assert run.writer is not None
    block = "\n".join(f"    {line}" for line in text.splitlines())  # a block of code keeps the columns
    run.writer().add_text("training_health/finding", block, finding.step)
