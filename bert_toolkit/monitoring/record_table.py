"""Records as a table with a row for each step and parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_toolkit.monitoring.parameter_roles import ParameterInfo

if TYPE_CHECKING:
    import pandas


def record_table(records: Sequence[Any], parameters: dict[str, ParameterInfo]) -> pandas.DataFrame:
    """Make a table of records.

    Args:
        records: Dataclasses of one class with `step`, `names` and arrays that align with them, oldest first.
        parameters: Description of the model's parameters.

    Returns:
        A row for each step and parameter, in that order: `step`, `parameter`, `block`, `role`, then a column for each
        array, and for each number of the record, which is the same in all rows of a step.
    """
    import pandas

    columns: dict[str, list[Any]] = {name: [] for name in ("step", "parameter", "block", "role")}
    for record in records:
        infos = [parameters.get(name) for name in record.names]
        columns["step"] += [record.step] * len(infos)
        columns["parameter"] += record.names
        columns["block"] += ["" if info is None else info.block for info in infos]
        columns["role"] += ["other" if info is None else info.role for info in infos]
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if field.name == "step" or isinstance(value, tuple):
                continue
            column = columns.setdefault(field.name, [])
            column += value.tolist() if isinstance(value, np.ndarray) else [value] * len(infos)
    return pandas.DataFrame(columns)
