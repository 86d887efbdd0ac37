"""Files that a finished run leaves: results.json and predictions.tsv."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_toolkit.files import replaced_at_once
from bert_toolkit.provenance import command_line, package_versions

if TYPE_CHECKING:
    from transformers import TrainingArguments

NO_TEXT = "backslashreplace"  # how names of files are written that are no text in UTF-8


def write_results(output_dir: str | Path, results: Mapping[str, object]) -> Path:
    """Writes `results.json` whole or not at all, with versions and command line added.

    Args:
        output_dir: Output directory of the run.
        results: Values that JSON can hold; numpy scalars and arrays are converted, NaN becomes null.

    Returns:
        The file.
    """
    path = Path(output_dir) / "results.json"
    record = {**results, "versions": package_versions(), "command": command_line()}
    text = json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False)
    with replaced_at_once(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8", errors=NO_TEXT)
    return path


def write_predictions(output_dir: str | Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Writes `predictions.tsv` with a header: tab-separated, line breaks and tabs inside a text become spaces.

    Args:
        output_dir: Output directory of the run.
        columns: Column name to values, all of one length.

    Returns:
        The file.
    """
    path = Path(output_dir) / "predictions.tsv"
    with replaced_at_once(path) as partial, partial.open("w", encoding="utf-8", errors=NO_TEXT, newline="\n") as file:
        file.write("\t".join(columns) + "\n")
        for row in zip(*columns.values(), strict=True):
            file.write("\t".join(as_cell(value) for value in row) + "\n")
    return path


HYPERPARAMETERS = (
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
    *("warmup_steps", "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm", "label_smoothing_factor", "seed"),
    *("bf16", "fp16"),
)
"""Arguments of a training that TensorBoard compares between runs."""


def write_hyperparameters(
    arguments: TrainingArguments, facts: Mapping[str, object], scores: Mapping[str, float], step: int
) -> None:
    """Writes hyper-parameters and final scores for the HPARAMS tab, into the TensorBoard run of the results.

    `SummaryWriter.add_hparams` would make one more run of them.

    Args:
        arguments: Of the training.
        facts: Further settings; those that are text or a number are taken.
        scores: Final scores.
        step: The last step.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    values = arguments.to_dict()  # choices by their names
    settings = {name: values[name] for name in HYPERPARAMETERS} | dict(facts)
    plain = {name: v if isinstance(v, bool | int | float) else str(v) for name, v in settings.items() if v is not None}
    finite = {f"score/{name}": value for name, value in scores.items() if math.isfinite(value)}
    with SummaryWriter(str(Path(str(arguments.output_dir)) / "runs" / "results")) as writer:
        for summary in hparams(plain, finite):
            writer._get_file_writer().add_summary(summary)
        for name, value in finite.items():
            writer.add_scalar(name, value, global_step=step)


def as_cell(value: object) -> str:
    """A value as one line of a table.

    Args:
        value: Numbers are shown with six digits.

    Returns:
        The text.
    """
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
