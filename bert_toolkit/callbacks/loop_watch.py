"""The monitors of Trainer in a loop without Trainer: they see the optimizer's own step, without help of the loop."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bert_toolkit.callbacks.monitored_run import MonitoredRun
from bert_toolkit.callbacks.monitoring_callback import MonitoringCallback
from bert_toolkit.callbacks.run_report import page_unless_it_fails
from bert_toolkit.callbacks.safe_outputs import SafeOutputs
from bert_toolkit.callbacks.trainer_watch import chosen_callbacks
from bert_toolkit.callbacks.training_health import TrainingHealthCallback
from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.update_ratios import Mode
from bert_toolkit.processes import rank, world_size
from bert_toolkit.run_page.page import check_plotly
from bert_toolkit.run_page.run_record import FILE, read_run_record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


logger = logging.getLogger(__name__)


class watch_loop:  # noqa: N801 - read as a statement: with watch_loop(model, optimizer)
    """A watcher of gradients, updates and health in any PyTorch or Accelerate loop.

    Hooks of the optimizer see each of its steps, between clipping and `zero_grad()`, through Accelerate's wrapper
    and with closures too: the loop stays as it is. What is recorded and which files are written is the same as with
    `watch(trainer)`. Where several processes train, every one of them must watch.

    Args:
        model: The module that is trained; DDP, FSDP2 and `torch.compile` wrappers are seen through.
        optimizer: A `torch.optim.Optimizer` or Accelerate's wrapper of one.
        every_n_steps: Distance of the steps of which gradients and updates are recorded, 0 for health alone; health
            looks at every tenth.
        health: Watch health too; or a `TrainingHealthCallback` with settings of its own.
        output_dir: Files go to `output_dir/monitoring`, TensorBoard to `output_dir/runs`.
        tensorboard: Write a TensorBoard run; or a `SummaryWriter` to write to.
        report_to: Takes scalars and their step to other trackers, e.g. `accelerator.log`.
        total_steps: Optimizer steps that are planned, 0 where unknown; health judges progress by it.
        first_step: Optimizer steps that were taken before, where a run is resumed.
        scaler: The `torch.amp.GradScaler` of an fp16 loop without Accelerate.
        schedule: The scheduler of the learning rate, for health.
        tokenizer: For health.
        figures: Draw figures.
        mode: Of the update ratios, `"exact"` or `"sampled"`; see `UpdateRatioCallback`.
        callbacks: Further callbacks of your own, see `MonitoringCallback`. Those that watch gradients, updates or
            health take the place of the ones that `watch_loop` would make.
        report: Write the page of the run, `output_dir/report.html`, at the end; see `ReportCallback`.

    Attributes:
        step: Number of optimizer steps so far.
        gradient_flow, update_ratios, health: The callbacks, with their records and findings; None where not watched.

    Raises:
        InputError: `every_n_steps` is negative, `mode` is unknown, `optimizer` is no optimizer, `health` is a second
            `TrainingHealthCallback`, or `report` is asked for without plotly.

    Examples:
        >>> model, batches = make_model(), make_batches()
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> with watch_loop(model, optimizer, every_n_steps=2, output_dir=folder) as watching:
        ...     for inputs, labels in batches[:4]:
        ...         loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        ...         watching.log(loss)  # optional, for models that do not return their loss
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        Training health: no fault found in ...
        >>> [record.step for record in watching.gradient_flow.records]
        [1, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        every_n_steps: int = 50,
        health: bool | TrainingHealthCallback = True,
        output_dir: str | Path = ".",
        *,
        tensorboard: bool | SummaryWriter = False,
        report_to: Callable[[dict[str, float], int], Any] | None = None,
        total_steps: int = 0,
        first_step: int = 0,
        scaler: Any = None,
        schedule: Any = None,
        tokenizer: Any = None,
        figures: bool = True,
        mode: Mode = "exact",
        callbacks: Sequence[MonitoringCallback] = (),
        report: bool = False,
    ) -> None:
        if report:
            check_plotly()
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(
                "optimizer must be a torch.optim.Optimizer or what Accelerate prepares from one, got "
                f"{type(optimizer).__name__}"
            )
        chosen = chosen_callbacks(callbacks, every_n_steps, health, figures, mode)
        self.gradient_flow, self.update_ratios = chosen.gradient_flow, chosen.update_ratios
        self.health = chosen.health
        self.step = first_step
        watchers: list[MonitoringCallback | None] = [self.gradient_flow, self.update_ratios, self.health]
        self._callbacks = [watcher for watcher in watchers if watcher is not None]
        self._callbacks += [callback for callback in callbacks if callback not in self._callbacks]
        self._optimizer = optimizer
        self._scaler = getattr(optimizer, "scaler", None) or scaler
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self._safe = SafeOutputs("Watched loop")
        self._losses: list[Tensor] = []
        self._hooks: list[Any] = []
        self._run = MonitoredRun(
            model=model,
            optimizer=optimizer,
            output_dir=Path(output_dir),
            is_main=rank() == 0,
            first_step=first_step,
            last_step=total_steps,
            writer=self._tensorboard_writer if tensorboard else None,
            reporter=None if report_to is None else self._report,
            schedule=schedule,
            tokenizer=tokenizer,
            log_history=_earlier_log(Path(output_dir), first_step),
            # A hook would be compiled into the graph, and DataParallel runs copies of the model.
            watch_forward=not (_is_compiled(model) or isinstance(model, nn.DataParallel)),
        )
        self._report_to = report_to
        self._report_page = report

    @property
    def should_stop(self) -> bool:
        """Whether health with `on_finding="stop"`, or a function that returned True, wants the loop to end."""
        return any(callback.wants_stop for callback in self._callbacks)

    def log(self, loss: Tensor | float) -> None:
        """Tell the loss of a batch, before the optimizer's step; several batches of one step are averaged.

        Health needs it where the model does not return its loss; TensorBoard and other trackers get it at sampled
        steps as `train/loss`.

        Args:
            loss: Mean loss of the batch.
        """
        self._losses.append(torch.as_tensor(loss).detach().float())

    def log_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Tell the scores of an evaluation, for health.

        Args:
            metrics: Name -> score, e.g. `{"matthews_correlation": 0.4}`.
        """
        named = {f"eval_{name.removeprefix('eval_')}": float(score) for name, score in metrics.items()}
        if self.health is not None:
            self.health.note_evaluation(self.step, named)
        self._run.log_history.append({**named, "step": self.step})

    def save(self) -> None:
        """Write what was recorded so far, next to a checkpoint from which the loop may be resumed."""
        for callback in self._callbacks:
            callback.save()

    def __enter__(self) -> watch_loop:
        """Start watching."""
        for callback in self._callbacks:
            callback.start_run(self._run)
        if any(callback.is_observing for callback in self._callbacks):
            optimizer = self._optimizer
            while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
                optimizer = inner  # Accelerate's wrapper takes no hooks
            self._hooks = [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]
        self._open_step()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching: write files and figures, and tell the verdict unless the loop ended by an error."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for callback in self._callbacks:
            if error is None:
                callback.end_run(self.step)
            else:
                callback.save()
                callback.stop_run()
        if self._writer is not None and self._writer is not self._tensorboard:
            self._safe.attempt("TensorBoard", self._writer.close)
        if self._report_page and error is None and self._run.is_main:
            page = page_unless_it_fails(self._run.output_dir)
            if page is not None:
                print(f"Report: {page}")

    def _open_step(self) -> None:
        for callback in self._callbacks:
            callback.open_step(self.step + 1)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not any(callback.is_sampling for callback in self._callbacks):
            self._losses = []
            return None
        # The optimizer is the first of the arguments, a closure that computes the gradients the second.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._read_before(optimizer)
            return None
        watched = self._watched_closure(optimizer, closure)
        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    def _watched_closure(self, optimizer: torch.optim.Optimizer, closure: Callable[..., Any]) -> Callable[..., Any]:
        """The closure, and a look at the gradients after its first call: nothing has moved by then."""
        is_first = True

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_first
            result = closure(*args, **kwargs)
            if is_first:
                is_first = False
                self._read_before(optimizer)
            return result

        return watched

    def _read_before(self, optimizer: torch.optim.Optimizer) -> None:
        losses, self._losses = self._losses, []
        self._safe.attempt("loss", lambda: self._note_loss(losses))
        scales = self._safe.attempt("loss scale", lambda: self._scales(optimizer)) or (None, 1.0)
        for callback in self._callbacks:
            callback.read_before(self._optimizer, 0.0, *scales)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        for callback in self._callbacks:
            callback.read_after()
        for callback in self._callbacks:
            callback.close_step()
        self._open_step()

    def _scales(self, optimizer: torch.optim.Optimizer) -> tuple[Tensor | None, float]:
        """The loss scale of the backward pass, and that by which gradients are still multiplied."""
        # A scaler leaves gradients scaled for optimizers that remove the scale in their own step.
        scale = getattr(optimizer, "grad_scale", None)
        if scale is not None:
            return scale, float(scale)
        if self._scaler is None or not self._scaler.is_enabled():
            return None, 1.0
        return self._scaler.scale(torch.ones((), device=next(self._run.model.parameters()).device)), 1.0

    def _note_loss(self, losses: list[Tensor]) -> None:
        device = next(self._run.model.parameters()).device
        numbers = torch.zeros(2, device=device)
        if losses:
            numbers[0], numbers[1] = torch.stack([loss.to(device) for loss in losses]).mean(), 1.0
        if world_size() > 1:
            torch.distributed.all_reduce(numbers)
        total, count = numbers.tolist()
        loss = total / count if count else math.nan
        if self.health is not None:
            self.health.note_loss(loss)
        if math.isfinite(loss):
            self._run.log_history.append({"loss": loss, "step": self.step + 1})
            if self._run.is_main and self._run.writer is not None:
                self._run.writer().add_scalar("train/loss", loss, self.step + 1)
            if self._run.reporter is not None:
                self._run.reporter({"train/loss": loss}, self.step + 1)

    def _report(self, scalars: dict[str, float], step: int) -> None:
        report = self._report_to
        assert report is not None
        self._safe.attempt("scalars for report_to", lambda: report(scalars, step))

    def _tensorboard_writer(self) -> SummaryWriter:
        if self._writer is None:
            if isinstance(self._tensorboard, bool):
                from torch.utils.tensorboard import SummaryWriter

                name = f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}"
                self._writer = SummaryWriter(
                    str(self._run.output_dir / "runs" / name), max_queue=10_000, flush_secs=10
                )
            else:
                self._writer = self._tensorboard
        return self._writer


def _earlier_log(output_dir: Path, first_step: int) -> list[dict[str, Any]]:
    """What was logged before a loop was resumed."""
    if first_step == 0 or not (output_dir / FILE).exists():
        return []
    try:
        return [dict(entry) for entry in read_run_record(output_dir / FILE).log_history if entry["step"] <= first_step]
    except InputError as error:
        logger.warning("What was logged up to step %d is left out: %s", first_step, error)
        return []


def _is_compiled(model: nn.Module) -> bool:
    modules = [model, *([model.module] if isinstance(model, nn.parallel.DistributedDataParallel) else [])]
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules)
