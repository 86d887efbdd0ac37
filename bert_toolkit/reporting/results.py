"""Files that a finished run leaves: results.json and predictions.tsv."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_toolkit.files import replaced_at_once
from bert_toolkit.provenance import command_line, package_versions

NO_TEXT = "backslashreplace"  # how names of files are written that are no text in UTF-8


def write_results(output_dir: str | Path, results: Mapping[str, object]) -> Path:
    """Write `results.json` whole or not at all, with versions and command line added.

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
    """Write `predictions.tsv` with a header: tab-separated, line breaks and tabs inside a text become spaces.

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


def as_cell(value: object) -> str:
    """Return a value as one line of a table.

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
