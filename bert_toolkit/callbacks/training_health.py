"""Trainer callback: says when training is broken, where, why and what to try, and is silent otherwise."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.callbacks.alerts import send_alerts
from bert_toolkit.callbacks.monitored_run import MonitoredRun
from bert_toolkit.callbacks.monitoring_callback import MonitoringCallback
from bert_toolkit.errors import InputError
from bert_toolkit.files import replaced_at_once
from bert_toolkit.health.finding_html import finding_html, findings_html
from bert_toolkit.health.findings import Finding, message
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.health.watch import HealthWatch
from bert_toolkit.monitoring.deepspeed_shards import is_deepspeed
from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.parameter_roles import named_unique_parameters
from bert_toolkit.monitoring.step_reading import StepReading

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)


class TrainingHealthCallback(MonitoringCallback[None]):
    """A callback that watches gradients, updates, learning rates, loss and predictions, and reports faults by name.

    The first optimizer step and every multiple of `every_n_steps` are sampled; on other steps it does nothing. On a
    sampled step it watches the forward passes (loss, labels, predicted classes) and the end of backward, reads
    gradients at `on_pre_optimizer_step`, a sample of the parameters around the step, and judges at `on_step_end`.
    Under `torch.compile` and `DataParallel` forward passes are not watched; the loss is then the one that Trainer
    logs.

    It logs no scalars. What it writes:

    | place | what |
    |---|---|
    | log, level WARNING | one block of lines per fault, when it is found |
    | standard output, or the log where that shows the level INFO | one line at the end: the verdict of a healthy run |
    | `output_dir/monitoring/training_health.jsonl` | one line per fault (`event: finding`), and the verdict |
    | `output_dir/monitoring/run.json` | settings, command, versions and log of the run, for its page |
    | `output_dir/monitoring/training_health.npz` | what was seen, so that a resumed run goes on where it was |

    Costs per sampled step two reads of the gradients (five on an accelerator), at most 4,096 elements of every
    parameter, three small transfers that are waited for once, and about a millisecond of judging. Where
    `GradientFlowCallback` or `UpdateRatioCallback` sample the same step, gradients and parameters are read once for
    all of them.

    Args:
        every_n_steps: Distance of sampled optimizer steps.
        on_finding: `"warn"` reports; `"stop"` also ends training, on every rank at the same step, after saving a
            checkpoint (none where weights are no longer finite, so that the last good one stays); a callable gets
            each new `Finding` on the main process and ends training by returning True.

    Attributes:
        findings: Errors and warnings that nothing else explains, oldest first.
        history: The `HealthHistory` of the run, None before training or where nothing can be observed.
        judge: The `HealthJudge` that holds the cases, symptoms and notes included.

    Raises:
        InputError: `every_n_steps` is not positive or `on_finding` is something else.

    Examples:
        >>> health = TrainingHealthCallback(every_n_steps=2, on_finding="stop")
        >>> _ = make_trainer(callbacks=[health]).train()
        Training health: no fault found in ...
        >>> health.findings
        []
    """

    name = "training_health"
    title = "Training health"
    early_steps = (1,)
    reads_gradients = True
    reads_updates = "any"  # an exact copy where another callback makes one anyway, else a sample
    needs_gradients = False

    def __init__(
        self, every_n_steps: int = 10, on_finding: Literal["warn", "stop"] | Callable[[Finding], Any] = "warn"
    ) -> None:
        super().__init__(every_n_steps, figures=False)
        if on_finding not in ("warn", "stop") and not callable(on_finding):
            raise InputError(f"on_finding must be 'warn', 'stop' or a callable, got {on_finding!r}")
        self.on_finding = on_finding
        self._judge = HealthJudge()
        self._watch: HealthWatch | None = None
        self._logged_loss = math.nan
        self._stop = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy has settings and findings; what was seen of the model stays behind."""
        return {**super().__getstate__(), "_watch": None}

    @property
    def judge(self) -> HealthJudge:
        """The cases of the run, symptoms and notes included."""
        return self._judge

    @property
    def history(self) -> HealthHistory | None:
        """The history of what was seen so far; None before training and where nothing can be observed."""
        return None if self._watch is None else self._watch.history

    @property
    def findings(self) -> list[Finding]:
        """The errors and warnings that nothing else explains, oldest first."""
        return self.judge.findings

    @property
    def wants_stop(self) -> bool:
        """Whether the step that ended last is reason to end training."""
        return self._stop

    def start_run(self, run: MonitoredRun) -> None:
        """Start with an empty history, or with that of the run that is resumed, and judge settings and weights.

        Args:
            run: The run that begins.
        """
        self._judge, self._watch, self._logged_loss, self._stop = HealthJudge(), None, math.nan, False
        super().start_run(run)

    def begin(self, run: MonitoredRun) -> None:
        """Prepare history and watch, and judge what is known before the first step.

        Args:
            run: The run that begins.
        """
        self._folder = run.folder
        self._watch = self._new_watch(run)
        if run.first_step > 0:
            self._resume(run.first_step)
            for entry in run.log_history:
                self.note_evaluation(int(entry["step"]), entry)
        else:
            self._tell_new(self._watch.begin())
        self._write_findings()

    def _new_watch(self, run: MonitoredRun) -> HealthWatch:
        settings: dict[str, Any] = {"batches_per_epoch": run.batches_per_epoch}
        if run.arguments is not None:
            settings["label_smoothing"] = float(run.arguments.label_smoothing_factor)
            settings["max_grad_norm"] = run.arguments.max_grad_norm or None
            settings["accumulation"] = run.arguments.gradient_accumulation_steps
            settings["best_metric"] = run.arguments.metric_for_best_model or ""
            settings["greater_is_better"] = bool(run.arguments.greater_is_better)
        return HealthWatch(
            run.model,
            run.optimizer,
            run.schedule,
            run.tokenizer,
            run.last_step,
            forward=run.watch_forward,
            judge=self._judge,
            partitioned=is_deepspeed(run.optimizer),
            **settings,
        )

    def before_forward(self, step: int) -> None:
        """Watch the step.

        Args:
            step: Number of the step.
        """
        if self._watch is not None:
            self._watch.start(self._reading is not None and self._reading.steps_inside_backward)

    def check(self) -> None:
        """Raise what went wrong in a hook of this step."""
        if self._watch is not None:
            self._watch.check()

    def before_step(self, reading: StepReading, optimizer: Any) -> None:
        """Read what the backward pass has left.

        Args:
            reading: The reading of this step.
            optimizer: The optimizer.
        """
        if self._watch is not None:
            self._watch.before_step(optimizer)

    def after_step(self, reading: StepReading) -> None:
        """Read what the optimizer has done.

        Args:
            reading: The reading of this step.
        """
        if self._watch is not None:
            self._watch.after_step()

    def release(self) -> None:
        """Stop watching a step that was interrupted."""
        if self._watch is not None:
            self._watch.forget()

    def measure(self, reading: StepReading) -> None:
        """Add the step to the history and judge it.

        Args:
            reading: What was read of this step.
        """
        updates = reading.updates()
        if updates is None or self._watch is None or self._run is None:
            return
        if {name for name, _ in named_unique_parameters(reading.model)} != set(self._watch.history.names):
            logger.info("Training health: parameters came or went, its history starts anew at step %d", reading.step)
            self._watch = self._new_watch(self._run)
        gradients = reading.gradients or GradientFlowRecord.empty(reading.step)
        self._tell_new(self._watch.finish(gradients, updates, self._logged_loss, reading.learning_rates))

    def _tell_new(self, new: list[Finding]) -> None:
        self._stop = self.on_finding == "stop" and bool(new)
        if not self._is_main:
            return
        for finding in new:
            logger.warning("%s", message(finding, self.judge.symptoms(finding.rule)))
            if self._run is not None:
                send_alerts(finding, self._run, self._safe)
            if callable(self.on_finding):
                self._stop |= self._tell(self.on_finding, finding)
        if new:
            self._write_findings()

    def _tell(self, on_finding: Callable[[Finding], Any], finding: Finding) -> bool:
        try:
            return on_finding(finding) is True
        except Exception as error:
            logger.warning(
                "Training health: on_finding failed for %s. %s: %s", finding.rule, type(error).__name__, error
            )
            return False

    def close_step(self) -> None:
        """Judge a sampled step, and find out whether any process wants to end training."""
        sampled = self._reading is not None
        self._stop = False
        super().close_step()
        if sampled and self.on_finding != "warn" and self._run is not None:
            self._stop = self._run.any_rank(self._stop)

    def save(self) -> None:
        """Write what was seen and found, from which a run that is resumed here goes on."""
        super().save()
        self._write_samples()
        self._write_findings()

    def end_run(self, step: int) -> None:
        """Write what was seen and found, and tell the verdict.

        Args:
            step: Number of the last step.
        """
        if self.history is not None and self._is_main:
            self._write_samples()
            self._safe.attempt("verdict", self._tell_verdict)
        super().end_run(step)

    def _tell_verdict(self) -> None:
        self._write_findings(self.verdict)
        if self.findings:
            logger.warning("%s", self.verdict)
        elif logger.isEnabledFor(logging.INFO):
            logger.info("%s", self.verdict)
        else:  # loggers are silent below warnings by default, and a healthy run must not look like a fault
            print(self.verdict)

    def note_loss(self, loss: float) -> None:
        """Remember the loss that the training loop reports, for models that return none.

        Args:
            loss: Mean loss of a batch.
        """
        self._logged_loss = loss

    def note_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Remember the numbers of an evaluation.

        Args:
            step: Optimizer step after which it was made.
            metrics: Its numbers, by names that begin with `eval_`; others are left out.
        """
        numbers = {
            key: float(value)
            for key, value in metrics.items()
            if key.startswith("eval_") and isinstance(value, (int, float))
        }
        if self.history is not None and numbers:
            self.history.evaluations.append((step, numbers))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start a run, and end it at once where settings or weights are reason to."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.on_finding != "warn" and self._run is not None and self._run.any_rank(self._stop):
            control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember an evaluation of a model in training mode."""
        model = kwargs.get("model")
        if self.history is not None and model is not None and model.training:
            self.history.evaluated_in_training_mode = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge a sampled step and end training where that is asked for."""
        super().on_step_end(args, state, control, **kwargs)
        if self._stop:
            control.should_training_stop = True
            if self.history is not None and _is_finite(self.history):
                control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the loss that Trainer logs."""
        if isinstance(loss := (logs or {}).get("loss"), (int, float)):
            self.note_loss(float(loss))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the numbers of an evaluation."""
        self.note_evaluation(state.global_step, metrics or {})

    @property
    def verdict(self) -> str:
        """A line on the run so far."""
        if self.history is None:
            return "Training health: not watched."
        return self.judge.verdict(self.history)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return what was found as a table, symptoms and notes included.

        Returns:
            A row for each case, oldest first, with the fields of `Finding`, `samples`, `last_step` and `symptom_of`.
        """
        import pandas

        fields = [field.name for field in dataclasses.fields(Finding)]
        return pandas.DataFrame(self.judge.report(), columns=[*fields, "samples", "last_step", "symptom_of"])

    def _repr_html_(self) -> str:
        cases = [case for case in self.judge.cases.values() if case.symptom_of is None]
        explains = {case.finding.rule: [f.rule for f in self.judge.symptoms(case.finding.rule)] for case in cases}
        told = [finding_html(case.finding, explains[case.finding.rule], case.last_step) for case in cases]
        return findings_html(self.verdict, told)

    @property
    def report(self) -> dict[str, Any]:
        """The verdict and everything that was found, symptoms included, as JSON can hold it."""
        return {"verdict": self.verdict, "findings": self.judge.report()}

    @property
    def _samples_file(self) -> Path:
        return self._folder / "training_health.npz"

    @property
    def _findings_file(self) -> Path:
        return self._folder / "training_health.jsonl"

    def _write_samples(self) -> None:
        history = self.history
        if history is not None and self._is_main:
            self._safe.attempt("file of samples", lambda: history.save(self._samples_file))

    def _write_findings(self, verdict: str | None = None) -> None:
        if self.history is not None and self._is_main:
            self._safe.attempt("file of findings", lambda: self._replace_findings(verdict))

    def _replace_findings(self, verdict: str | None) -> None:
        lines = [{"event": "finding", **entry} for entry in self.judge.report()]
        if verdict is not None:
            lines.append({"event": "verdict", "verdict": verdict})
        with replaced_at_once(self._findings_file) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @property
    def _is_main(self) -> bool:
        return self._output is not None and self._output.is_main

    def _stop_observing(self, reason: str, of_all: bool = False) -> None:
        super()._stop_observing(reason, of_all)
        self._watch = None

    def _resume(self, step: int) -> None:
        """Go on with what was seen up to `step`, on every rank."""
        assert self.history is not None
        try:
            if self.history.load(self._samples_file, step):
                self.judge.load(self._findings_file, step)
        except InputError as error:
            logger.warning("Training health starts anew at step %d: %s", step + 1, error)


def _is_finite(history: HealthHistory) -> bool:
    """Whether the weights of the newest sample are finite, so that they may replace a checkpoint."""
    return len(history) > 0 and not np.isinf(history.weight[-1][history.trainable[-1]]).any()
