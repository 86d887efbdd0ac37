"""Where a monitoring callback's numbers go: TensorBoard, the loss record, W&B, PNG files and a record file."""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic
from zipfile import BadZipFile

import numpy as np
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.training_args import TrainingArguments

from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.parameter_roles import ParameterInfo
from bert_toolkit.monitoring.record_file import Record, load_records, save_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter
    from transformers import Trainer

logger = logging.getLogger(__name__)

# Figures may take this share of a run's time, and come at least this often, however short the run.
_FIGURE_TIME_SHARE = 0.001
_FEWEST_FIGURES = 5


def check_sampling(every_n_steps: int, skip_probability: float) -> None:
    """Refuse arguments that cannot be meant.

    Raises:
        InputError: if `every_n_steps` is not a positive integer or `skip_probability` lies outside [0, 1].
    """
    if not isinstance(every_n_steps, int) or isinstance(every_n_steps, bool) or every_n_steps < 1:
        raise InputError(f"every_n_steps must be a whole number of steps, 1 or more, got {every_n_steps!r}")
    if not 0.0 <= skip_probability <= 1.0:
        raise InputError(f"skip_probability must lie in [0, 1], got {skip_probability!r}")


def is_sampled(step: int, every_n_steps: int) -> bool:
    """Whether optimizer step `step` (1 for the first) is observed: the first one and every multiple."""
    return step == 1 or step % every_n_steps == 0


