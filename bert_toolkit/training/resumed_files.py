"""Looks into a checkpoint before a training goes on from it: whether its files are undamaged and of this model."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.training.checkpoints import MARKER, checkpoint_to_resume, checkpoints_of, is_whole_checkpoint


class DamagedCheckpointError(InputError):
    """A file of a checkpoint is not as it was written."""


def find_checkpoint(trainer: Trainer) -> str | None:
    """Find the checkpoint from which a training goes on, looked through by the main process, told to all.

    For `--resume_from_checkpoint last` a damaged checkpoint is named, with what is wrong with it, and passed over for
    the newest one that is whole.

    Args:
        trainer: Before training; every process calls it.

    Returns:
        Its folder, or None for a start from the beginning.

    Raises:
        InputError: The checkpoint asked for is damaged, or all are, or it is of another model.
    """
    found: list[str | None] = [None]
    if trainer.is_world_process_zero():
        wish, output_dir = trainer.args.resume_from_checkpoint, str(trainer.args.output_dir)
        # ZeRO 3 has taken the weights apart by now
        model = None if trainer.is_deepspeed_enabled else trainer.model
        if wish is not None and wish.lower() in ("last", "true"):
            found = [_newest_undamaged(Path(output_dir), model)]
        elif (named := checkpoint_to_resume(output_dir, wish)) is not None:
            try:
                check_checkpoint(Path(named), model)
            except DamagedCheckpointError as error:
                raise InputError(f"{error}; the other checkpoints are untouched, pass an earlier one") from error
            found = [named]
    return broadcast_object_list(found)[0]


def _newest_undamaged(output_dir: Path, model: Any) -> str | None:
    passed_over: list[str] = []
    chosen, damaged = None, False
    for folder in checkpoints_of(output_dir):
        try:
            if not (folder / MARKER).exists():
                passed_over.append(f"{folder} was never finished")
                continue
            if not is_whole_checkpoint(folder):
                raise DamagedCheckpointError(f"{folder} is damaged: files that it lists are missing or cut")
            check_checkpoint(folder, model)
        except DamagedCheckpointError as error:
            passed_over.append(str(error))
            damaged = True
            continue
        chosen = str(folder)
        break
    if chosen is None and damaged:
        raise InputError(
            f"no checkpoint in {output_dir} is whole ({'; '.join(passed_over)}): begin anew with "
            "--overwrite_output_dir true in place of --resume_from_checkpoint, or with another --output_dir"
        )
    for reason in passed_over:
        instead = f"the training goes on from {chosen}" if chosen else "the training begins anew"
        print(f"warning: {reason}; {instead}", file=sys.stderr, flush=True)
    return chosen


def check_checkpoint(folder: Path, model: Any) -> None:
    """Refuse a checkpoint that is damaged or holds another model; nothing is unpickled, and nothing is changed.

    Archives of PyTorch (`optimizer.pt`, `scheduler.pt`, `scaler.pt`, `rng_state.pth`) are read once and compared with
    the checksums that they hold. Of weights, which hold none, names and shapes are compared with the model.

    Args:
        folder: The checkpoint.
        model: The model that is to go on; its weights are not compared where it is no `PreTrainedModel`.

    Raises:
        DamagedCheckpointError: A file is damaged.
        InputError: The weights are not those of this model.
    """
    try:
        TrainerState.load_from_json(str(folder / "trainer_state.json"))
    except Exception as error:  # whatever JSON and the dataclass stumble over in a damaged file
        raise DamagedCheckpointError(f"{folder / 'trainer_state.json'} is damaged: {reason_of(error)}") from error
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DamagedCheckpointError(f"{path} is damaged: {reason_of(error)}") from error
        if damaged is not None:
            raise DamagedCheckpointError(f"{path} is damaged: the checksum of {damaged} in it is wrong")
    if isinstance(model, PreTrainedModel):
        _compare(folder, _saved_shapes(folder), model)


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every saved weight; none where they are sharded by FSDP."""
    index, files = folder / SAFE_WEIGHTS_INDEX_NAME, [folder / SAFE_WEIGHTS_NAME]
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        if index.exists():
            files = [
                folder / name for name in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            ]
        for path in (path for path in files if path.exists()):
            with safe_open(path, framework="pt") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"the weights in {folder} are damaged: {reason_of(error)}") from error
    return shapes


def _compare(folder: Path, saved: dict[str, tuple[int, ...]], model: PreTrainedModel) -> None:
    if not saved:
        return
    own = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    tied = getattr(model, "all_tied_weights_keys", {})
    differences = [f"{name}, which it has, is not in this one" for name in saved if name not in own]
    differences += [
        f"{name} has the shape {list(shape)}, in this one {list(own[name])}"
        for name, shape in saved.items()
        if own.get(name, shape) != shape
    ]
    differences += [f"it lacks {name}" for name in own if name not in saved and name not in tied]
    if differences:
        raise InputError(
            f"{folder} holds another model: {differences[0]}; resume with the model, classes and flags that it was "
            "trained with, or choose another --output_dir"
        )


@contextmanager
def errors_of_resuming(trainer: Trainer, checkpoint: str | None) -> Iterator[None]:
    """Tell in one line what goes wrong while Trainer takes over a checkpoint, before its training begins.

    Args:
        trainer: Trains inside the `with` block.
        checkpoint: What it goes on from; None for a training from the start, whose errors stay as they are.

    Raises:
        InputError: Trainer cannot take over the checkpoint, for example an optimizer of another kind.
    """
    began = _Began()
    trainer.add_callback(began)
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
        if checkpoint is None or began.yet:
            raise
        raise InputError(
            f"cannot go on from {checkpoint}: {reason_of(error)}; resume with the flags that it was trained with, or "
            "choose another --output_dir"
        ) from error
    finally:
        trainer.remove_callback(began)


class _Began(TrainerCallback):
    """Knows whether a training has begun."""

    yet = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember."""
        self.yet = True
