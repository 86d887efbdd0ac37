"""Checkpoints that can be trusted after a kill: each is marked when whole, and only whole ones are resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from transformers.trainer_callback import TrainerCallback

from bert_toolkit.errors import InputError

MARKER = "checkpoint_files.json"


class CheckpointMarkerCallback(TrainerCallback):
    """Writes the names and sizes of a checkpoint's files into it once every process has written its part.

    Reads and writes at `on_save`, on the main process; costs one directory listing a checkpoint.
    """

    def on_save(self, args, state, control, **kwargs) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            partial = folder / f"{MARKER}.partial"
            partial.write_text(json.dumps(_file_sizes(folder), indent=1), encoding="utf-8")
            partial.replace(folder / MARKER)


def is_whole_checkpoint(folder: str | Path) -> bool:
    """Whether every file that `CheckpointMarkerCallback` listed in a checkpoint is there with its full size."""
    try:
        sizes = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    present = _file_sizes(Path(folder))
    return bool(sizes) and all(present.get(name) == size for name, size in sizes.items())


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The whole checkpoint with the highest step in an output directory, or None."""
    numbered = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and is_whole_checkpoint(path)
    ]
    return max(numbered)[1] if numbered else None


def checkpoint_to_resume(output_dir: str | Path, resume_from_checkpoint: str | None) -> str | None:
    """Turns the flag `--resume_from_checkpoint` into the argument of `Trainer.train`.

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


def _file_sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(MARKER)
    }
