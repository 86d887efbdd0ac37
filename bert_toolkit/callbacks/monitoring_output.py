"""Where a monitor's numbers go: TensorBoard, W&B, other reporters, PNG files and a record file."""

import json
import logging
import math
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from bert_toolkit.callbacks.monitored_run import MonitoredRun
from bert_toolkit.callbacks.safe_outputs import SafeOutputs
from bert_toolkit.errors import InputError
from bert_toolkit.monitoring.parameter_roles import ParameterInfo
from bert_toolkit.monitoring.record_file import Record, load_records, save_records
from bert_toolkit.run_page.run_record import write_run_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

# Figures may take this fraction of a run's time, and come at least this often, however short the run.
_FIGURE_TIME_FRACTION = 0.001
_FEWEST_FIGURES = 5


class MonitoringOutput(Generic[Record]):
    """The outputs of one monitor in one run; only the main process writes.

    Nothing here raises: an output that fails is told once and left out from then on.

    Args:
        name: Names the record file, e.g. `gradient_flow`.
        kind: Class of the records, None where no file is written.
        figures: Whether to draw.
        safe: Runs the outputs.
        run: The run, with its folder, its steps and where to report.
    """

    def __init__(self, name: str, kind: type[Record] | None, figures: bool, safe: SafeOutputs, run: MonitoredRun):
        self.name = name
        self.kind = kind
        self.figures = figures
        self.folder = run.folder
        self.is_main = run.is_main
        self._safe = safe
        self._first_step, self._last_step = run.first_step, run.last_step
        self._run_is = (run.output_dir, run.arguments, run.log_history)
        self._writer = run.writer
        self._wandb = run.wandb
        self._reporter = run.reporter
        self._started, self._started_at = time.perf_counter(), time.time()
        self._drawing_seconds = 0.0
        self._figures_drawn = 0

    def earlier_records(self) -> list[Record]:
        """Return the records of a run that is resumed, up to the step where this one begins."""
        if self.kind is None or self._first_step == 0:
            return []
        try:
            return load_records(self._record_file, self.kind, self._first_step)
        except (InputError, OSError) as error:
            logger.warning("The %s history starts at step %d: %s", self.name, self._first_step + 1, error)
            return []

    @property
    def _record_file(self) -> Path:
        return self.folder / f"{self.name}.npz"

    def save(self, records: Sequence[Record], parameters: dict[str, ParameterInfo]) -> None:
        """Write the record file.

        Args:
            records: All records, oldest first.
            parameters: Description of the model's parameters.
        """
        if self.is_main and records and self.kind is not None:
            self._safe.attempt("record file", lambda: save_records(self._record_file, records, parameters))

    def write_run_record(self) -> None:
        """Write settings, command, versions and log of the run, for its page."""
        if self.is_main:
            self._safe.attempt("record of the run", lambda: write_run_record(*self._run_is))

    def write_scalars(self, step: int, scalars: Callable[[], dict[str, float]]) -> None:
        """Report scalars at the step at which they were measured.

        Args:
            step: That step.
            scalars: Makes names and values.
        """
        if not self.is_main and self._reporter is None:
            return
        made = self._safe.attempt("scalars", scalars) or {}
        values = {key: float(value) for key, value in made.items() if math.isfinite(value)}  # what trackers can draw
        if not values:
            return
        if self.is_main and self._writer is not None:
            self._safe.attempt("scalars in TensorBoard", lambda: self._to_tensorboard(step, values))
        if self.is_main and (wandb := self._running_wandb()) is not None:
            self._safe.attempt("scalars in W&B", lambda: wandb.log({**values, "train/global_step": step}))
        if self._reporter is not None:
            self._reporter(values, step)

    def _to_tensorboard(self, step: int, scalars: dict[str, float]) -> None:
        assert self._writer is not None
        writer = self._writer()
        for key, value in scalars.items():
            writer.add_scalar(key, value, step)

    @property
    def has_time_to_draw(self) -> bool:
        """Whether drawing has so far kept within its fraction of the run's time."""
        return self._drawing_seconds <= _FIGURE_TIME_FRACTION * (time.perf_counter() - self._started)

    def figure_is_due(self, step: int) -> bool:
        """Return whether to draw now: within the fraction of the run's time, and a few times in every run.

        Args:
            step: The step that would be drawn.
        """
        if not (self.figures and self.is_main):
            return False
        progress = (step - self._first_step) / max(self._last_step - self._first_step, 1)
        return self.has_time_to_draw or progress * _FEWEST_FIGURES >= self._figures_drawn

    def write_figures(self, step: int, figures: dict[str, "Callable[[], Figure]"], png: bool = False) -> None:
        """Draw figures for TensorBoard and W&B and, at the end of a run, as PNG files.

        Args:
            step: The step that they show.
            figures: Name -> what draws it.
            png: Write files too.
        """
        if not (self.figures and self.is_main):
            return
        start = time.perf_counter()
        for name, draw in figures.items():
            self._write_figure(step, name, draw, png)
        self._drawing_seconds += time.perf_counter() - start
        self._figures_drawn += 1

    def _write_figure(self, step: int, name: str, draw: "Callable[[], Figure]", png: bool) -> None:
        attempt = self._safe.attempt
        figure = attempt("figures", draw)
        if figure is None:
            return
        if png:
            attempt("PNG files", lambda: self._save_png(name, figure))
        image = attempt("figures", lambda: _pixels(figure))
        if image is None:
            return
        if self._writer is not None:
            attempt("figures in TensorBoard", lambda: self._image_to_tensorboard(step, name, image))
        if (wandb := self._running_wandb()) is not None:
            key = f"monitoring/{name}"
            attempt("figures in W&B", lambda: wandb.log({key: wandb.Image(image), "train/global_step": step}))

    def _save_png(self, name: str, figure: "Figure") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / f"{name}.png")

    def _image_to_tensorboard(self, step: int, name: str, image: np.ndarray) -> None:
        assert self._writer is not None
        writer = self._writer()
        writer.add_image(f"monitoring/{name}", image, step, dataformats="HWC")
        writer.flush()

    def _running_wandb(self) -> Any:
        wandb = sys.modules.get("wandb") if self._wandb else None
        return wandb if getattr(wandb, "run", None) is not None else None

    def finding_markers(self) -> list[tuple[int, str]]:
        """Return (step, parameter) of the faults that training health, if it takes part, has reported in this run."""
        file = self.folder / "training_health.jsonl"
        if not file.exists() or file.stat().st_mtime < self._started_at:
            return []
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [(line["step"], name) for line in lines if line["event"] == "finding" for name in line["parameters"]]

    def close(self) -> None:
        """Let go of the writer, which closes once no monitor of the run needs it."""
        self._writer = None


