"""Records in one compact file (npz, nothing pickled) and back."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from bert_toolkit.monitoring.parameter_roles import ParameterInfo

Record = TypeVar("Record")


def save_records(path: Path, records: Sequence[Record], parameters: dict[str, ParameterInfo]) -> None:
    """Write all records of one kind, replacing the file in one move so that a crash leaves the old one whole.

    The file holds `names`, `roles` and `blocks` of P parameters and, for T records, a (T, P) array per statistic
    (NaN where the record has no such parameter, see `names_present`), a (T, P) mask per list of names, and a (T,)
    array per number.

    Args:
        path: file to write; its folder is made if needed.
        records: `GradientFlowRecord`s or `UpdateRatioRecord`s, oldest first; at least one.
        parameters: description of the model's parameters, which gives the order of the names.
    """
    mentioned = {name for record in records for name in _all_names(record)}
    names = [name for name in parameters if name in mentioned]
    names += sorted(mentioned.difference(names))
    column = {name: i for i, name in enumerate(names)}
    arrays = {
        "names": np.array(names),
        "roles": np.array([parameters[n].role if n in parameters else "other" for n in names]),
        "blocks": np.array([parameters[n].block if n in parameters else "" for n in names]),
    }
    for field in dataclasses.fields(records[0]):  # type: ignore[arg-type]
        values = [getattr(record, field.name) for record in records]
        if isinstance(values[0], tuple):
            mask = np.zeros((len(records), len(names)), dtype=bool)
            for row, present in zip(mask, values, strict=True):
                row[[column[name] for name in present]] = True
            arrays[f"{field.name}_present"] = mask
        elif isinstance(values[0], np.ndarray):
            matrix = np.full((len(records), len(names)), np.nan)
            for row, record, value in zip(matrix, records, values, strict=True):
                row[[column[name] for name in record.names]] = value  # type: ignore[attr-defined]
            arrays[field.name] = matrix
        else:
            arrays[field.name] = np.array(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def load_records(path: Path, kind: type[Record], last_step: int | None = None) -> list[Record]:
    """Read the records of a file.

    Args:
        path: file written by `save_records`.
        kind: record class of the file.
        last_step: leave out records of later steps, which a resumed run will make again.

    Returns:
        Records, oldest first, equal to the saved ones.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    names = arrays["names"]
    records = []
    for row, step in enumerate(arrays["step"]):
        if last_step is not None and step > last_step:
            continue
        present = arrays["names_present"][row]
        values = {}
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if f"{field.name}_present" in arrays:
                values[field.name] = tuple(str(n) for n in names[arrays[f"{field.name}_present"][row]])
            elif arrays[field.name].ndim == 2:
                values[field.name] = arrays[field.name][row][present]
            else:
                values[field.name] = arrays[field.name][row].item()
        records.append(kind(**values))
    return records


def _all_names(record: object) -> set[str]:
    lists = [value for value in vars(record).values() if isinstance(value, tuple)]
    return {name for names in lists for name in names}