class MonitoringOutput(Generic[Record]):
    """The outputs of one callback; only the main process writes.

    Args:
        name: names the sub-run folder in TensorBoard and the record file, e.g. `gradient_flow`.
        kind: class of the records.
        figures: whether to draw.
    """

    def __init__(self, name: str, kind: type[Record], figures: bool):
        self.name = name
        self.kind = kind
        self.figures = figures
        self._trainer: Trainer | None = None
        self._writer: SummaryWriter | None = None
        self._scalars: dict[str, float] = {}
        self._drawing_seconds = 0.0
        self._figures_drawn = 0

    def attach(self, callback: TrainerCallback, trainer: "Trainer") -> None:
        """Share the trainer's TensorBoard writer and put scalars into its loss records.

        Moves the callback to the front of the trainer's callbacks, so that it completes a log record before any
        reporter sees it, and keeps the additions out of the progress bar's printed line.
        """
        handler = trainer.callback_handler
        if callback in handler.callbacks:
            handler.callbacks.remove(callback)
        handler.callbacks.insert(0, callback)
        printers = [c for c in handler.callbacks if isinstance(c, (PrinterCallback, ProgressCallback))]
        if printers:
            handler.callbacks.insert(handler.callbacks.index(printers[0]), _ShortConsoleLine(self.name))
        self._trainer = trainer

    def begin(self, args: TrainingArguments, state: TrainerState) -> list[Record]:
        """Start a run: where to write, and the records of the run that is resumed, if it is."""
        self.folder = Path(str(args.output_dir)) / "monitoring"
        self.is_main = state.is_world_process_zero
        self._args = args
        self._started, self._started_at = time.perf_counter(), time.time()
        self._first_step, self._last_step = state.global_step, state.max_steps
        self._drawing_seconds = 0.0
        self._figures_drawn = 0
        self._scalars = {}
        return self._earlier_records(state.global_step) if state.global_step > 0 else []

    def _earlier_records(self, last_step: int) -> list[Record]:
        try:
            return load_records(self._record_file, self.kind, last_step)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            logger.warning("The %s history starts at step %d: %s", self.name, last_step + 1, error)
            return []

    @property
    def _record_file(self) -> Path:
        return self.folder / f"{self.name}.npz"

    def save(self, records: Sequence[Record], parameters: dict[str, ParameterInfo]) -> None:
        """Write the record file."""
        if self.is_main and records:
            save_records(self._record_file, records, parameters)

    def write_scalars(self, step: int, scalars: Callable[[], dict[str, float]]) -> None:
        """Report scalars at once, or keep them for the next loss record when attached."""
        if self._trainer is not None:
            self._scalars = scalars()
        elif self.is_main:
            writer = self.writer
            for key, value in scalars().items():
                writer.add_scalar(key, value, step)

    def complete_log(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Put waiting scalars into a loss record and into the log history; call it from `on_log`."""
        if self._trainer is None or not self._scalars or "loss" not in logs:
            return
        logs.update(self._scalars)
        state.log_history[-1].update(self._scalars)
        self._scalars = {}

    @property
    def has_time_to_draw(self) -> bool:
        """Whether drawing has so far kept within its share of the run's time."""
        return self._drawing_seconds <= _FIGURE_TIME_SHARE * (time.perf_counter() - self._started)

    def figure_is_due(self, step: int) -> bool:
        """Whether to draw now: within the share of the run's time, and at least a few times in every run."""
        if not (self.figures and self.is_main):
            return False
        progress = (step - self._first_step) / max(self._last_step - self._first_step, 1)
        return self.has_time_to_draw or progress * _FEWEST_FIGURES >= self._figures_drawn

    def write_figures(self, step: int, figures: dict[str, Callable[[], "Figure"]], png: bool = False) -> None:
        """Draw figures for TensorBoard and W&B and, at the end of a run, as PNG files."""
        if not (self.figures and self.is_main):
            return
        start = time.perf_counter()
        for name, draw in figures.items():
            figure = draw()
            image = _pixels(figure)
            self.writer.add_image(f"monitoring/{name}", image, step, dataformats="HWC")
            if "wandb" in (self._args.report_to or ()) and getattr(sys.modules.get("wandb"), "run", None) is not None:
                wandb = sys.modules["wandb"]
                wandb.log({f"monitoring/{name}": wandb.Image(image), "train/global_step": step})
            if png:
                self.folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(self.folder / f"{name}.png")
        self.writer.flush()
        self._drawing_seconds += time.perf_counter() - start
        self._figures_drawn += 1

    def finding_markers(self) -> list[tuple[int, str]]:
        """(step, parameter) of the faults that TrainingHealthCallback, if it takes part, has reported in this run."""
        file = self.folder / "training_health.jsonl"
        if not file.exists() or file.stat().st_mtime < self._started_at:
            return []
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [(line["step"], name) for line in lines if line["event"] == "finding" for name in line["parameters"]]

    @property
    def writer(self) -> "SummaryWriter":
        """The trainer's writer when attached and it has one, else one in a sub-run folder beside the run.

        A second writer in the folder of the run would lose points in a live TensorBoard.
        """
        if self._trainer is not None:
            for callback in self._trainer.callback_handler.callbacks:
                shared = getattr(callback, "tb_writer", None)
                if shared is not None:
                    return shared
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Its thread writes while training goes on: the queue holds the scalars of many steps.
            folder = str(_run_folder(self._args) / self.name)
            self._writer = SummaryWriter(folder, max_queue=10_000, flush_secs=10)
        return self._writer

    def close(self) -> None:
        """Close the writer that this output opened."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _ShortConsoleLine(TrainerCallback):
    """Takes scalars of one monitor out of a log record once all reporters have it, before it is printed."""

    def __init__(self, prefix: str):
        self.prefix = f"{prefix}/"

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = {} if logs is None else logs
        for key in [key for key in logs if key.startswith(self.prefix)]:
            del logs[key]


def _run_folder(args: TrainingArguments) -> Path:
    """The TensorBoard folder that Trainer, or another callback, writes to in this process, else a new one."""
    chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if chosen is not None:
        return Path(chosen).expanduser()
    runs = Path(str(args.output_dir)) / "runs"
    host = socket.gethostname()
    # An event file is called events.out.tfevents.<time>.<host>.<process>.<count>.
    mine = f"events.out.tfevents.*.{host}.{os.getpid()}.*"
    for depth in ("*", "*/*"):
        files = sorted(runs.glob(f"{depth}/{mine}"), key=lambda file: file.stat().st_mtime)
        if files:
            return runs / files[-1].relative_to(runs).parts[0]
    return runs / f"{datetime.now():%b%d_%H-%M-%S}_{host}"


def _pixels(figure: "Figure") -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
