"""What the labels of a table mean: one class per row, several at once, or a number to predict."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from statistics import mode
from typing import Any

import numpy as np

from bert_toolkit.data.label_names import NUMERIC_NAME, class_name, likeness, marks_missing, remarks_on_names
from bert_toolkit.data.tables import Table, brief, kind_of, shown
from bert_toolkit.errors import InputError

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
SINGLE, MULTI, REGRESSION = PROBLEM_TYPES

LARGEST = float(np.finfo(np.float32).max)

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}([. ]\d{3})+),\d+", re.ASCII)
_ITEM = r"""('[^']*'|"[^"]*"|[-+]?[\d.]+(e[-+]?\d+)?|true|false|none|null|nan)"""
_WRITTEN_LIST = re.compile(
    rf"""(\w+\()?  [\[({{]+ \s* ({_ITEM} ([\s,:\[\](){{}}]+ {_ITEM})*)? [\s,]* [\])}}]+ (,[^()]*\))?
      |  \[ [^\[\],;|]* [,;|] [^\[\]]* \]  |  {{ [^{{}},]* , [^{{}}]* }}""",
    re.VERBOSE | re.IGNORECASE,
)
_WRITTEN_MARKS = re.compile(r"<?(M([\s,;|]+M)+|M([/-]M){2,})>?".replace("M", r"(?:[01](?:\.0*)?|true|false)"), re.I)
_ZERO_ONE = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class LabelScheme:
    """The meaning of label columns; `encode` applies it to any table.

    Args:
        problem_type: One of `PROBLEM_TYPES`.
        names: Class names in the order of their ids; for regression the name of the column.
        columns: One label column, or one of 0 and 1 per class.
        separator: What stands between the labels of one cell, where a cell may hold several.
        numbered_names: What the integers of the column stand for, where the training rows' file says so.
        by_position: Whether a list holds a 0 or 1 for each class, not the labels themselves.
        remarks: Sentences on spellings that a reader must know.
    """

    problem_type: str
    names: list[str]
    columns: tuple[str, ...]
    separator: str | None = None
    numbered_names: list[str] | None = None
    by_position: bool = False
    remarks: list[str] = field(default_factory=list)

    def encode(self, table: Table) -> list[Any]:
        """Return labels as the model takes them.

        Args:
            table: Any rows with these columns.

        Returns:
            A class id per row; for several at once a list of 0.0 and 1.0 per row, one per class; for regression a
            number per row.

        Raises:
            InputError: A row without label, or whose label is not among `names` or is no number, with its place.
        """
        column = self.columns[0]
        if self.problem_type == REGRESSION:
            return _numbers(table, column)
        if len(self.columns) > 1:
            return [list(row) for row in zip(*(_zeros_and_ones(table, name) for name in self.columns), strict=True)]
        if self.by_position:
            return _marks(table, column, self.cells(table), len(self.names))
        ids = {name: number for number, name in enumerate(self.names)}
        rows = self.names_of_rows(table)
        for row, names in enumerate(rows):
            unknown = next((name for name in names if name not in ids), None)
            if unknown is not None:
                twin = next((name for name in self.names if likeness(name) == likeness(unknown)), None)
                raise InputError(
                    f"{table.place(row)} has label {brief(unknown)}, which no training row has; known are "
                    + shown(self.names)
                    + (f"; did you mean {brief(twin)}?" if twin else "")
                )
        if self.problem_type == SINGLE:
            return [ids[name] for (name,) in rows]
        encoded = np.zeros((len(rows), len(ids)))
        for row, names in enumerate(rows):
            encoded[row, [ids[name] for name in names]] = 1.0
        return encoded.tolist()

    def cells(self, table: Table) -> list[list[Any]]:
        """Return the labels of each row as they stand in the file.

        Args:
            table: Any rows with the label column.

        Returns:
            A list per row: its label, or for several at once all of them, empty where there is none.

        Raises:
            InputError: A row has no label, or one of another kind than expected, with its place.
        """
        (column,) = self.columns
        values = table.values(column)
        wanted, form = (list, "a list of labels") if self.separator is None else (str, "labels in a string")
        for row, value in enumerate(values):
            if self.problem_type == MULTI and not isinstance(value, wanted):
                raise InputError(f"{table.place(row)} has {kind_of(value)} in column {brief(column)}, expected {form}")
        if self.problem_type == SINGLE:
            cells = [[value] for value in values]
        elif self.separator is None:
            cells = list(values)
        else:  # an empty cell is a row without any of the classes
            cells = [[part for part in value.split(self.separator) if part.strip()] for value in values]
        _require_one_kind(table, column, [(label, row) for row, cell in enumerate(cells) for label in cell])
        return cells

    def names_of_rows(self, table: Table) -> list[list[str]]:
        """Return the names of the classes of each row: one, or any number if several at once.

        Args:
            table: Any rows with the label column.

        Returns:
            A list of names per row.

        Raises:
            InputError: As `cells`; or a label is what programs write where one is missing, or a number of no class.
        """
        (column,) = self.columns
        cells = self.cells(table)
        first_rows: dict[Any, int] = {}
        for row, cell in enumerate(cells):
            for label in cell:
                first_rows.setdefault(label, row)
        names = {label: self._name(table, row, label) for label, row in first_rows.items()}
        rows = [[names[label] for label in cell] for cell in cells]
        missing = {name for label, name in names.items() if isinstance(label, str) and marks_missing(name)}
        if missing:
            what = f"{shown(sorted(missing))}, which marks a missing label," if "" not in missing else "nothing"
            table.refuse_empty(
                column, [row for row, of_row in enumerate(rows) if not missing.isdisjoint(of_row)], what
            )
        return rows

    def _name(self, table: Table, row: int, label: str | int | float) -> str:
        if isinstance(label, str):
            return class_name(label)
        names = table.class_names.get(self.columns[0], self.numbered_names)
        if names is not None and not isinstance(label, bool) and label == int(label):
            if not 0 <= label < len(names):
                reason = "-1 marks withheld labels" if label == -1 else f"expected 0 to {len(names) - 1}"
                raise InputError(f"{table.place(row)} has label {brief(label)}: {reason}")
            return class_name(names[int(label)])
        return class_name(str(label))