class SubRun:
    """A TensorBoard run beside Trainer's own, shared by all monitors of one training that write there.

    Trainer keeps its writer to itself, and a second writer in the same folder would lose points in a live TensorBoard.
    The writer is closed when the last monitor lets go of it.

    Args:
        output_dir: Output folder of the run.
    """

    _shared: "weakref.WeakValueDictionary[str, SubRun]" = weakref.WeakValueDictionary()

    def __init__(self, output_dir: str):
        self.output_dir = output_dir
        self._writer: SummaryWriter | None = None

    @classmethod
    def of(cls, output_dir: str) -> "SubRun":
        """Return the one that all monitors of this output folder share.

        Args:
            output_dir: Output folder of the run.
        """
        shared = cls._shared.get(output_dir)
        if shared is None:
            shared = cls._shared[output_dir] = cls(output_dir)
        return shared

    def writer(self) -> "SummaryWriter":
        """Return the writer; the first call makes it."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Its thread writes while training goes on: the queue holds the scalars of many steps.
            folder = str(_run_folder(self.output_dir) / "monitoring")
            threading.excepthook = partial(_tell_of_threads, threading.excepthook)
            self._writer = SummaryWriter(folder, max_queue=10_000, flush_secs=10)
            weakref.finalize(self, _close, self._writer)
        return self._writer


def _tell_of_threads(told: Callable[[threading.ExceptHookArgs], Any], failure: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's thread could not write: it hands its error to the next event, which warns once."""
    of_events = type(failure.thread).__module__ == "tensorboard.summary.writer.event_file_writer"
    if not (of_events and isinstance(failure.exc_value, OSError)):
        told(failure)


def _close(writer: "SummaryWriter") -> None:
    with suppress(OSError):  # what could not be written was told when it was due
        writer.close()


def _run_folder(output_dir: str) -> Path:
    """The TensorBoard folder that Trainer, or another monitor, writes to in this process, else a new one."""
    chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if chosen is not None:
        return Path(chosen).expanduser()
    runs = Path(output_dir) / "runs"
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
