"""Trainer callback: says when training is broken, where, why and what to try, and is silent otherwise."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.callbacks.gradient_flow import start_in_trainer
from bert_toolkit.callbacks.monitoring_output import check_sampling, is_sampled
from bert_toolkit.errors import InputError
from bert_toolkit.health.findings import Finding, message
from bert_toolkit.health.forward_statistics import ForwardStatistics, ForwardWatch, PendingForward
from bert_toolkit.health.history import HealthHistory, HealthSample
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor, PendingGradientFlow
from bert_toolkit.monitoring.observability import why_unobservable
from bert_toolkit.monitoring.parameter_roles import named_unique_parameters
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor, UpdateRatioRecord

logger = logging.getLogger(__name__)


class TrainingHealthCallback(TrainerCallback):
    """Watch gradients, updates, learning rates, loss and predictions, and report faults by name.

    The first optimizer step and every multiple of `every_n_steps` are sampled; on other steps it does nothing. On a
    sampled step it watches the forward passes (loss, labels, predicted classes) and the end of backward, reads
    gradients at `on_pre_optimizer_step`, a sample of the parameters around the step, and judges at `on_step_end`.
    Under `torch.compile` and `DataParallel` forward passes are not watched; the loss is then the one that Trainer
    logs.

    Writes to the log one block per fault and one verdict line at the end, and
    `output_dir/monitoring/training_health.jsonl`: one line per fault (`event: finding`) and the verdict. What was
    seen is kept in `output_dir/monitoring/training_health.npz` from each checkpoint to the next, so that a resumed
    run goes on where it was.

    Costs per sampled step two reads of the gradients (five on an accelerator), at most 4,096 elements of every
    parameter, three small transfers that are waited for once, and about a millisecond of judging.

    Args:
        every_n_steps: distance of sampled optimizer steps.
        on_finding: `"warn"` reports; `"stop"` also ends training, on every rank at the same step, after saving a
            checkpoint (none where weights are no longer finite, so that the last good one stays); a callable gets
            each new `Finding` on the main process and ends training by returning True.

    Attributes:
        findings: faults that nothing else explains, oldest first.
        history: the `HealthHistory` of the run, None before training or where nothing can be observed.
        judge: the `HealthJudge` that holds the cases, symptoms included.

    Raises:
        InputError: if `every_n_steps` is not positive or `on_finding` is something else.
    """

    def __init__(
        self, every_n_steps: int = 10, on_finding: Literal["warn", "stop"] | Callable[[Finding], Any] = "warn"
    ):
        check_sampling(every_n_steps, 0.0)
        if on_finding not in ("warn", "stop") and not callable(on_finding):
            raise InputError(f"on_finding must be 'warn', 'stop' or a callable, got {on_finding!r}")
        self.every_n_steps = every_n_steps
        self.on_finding = on_finding
        self.judge = HealthJudge()
        self.history: HealthHistory | None = None
        self._updates: UpdateRatioRecord | None = None
        self._gradients: PendingGradientFlow | None = None
        self._forward: PendingForward | None = None
        self._logged_loss = math.nan

    @property
    def findings(self) -> list[Finding]:
        return self.judge.findings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        self._forget()
        self.judge, self.history, self._logged_loss = HealthJudge(), None, math.nan
        self._folder = Path(args.output_dir or ".") / "monitoring"
        reason = why_unobservable(model, optimizer)
        if reason:
            logger.warning("Training health is not watched: %s", reason)
            return
        self._flow = GradientFlowMonitor(model)
        self._ratios = UpdateRatioMonitor(model, mode="sampled")
        watchable = not args.torch_compile and args.n_gpu <= 1
        self._watch = ForwardWatch(model) if watchable else None
        self._names = {id(parameter): name for name, parameter in named_unique_parameters(model)}
        self.history = HealthHistory(model, state.max_steps)
        if state.global_step > 0:
            self._resume(state.global_step)
            for entry in state.log_history:
                self._note_evaluation(int(entry["step"]), entry)
        if state.is_world_process_zero:
            self._write()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_sampled(state.global_step + 1):
            self._flow.watch_backward()
            if self._watch is not None:
                self._watch.start()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._is_sampled(state.global_step + 1):
            return
        self._forward = self._watch.stop() if self._watch is not None else None
        self._gradients = start_in_trainer(self._flow, args, kwargs.get("optimizer"))
        if self._gradients is None:
            logger.warning(
                "Training health is not watched: no parameter has a gradient before the optimizer's step, so the "
                "optimizer or its wrapper keeps gradients elsewhere"
            )
            self.history = None
            return
        self._learning_rates = {
            self._names[id(parameter)]: float(group["lr"])
            for group in kwargs["optimizer"].param_groups
            for parameter in group["params"]
            if id(parameter) in self._names
        }
        self._ratios.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._gradients is not None:
            self._updates = self._ratios.after_step(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._gradients is None or self._updates is None or self.history is None:
            return
        gradients, updates, forward = self._gradients, self._updates, self._forward
        self._gradients = self._updates = self._forward = None
        self.history.add(
            HealthSample(
                gradients=gradients.finish(state.global_step),
                updates=updates,
                learning_rates=self._learning_rates,
                forward=ForwardStatistics() if forward is None else forward.finish(),
                logged_loss=self._logged_loss,
            )
        )
        new = self.judge.judge(self.history)
        stop = False
        if state.is_world_process_zero:
            for finding in new:
                logger.warning("%s", message(finding, self.judge.symptoms(finding.rule)))
                if callable(self.on_finding):
                    stop |= self.on_finding(finding) is True
            if new:
                self._write()
        stop |= self.on_finding == "stop" and bool(new)
        if self.on_finding != "warn" and _any_rank(stop, args):
            control.should_training_stop = True
            if math.isfinite(self.history.weight[-1][self.history.trainable[-1]].sum()):
                control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._logged_loss = float((logs or {}).get("loss", self._logged_loss))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._note_evaluation(state.global_step, metrics or {})

    def _note_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Keep the numbers of an evaluation; a record of the training loss holds none."""
        numbers = {
            key: float(value)
            for key, value in metrics.items()
            if key.startswith("eval_") and isinstance(value, (int, float))
        }
        if self.history is not None and numbers:
            self.history.evaluations.append((step, numbers))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.history is not None and state.is_world_process_zero:
            self.history.save(self._samples_file)
            self._write()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.history is not None and state.is_world_process_zero:
            self.history.save(self._samples_file)
            self._write(self.verdict)
            logger.log(logging.WARNING if self.findings else logging.INFO, self.verdict)
        self._forget()

    @property
    def verdict(self) -> str:
        """One line on the run so far."""
        if self.history is None:
            return "Training health: not watched."
        return self.judge.verdict(self.history)

    @property
    def report(self) -> dict[str, Any]:
        """Verdict and everything that was found, symptoms included, as JSON can hold it."""
        return {"verdict": self.verdict, "findings": self.judge.report()}

    @property
    def _samples_file(self) -> Path:
        return self._folder / "training_health.npz"

    @property
    def _findings_file(self) -> Path:
        return self._folder / "training_health.jsonl"

    def _write(self, verdict: str | None = None) -> None:
        lines = [{"event": "finding", **entry} for entry in self.judge.report()]
        if verdict is not None:
            lines.append({"event": "verdict", "verdict": verdict})
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._findings_file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        partial.replace(self._findings_file)

    def _is_sampled(self, step: int) -> bool:
        return self.history is not None and is_sampled(step, self.every_n_steps)

    def _resume(self, step: int) -> None:
        """Go on with what was seen up to `step`, on every rank."""
        assert self.history is not None
        try:
            if self.history.load(self._samples_file, step):
                self.judge.load(self._findings_file, step)
        except InputError as error:
            logger.warning("Training health starts anew at step %d: %s", step + 1, error)

    def _forget(self) -> None:
        """Leave nothing behind of a step that was interrupted."""
        if self.history is not None:
            self._flow.forget()
            self._ratios.forget()
            if self._watch is not None:
                self._watch.stop()
        self._gradients = self._updates = self._forward = None


def _any_rank(flag: bool, args: TrainingArguments) -> bool:
    if args.world_size == 1:
        return flag
    answer = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX)
    return bool(answer.item())