def learn_labels(
    table: Table, columns: Sequence[str], problem_type: str = "auto", separator: str | None = None
) -> LabelScheme:
    """Find out what the labels of the training rows mean, and refuse those from which nothing can be learned.

    Several columns, a separator and lists mean several labels at once; numbers of which some have decimals mean
    regression; anything else is one class per row. Lists hold labels (names or numbers, each once) or, where all are
    0 and 1 and equally many, or a value comes twice in one, a 0 or 1 for each class. Classes are ordered as the file
    numbers them, by number if all are numbers, otherwise by name. Numbers compare as numbers (`1` and `1.0` are one
    class), names in Unicode's normal form C and whatever their white space.

    Args:
        table: The training rows.
        columns: Label columns.
        problem_type: `auto`, or one of `PROBLEM_TYPES` to decide otherwise.
        separator: What stands between several labels in one cell.

    Returns:
        The scheme.

    Raises:
        InputError: Labels missing, of mixed types, all the same, nearly all different, written in a way that cannot be
            told apart from a name, or not of the `problem_type`.
    """
    columns = tuple(columns)
    table.require(columns)
    if problem_type not in ("auto", *PROBLEM_TYPES):
        raise InputError(f"`problem_type` must be auto, {', '.join(PROBLEM_TYPES)}, got {problem_type}")
    first = columns[0]
    if len(columns) == 1 and problem_type in ("auto", MULTI):
        _refuse_written_lists(table, first, separator)
    if problem_type == "auto":
        problem_type = _guess_problem_type(table, columns, separator)
    if problem_type != MULTI and (separator is not None or len(columns) > 1):
        raise InputError(f"`problem_type {problem_type}` takes one label column and no `label_separator`")
    if separator is not None and (len(columns) > 1 or not separator.strip("\r\n")):
        raise InputError(
            f"`label_separator` goes with one label column and is at least one character, got {brief(separator)} for "
            f"{shown(columns)}"
        )
    if problem_type == REGRESSION:
        if len(set(_numbers(table, first))) == 1:
            raise InputError(f"all {len(table)} rows have the same number in column {brief(first)}: nothing to learn")
        return LabelScheme(problem_type, [first], columns)
    numbered_names = table.class_names.get(first)
    scheme = LabelScheme(problem_type, list(columns), columns, separator, numbered_names)
    if len(columns) > 1:
        _require_difference(scheme, table)
        return scheme
    if problem_type == MULTI:
        cells = scheme.cells(table)
        if _are_by_position(table, first, cells, numbered_names):
            positions = list(map(str, range(mode(map(len, cells)))))
            given = numbered_names if numbered_names and len(numbered_names) == len(positions) else positions
            scheme = replace(scheme, names=given, by_position=True)
            _require_difference(scheme, table)
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
    numeric = all(map(NUMERIC_NAME.fullmatch, used))
    names = list(map(class_name, numbered_names or ())) or sorted(
        used, key=lambda name: (Decimal(name) if numeric else 0, name)
    )
    if len(set(names)) < len(names):
        raise InputError(f"two classes have one name: {shown(names)}")
    written = {label for cell in scheme.cells(table) for label in cell if isinstance(label, str)}
    scheme = replace(scheme, names=names, remarks=remarks_on_names(written, names))
    _require_difference(scheme, table)
    return scheme


def _require_difference(scheme: LabelScheme, table: Table) -> None:
    labels = scheme.encode(table)
    if all(label == labels[0] for label in labels):
        raise InputError(
            f"all {len(table)} rows have the same labels in column {shown(scheme.columns)}: nothing to learn"
        )


def _guess_problem_type(table: Table, columns: Sequence[str], separator: str | None) -> str:
    values = table.values(columns[0])
    if len(columns) > 1 or separator is not None or any(isinstance(value, list) for value in values):
        return MULTI
    # most of them, so that one bad value among numbers is named as such
    numbers = [number for number in map(_number, values) if number is not None]
    if 2 * len(numbers) > len(values) and not all(number.is_integer() for number in numbers):
        return REGRESSION
    return SINGLE


