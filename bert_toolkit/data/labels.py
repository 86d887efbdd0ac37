"""What the labels of a table mean: one class a row, several at once, or a number to predict."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_toolkit.data.tables import Table, brief, kind_of, shown
from bert_toolkit.errors import InputError

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
SINGLE, MULTI, REGRESSION = PROBLEM_TYPES

LARGEST = float(np.finfo(np.float32).max)

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_ZERO_ONE = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class LabelScheme:
    """The meaning of label columns; `encode` applies it to any table.

    Args:
        problem_type: One of `PROBLEM_TYPES`.
        names: Class names in the order of their ids; for regression the name of the column.
        columns: One label column, or one of 0 and 1 per class.
        separator: What stands between the labels of one cell, where a cell may hold several.
        numbered_names: What the integers of the column stand for, where the file says so.
    """

    problem_type: str
    names: list[str]
    columns: tuple[str, ...]
    separator: str | None = None
    numbered_names: list[str] | None = None

    def encode(self, table: Table) -> list:
        """Labels as the model takes them.

        Returns:
            A class id per row; for several at once a list of 0.0 and 1.0 per row, one per class; for regression a
            number per row.

        Raises:
            InputError: A row without label, or whose label is not among `names` or is no number, with its place.
        """
        if self.problem_type == REGRESSION:
            return _numbers(table, self.columns[0])
        if len(self.columns) > 1:
            return [list(row) for row in zip(*(_zeros_and_ones(table, name) for name in self.columns), strict=True)]
        ids = {name: number for number, name in enumerate(self.names)}
        rows = self.names_of_rows(table)
        for row, names in enumerate(rows):
            unknown = next((name for name in names if name not in ids), None)
            if unknown is not None:
                raise InputError(
                    f"{table.place(row)} has label {brief(unknown)}, which no training row has; known are "
                    f"{shown(self.names)}"
                )
        if self.problem_type == SINGLE:
            return [ids[name] for (name,) in rows]
        encoded = np.zeros((len(rows), len(ids)))
        for row, names in enumerate(rows):
            encoded[row, [ids[name] for name in names]] = 1.0
        return encoded.tolist()

    def names_of_rows(self, table: Table) -> list[list[str]]:
        """Names of the classes of each row: one, or any number if several at once."""
        (column,) = self.columns
        cells = self._cells(table, column)
        labels = [(label, row) for row, cell in enumerate(cells) for label in cell]
        _require_one_kind(table, column, labels)
        first_rows = dict(reversed(labels))
        names = {label: self._name(table, row, label) for label, row in first_rows.items()}
        rows = [[names[label] for label in cell] for cell in cells]
        if self.separator is not None:  # an empty cell is a row without any of the classes
            return [list(filter(None, names_of_row)) for names_of_row in rows]
        table.refuse_empty(column, [row for row, names_of_row in enumerate(rows) if "" in names_of_row])
        return rows

    def _cells(self, table: Table, column: str) -> list[list[Any]]:
        """The labels of each row as they stand in the file."""
        values = table.values(column)
        if self.problem_type == SINGLE:
            return [[value] for value in values]
        wanted, form = (list, "a list of labels") if self.separator is None else (str, "labels in a string")
        for row, value in enumerate(values):
            if not isinstance(value, wanted):
                raise InputError(f"{table.place(row)} has {kind_of(value)} in column {brief(column)}, expected {form}")
        return list(values) if self.separator is None else [value.split(self.separator) for value in values]

    def _name(self, table: Table, row: int, label: str | int | float) -> str:
        if isinstance(label, str):
            return " ".join(label.split())
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if self.numbered_names is not None and type(label) is int:
            if not 0 <= label < len(self.numbered_names):
                reason = "-1 marks withheld labels" if label == -1 else f"expected 0 to {len(self.numbered_names) - 1}"
                raise InputError(f"{table.place(row)} has label {brief(label)}: {reason}")
            return self.numbered_names[label]
        if not math.isfinite(label):
            raise InputError(f"{table.place(row)} has {label} as a label: fill it in or remove the row")
        return str(label)


def learn_labels(
    table: Table, columns: Sequence[str], problem_type: str = "auto", separator: str | None = None
) -> LabelScheme:
    """Finds out what the labels of the training rows mean, and refuses those from which nothing can be learned.

    Several columns, a separator and lists mean several labels at once; numbers of which some have decimals mean
    regression; anything else is one class a row. Classes are ordered as the file numbers them, by number if all are
    whole numbers, otherwise by name. White space around a class name does not count.

    Args:
        table: The training rows.
        columns: Label columns.
        problem_type: `auto`, or one of `PROBLEM_TYPES` to decide otherwise.
        separator: What stands between several labels in one cell.

    Raises:
        InputError: Labels missing, of mixed types, all the same, nearly all different, or not of the `problem_type`.
    """
    columns = tuple(columns)
    table.require(columns)
    if problem_type not in ("auto", *PROBLEM_TYPES):
        raise InputError(f"`problem_type` must be auto, {', '.join(PROBLEM_TYPES)}, got {problem_type}")
    if problem_type == "auto":
        problem_type = _guess_problem_type(table, columns, separator)
    if problem_type != MULTI and (separator is not None or len(columns) > 1):
        raise InputError(f"`problem_type {problem_type}` takes one label column and no `label_separator`")
    if separator is not None and (len(columns) > 1 or not separator.strip("\r\n")):
        raise InputError(
            f"`label_separator` goes with one label column and is at least one character, got {brief(separator)} for "
            f"{shown(columns)}"
        )
    first = columns[0]
    if problem_type == REGRESSION:
        if len(set(_numbers(table, first))) == 1:
            raise InputError(f"all {len(table)} rows have the same number in column {brief(first)}: nothing to learn")
        return LabelScheme(problem_type, [first], columns)
    scheme = LabelScheme(problem_type, list(columns), columns, separator, table.class_names.get(first))
    if len(columns) > 1:
        scheme.encode(table)
        return scheme
    used = {name for names in scheme.names_of_rows(table) for name in names}
    if len(used) < (2 if problem_type == SINGLE else 1):
        has = f"only the label {brief(used.pop())}" if used else "no label at all"
        raise InputError(f"the training rows have {has} in column {brief(first)}: at least two classes are needed")
    if problem_type == SINGLE and len(used) > max(20, len(table) // 2):
        raise InputError(
            f"column {brief(first)} has {len(used)} different labels in {len(table)} rows, too many for classes: name "
            "another column with `label_columns`, or pass `problem_type regression` if they are numbers to predict"
        )
    whole_numbers = all(map(_WHOLE_NUMBER.fullmatch, used))
    names = scheme.numbered_names or sorted(used, key=lambda name: (int(name) if whole_numbers else 0, name))
    if len(set(names)) < len(names):
        raise InputError(f"two classes have one name: {shown(names)}")
    return replace(scheme, names=names)


def _guess_problem_type(table: Table, columns: Sequence[str], separator: str | None) -> str:
    values = table.values(columns[0])
    if len(columns) > 1 or separator is not None or any(isinstance(value, list) for value in values):
        return MULTI
    # most of them, so that one bad value among numbers is named as such
    numbers = [number for number in map(_number, values) if number is not None]
    if 2 * len(numbers) > len(values) and not all(number.is_integer() for number in numbers):
        return REGRESSION
    return SINGLE


def _require_one_kind(table: Table, column: str, labels: Sequence[tuple[Any, int]]) -> None:
    kinds = [kind_of(label) for label, _ in labels]
    for kind, (_, row) in zip(kinds, labels, strict=True):
        if kind not in ("a string", "a number", "a truth value"):
            raise InputError(
                f"{table.place(row)} has {kind} as a label in {brief(column)}, expected a string or a number"
            )
        if kind != kinds[0]:
            raise InputError(
                f"{table.place(row)} has {kind} as a label in {brief(column)} and {table.place(labels[0][1])} has "
                f"{kinds[0]}: write all labels as one type"
            )


def _number(value: Any) -> float | None:
    """The number that a value is or spells, if it is finite as the 32-bit number that the model computes with."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None


def _numbers(table: Table, column: str) -> list[float]:
    values = table.values(column)
    numbers = [(row, _number(value)) for row, value in enumerate(values)]
    for row, number in numbers:
        if number is None:
            raise InputError(
                f"{table.place(row)} has {brief(values[row])} in column {brief(column)}, expected a finite number"
            )
    return [number for _, number in numbers if number is not None]


def _zeros_and_ones(table: Table, column: str) -> list[float]:
    values = table.values(column)
    marks = [_ZERO_ONE.get(str(value).strip().lower()) for value in values]
    if None in marks:
        row = marks.index(None)
        raise InputError(
            f"{table.place(row)} has {brief(values[row])} in column {brief(column)}, expected 0 or 1: several label "
            "columns hold one class each"
        )
    return [mark for mark in marks if mark is not None]
