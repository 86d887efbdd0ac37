"""Records in one compact file (npz, nothing pickled) and back."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.files import replaced_at_once
from bert_toolkit.monitoring.parameter_roles import ParameterInfo

Record = TypeVar("Record")
# what numpy calls the type of a column
_NUMBERS = {int: "iu", float: "f", bool: "b"}


def save_records(path: Path, records: Sequence[Record], parameters: dict[str, ParameterInfo]) -> None:
    """Write all records of one kind, replacing the file in one move so that a crash leaves the old one whole.

    The file holds `names`, `roles` and `blocks` of P parameters and, for T records, a (T, P) array per statistic
    (NaN where the record has no such parameter, see `names_present`), a (T, P) mask per list of names, and a (T,)
    array per number.

    Args:
        path: File to write; its folder is made if needed.
        records: `GradientFlowRecord`s or `UpdateRatioRecord`s, oldest first; at least one.
        parameters: Description of the model's parameters, which gives the order of the names.
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
    with replaced_at_once(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_records(path: Path, kind: type[Record], last_step: int | None = None) -> list[Record]:
    """Read the records of a file.

    Args:
        path: File written by `save_records`.
        kind: Record class of the file.
        last_step: Leave out records of later steps, which a resumed run will make again.

    Returns:
        Records, oldest first, equal to the saved ones.

    Raises:
        InputError: No such file, or not one that holds whole records of this kind.
    """
    arrays = read_arrays(path)
    names = _array(path, arrays, "names", "U", (None,))
    n_records = len(_array(path, arrays, "step", "iu", (None,)))
    by_parameter = (n_records, len(names))
    columns: dict[str, np.ndarray] = {}
    masks: dict[str, np.ndarray] = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if hints[field.name] is np.ndarray:
            columns[field.name] = _array(path, arrays, field.name, "f", by_parameter)
        elif hints[field.name] in _NUMBERS:
            columns[field.name] = _array(path, arrays, field.name, _NUMBERS[hints[field.name]], (n_records,))
        else:  # a tuple of names
            masks[field.name] = _array(path, arrays, f"{field.name}_present", "b", by_parameter)
    records = []
    for row, step in enumerate(columns["step"]):
        if last_step is not None and step > last_step:
            continue
        values: dict[str, Any] = {name: tuple(map(str, names[mask[row]])) for name, mask in masks.items()}
        for name, column in columns.items():
            values[name] = column[row].item() if column.ndim == 1 else column[row][masks["names"][row]]
        records.append(kind(**values))
    return records


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file, by name; nothing is unpickled.

    Args:
        path: The file.

    Raises:
        InputError: No such file, or it is no whole npz file.
    """
    damaged = InputError(f"{path} is damaged or no npz file of plain arrays: put back a whole copy, or delete it")
    try:
        with np.load(path, allow_pickle=False) as file:  # fails for a single array in numpy's own format
            arrays = dict(file)
            if all(isinstance(array, np.ndarray) for array in arrays.values()):
                return arrays
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
    except Exception as error:  # whatever zip, zlib and numpy stumble over; numpy would have it unpickled
        raise damaged from error
    raise damaged


def _array(
    path: Path, arrays: dict[str, np.ndarray], name: str, kinds: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    """The array `name`, if its type is one of numpy's `kinds` and it has this shape (None: any length)."""
    array = arrays.get(name)
    if array is None:
        raise InputError(f"{path} holds no array {name!r}: it is damaged or holds records of another kind")
    fits = array.ndim == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind not in kinds or not fits:
        raise InputError(f"{path} is damaged: {name!r} is of type {array.dtype} and shape {array.shape}")
    return array


def _all_names(record: object) -> set[str]:
    lists = [value for value in vars(record).values() if isinstance(value, tuple)]
    return {name for names in lists for name in names}
