"""Checkpoints that can be trusted after a kill: each is marked when whole, and only whole ones are resumed.

`resume_callbacks` gives all that a Trainer needs for it.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bert_toolkit.errors import InputError
from bert_toolkit.files import replaced_at_once
from bert_toolkit.processes import is_distributed

logger = logging.getLogger(__name__)

MARKER = "checkpoint_files.json"
STOPPED_STATUS = 128 + signal.SIGTERM  # 143, what a shell reports for a process that SIGTERM ended


def resume_callbacks() -> list[TrainerCallback]:
    """Return what makes a run that was stopped go on exactly where it was.

    Returns:
        Callbacks, to be given to Trainer last and in this order.
    """
    return [CheckpointMarkerCallback(), StopOnSigtermCallback()]


class CheckpointMarkerCallback(TrainerCallback):
    """A callback that writes names and sizes of a checkpoint's files into it once all processes have written theirs.

    It also removes old checkpoints, as `save_total_limit` says, instead of Trainer, which removes them before the new
    one is marked, and a kill in between would leave none. Marks of steps later than the one that training starts
    at are taken away, because these checkpoints are of another course of the run and may be half overwritten.

    Reads and writes at `on_train_begin` and `on_save`, on the main process; costs one directory listing
    per checkpoint.
    """

    def __init__(self) -> None:
        """Wait for `on_train_begin`."""
        self._limit: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the limit of checkpoints, and unmark those of steps that are still to come."""
        if args.save_total_limit is not None:  # None: an earlier call of train() was interrupted
            self._limit, args.save_total_limit = args.save_total_limit, None
        if state.is_world_process_zero:
            for step, folder in _checkpoints(str(args.output_dir)):
                if step > state.global_step:
                    (folder / MARKER).unlink(missing_ok=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint just written, then remove old ones."""
        if is_distributed():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            with replaced_at_once(folder / MARKER) as partial:
                partial.write_text(json.dumps(_file_sizes(folder), indent=1), encoding="utf-8")
            self._remove_old(str(args.output_dir), {folder.name, Path(state.best_model_checkpoint or "").name})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the limit back, and leave the best checkpoint alone where one is allowed."""
        args.save_total_limit = self._limit
        if self._limit == 1 and state.best_model_checkpoint and state.is_world_process_zero:
            self._remove_old(str(args.output_dir), {Path(state.best_model_checkpoint).name})

    def _remove_old(self, output_dir: str, kept: set[str]) -> None:
        """Remove what is not whole, then the oldest, until as many as allowed are left."""
        if self._limit is None or self._limit < 1:
            return
        folders = [folder for _, folder in _checkpoints(output_dir)]
        removable = [folder for folder in folders if folder.name not in kept]
        removable.sort(key=is_whole_checkpoint)  # stable: the lower step first
        for folder in removable[: max(0, len(folders) - self._limit)]:
            shutil.rmtree(folder, ignore_errors=True)


class StopOnSigtermCallback(TrainerCallback):
    """A callback that, after SIGTERM, saves a checkpoint at the next step boundary and exits with status 143.

    Schedulers send SIGTERM some time before they take a machine away. An evaluation that is due at the same step runs
    first, so that the resumed run equals an uninterrupted one. If any process receives the signal, all stop at the
    same step. While no signal comes, one process alone spends nothing; several exchange one number per step, for which
    nothing waits until the next step.

    Reads at `on_step_end`, `on_epoch_end`, `on_save` and `on_train_end`. Add it last: it raises SystemExit, and the
    other callbacks must have had their turn. It is not Trainer's `enable_jit_checkpoint`, which saves between gradient
    and update, calls no `on_save`, and lets each process decide by its own clock.
    """

    def __init__(self) -> None:
        """Wait for `on_train_begin`."""
        self._received = self._stop = self._leave = False
        self._saved_step: int | None = None
        self._previous_handler: Any = None
        self._group: torch.distributed.ProcessGroup | None = None
        self._vote: tuple[torch.distributed.Work, torch.Tensor] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen for the signal."""
        self._received = self._stop = self._leave = False
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._receive)
        else:
            logger.warning("SIGTERM will not be answered with a checkpoint: only Python's main thread gets signals")
        if is_distributed() and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")  # of CPUs, so that no GPU has to be waited for

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint where a signal has come, unless an epoch ends here."""
        self._stop = self._stop or self._counted_vote()
        self._cast_vote()
        # What is due at the end of an epoch would be passed over if the checkpoint were written before it
        if self._stop and not float(state.epoch).is_integer():
            self._save_and_leave(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint where a signal has come in the epoch's last step."""
        if self._stop:
            self._save_and_leave(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the process where this checkpoint was asked for."""
        self._saved_step = state.global_step
        if self._leave:
            self._exit(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop listening, and end the process where a signal came in the last step."""
        self._stop = self._stop or self._counted_vote()
        self._cast_vote()
        self._stop = self._stop or self._counted_vote()
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None
        if self._stop and self._saved_step == state.global_step:
            self._exit(args, state)

    def _receive(self, signal_number: int, frame: object) -> None:
        self._received = True

    def _save_and_leave(self, state: TrainerState, control: TrainerControl) -> None:
        control.should_save = True
        if state.global_step < state.max_steps:  # after the last step it is left to `on_train_end`
            self._leave = control.should_training_stop = True

    def _exit(self, args: TrainingArguments, state: TrainerState) -> NoReturn:
        if state.is_world_process_zero:
            print(
                f"\nstopped by SIGTERM: everything up to step {state.global_step} is saved in {args.output_dir}; "
                "continue with the same command and --resume_from_checkpoint last",
                file=sys.stderr,
                flush=True,
            )
        sys.exit(STOPPED_STATUS)

    def _cast_vote(self) -> None:
        if self._group is not None:
            vote = torch.tensor(int(self._received))
            work = torch.distributed.all_reduce(vote, torch.distributed.ReduceOp.MAX, self._group, async_op=True)
            self._vote = work, vote

    def _counted_vote(self) -> bool:
        """Whether this process alone, or any of several when they voted last, has received the signal."""
        if self._group is None:
            return self._received
        if self._vote is None:
            return False
        (work, vote), self._vote = self._vote, None
        work.wait()
        return bool(vote)


def is_whole_checkpoint(folder: str | Path) -> bool:
    """Return whether every file that `CheckpointMarkerCallback` listed in a checkpoint is there with its full size.

    Args:
        folder: The checkpoint.

    Returns:
        False also where nothing is listed.
    """
    try:
        sizes = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    present = _file_sizes(Path(folder))
    return isinstance(sizes, dict) and bool(sizes) and all(present.get(name) == size for name, size in sizes.items())


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the whole checkpoint with the highest step.

    Args:
        output_dir: Output directory of a run.

    Returns:
        Its folder, or None.
    """
    return next((folder for folder in checkpoints_of(output_dir) if is_whole_checkpoint(folder)), None)


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    """Return all checkpoints of a run, whole or not.

    Args:
        output_dir: Output directory of the run.

    Returns:
        Their folders, the highest step first.
    """
    return [folder for _, folder in reversed(_checkpoints(output_dir))]


def checkpoint_to_resume(output_dir: str | Path, resume_from_checkpoint: str | None) -> str | None:
    """Turn the flag `--resume_from_checkpoint` into the argument of `Trainer.train`.

    Args:
        output_dir: Where `last` is looked for.
        resume_from_checkpoint: A checkpoint folder; `last` (or `true`) for the last whole one of `output_dir`;
            None to start afresh.

    Returns:
        A folder, or None where there is nothing to resume: also for `last` if the earlier run was stopped before its
        first whole checkpoint, so that a job can always be restarted with the same command.

    Raises:
        InputError: The folder named is not a checkpoint, or one whose files are not all there.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint.lower() == "false":
        return None
    if resume_from_checkpoint.lower() in ("last", "true"):
        folder = last_whole_checkpoint(output_dir)
        return None if folder is None else str(folder)
    folder = Path(resume_from_checkpoint)
    if not (folder / "trainer_state.json").is_file():
        raise InputError(
            f"`resume_from_checkpoint` must be `last` or a checkpoint folder, {folder} holds no trainer_state.json"
        )
    if (folder / MARKER).exists() and not is_whole_checkpoint(folder):
        raise InputError(f"the checkpoint {folder} is not whole: files that it lists are missing or cut; pass `last`")
    return str(folder)


def _checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, whole or not, in the order of steps."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _file_sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(MARKER)
    }