def _refuse_written_lists(table: Table, column: str, separator: str | None) -> None:
    """Refuse text that is a list to people and would be one name to a program."""
    values = table.values(column)
    texts = [unicodedata.normalize("NFKC", value).strip() if isinstance(value, str) else "" for value in values]
    comma = separator is None and 2 * sum(map(bool, map(_DECIMAL_COMMA.fullmatch, texts))) > len(texts)
    for row, text in enumerate(texts):
        divided = bool(text) and separator is not None and separator in values[row]
        is_list = _WRITTEN_LIST.fullmatch(text) and (text[0] != "(" or "," in text)
        brackets = divided and text[:1] + text[-1:] in ("[]", "()", "{}")
        if comma or brackets or is_list or not divided and _WRITTEN_MARKS.fullmatch(text):
            raise InputError(
                f"{table.place(row)} has {brief(values[row])} in column {brief(column)}, several values as one text: "
                "give lists in .jsonl or .parquet, or without brackets with `label_separator`, or a column of 0 and 1 "
                f"for each class, or decimals with a point; if it names one class, pass `problem_type {SINGLE}`"
            )


def _are_by_position(table: Table, column: str, cells: Sequence[list[Any]], names: list[str] | None) -> bool:
    """Whether lists hold a 0 or 1 for each class; refuses lists of numbers that are neither that nor labels."""
    longest = max(map(len, cells))
    marks = all(_mark(value) is not None for cell in cells for value in cell)
    # 0 and 1 in lists of two could be the numbers of two classes; then every row would have both
    alike = longest > 1 and all(len(cell) == longest for cell in cells)
    values = {str(value) for cell in cells for value in cell}
    if not marks and alike and len(values) == 2 and any(len(set(cell)) < len(cell) for cell in cells):
        raise InputError(
            f"{table.place(0)} has {brief(cells[0])} in column {brief(column)}, where lists are equally long and hold "
            f"nothing but {shown(sorted(values))}: for a 0 or 1 for each class write 0 and 1"
        )
    for row, cell in enumerate(cells):
        twice = len(set(map(str, cell))) < len(cell) and not all(isinstance(value, str) for value in cell)
        if marks and (len(set(map(_mark, cell))) < len(cell) or any(isinstance(value, bool) for value in cell)):
            return True
        if not marks and (twice or any(isinstance(value, float) and not value.is_integer() for value in cell)):
            raise InputError(
                f"{table.place(row)} has {brief(cell)} in column {brief(column)}: a list holds labels, each once, or "
                "a 0 or 1 for each class; counts and probabilities are neither"
            )
    return marks and alike and (names is None or len(names) == longest)


def _marks(table: Table, column: str, cells: Sequence[list[Any]], count: int) -> list[list[float]]:
    for row, cell in enumerate(cells):
        if len(cell) != count or any(_mark(value) is None for value in cell):
            raise InputError(
                f"{table.place(row)} has {brief(cell)} in column {brief(column)}, expected {count} values of 0 or 1, "
                "one for each class as in most of the training rows"
            )
    return [[_mark(value) or 0.0 for value in cell] for cell in cells]


def _mark(value: Any) -> float | None:
    text = str(value).strip().lower()
    mark = _ZERO_ONE.get(text)
    # other spellings of the same numbers, such as 1e0, -0.0 and 1.00, are rare
    return mark if mark is not None else _ZERO_ONE.get(class_name(unicodedata.normalize("NFKC", text)))


def _require_one_kind(table: Table, column: str, labels: Sequence[tuple[Any, int]]) -> None:
    kinds = [kind_of(label) for label, _ in labels]
    for kind, (label, row) in zip(kinds, labels, strict=True):
        if kind not in ("a string", "a number", "a truth value"):
            raise InputError(
                f"{table.place(row)} has {kind} as a label in {brief(column)}, expected a string or a number"
            )
        if kind != kinds[0]:
            raise InputError(
                f"{table.place(row)} has {kind} as a label in {brief(column)} and {table.place(labels[0][1])} has "
                f"{kinds[0]}: write all labels as one type"
            )
        if kind == "a number" and not abs(label) <= LARGEST:
            raise InputError(f"{table.place(row)} has {label} as a label: fill it in or remove the row")


def _number(value: Any) -> float | None:
    """The number that a value is or spells, if it is finite as the 32-bit number that the model computes with."""
    if kind_of(value) == "a string" and _NUMBER.fullmatch(value.strip()):
        value = float(value.strip())
    return float(value) if kind_of(value) == "a number" and abs(value) <= LARGEST else None


def _numbers(table: Table, column: str) -> list[float]:
    return _converted(table, column, _number, "a finite number")


def _zeros_and_ones(table: Table, column: str) -> list[float]:
    return _converted(table, column, _mark, "0 or 1: several label columns hold one class each")


def _converted(table: Table, column: str, convert: Any, expected: str) -> list[float]:
    values = table.values(column)
    converted = list(map(convert, values))
    if None in converted:
        row = converted.index(None)
        raise InputError(f"{table.place(row)} has {brief(values[row])} in column {brief(column)}, expected {expected}")
    return converted
