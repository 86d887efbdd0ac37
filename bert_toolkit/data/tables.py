"""Tables of text: CSV, TSV, JSON, JSON lines and Parquet, read whole or refused at the first row that does not fit.

Python's `csv` and `json` do the reading, pyarrow that of Parquet. The readers of `datasets`, pandas and pyarrow are
not used for text: they fill short rows with nothing, rename or drop a column whose name comes twice, mend broken
quotes, keep NUL characters, turn `007` into 7 and `NA` into nothing, all without a word, and name no line of the file
where they refuse.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_toolkit.data.delimited_rows import named_delimiter, plain_rows, quoted_rows
from bert_toolkit.data.text_files import ending_of, read_text, reading
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.files import replaced_at_once

if TYPE_CHECKING:
    import datasets

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TABLE_ENDINGS = (*DELIMITERS, *JSON_ENDINGS, ".parquet")
WRITTEN_ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet")

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_INSTEAD = {
    **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".tgz", ".zst", ".lzma", ".z"), ": unpack it"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ": save the sheet as CSV"),
    **dict.fromkeys((".txt", ".psv", ".dat"), ": rename it if it is a table"),
}
"""What to do with files of other endings."""


@dataclass(frozen=True)
class Table:
    """Rows of named columns, and where a person finds each of them.

    Args:
        columns: Column name to its values, one per row.
        place: Row number (from 0) to where it is, such as `reviews.csv:17`.
        class_names: For columns of integers that stand for named classes, those names in order.
    """

    columns: Mapping[str, Sequence[Any]]
    place: Callable[[int], str]
    class_names: Mapping[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def require(self, names: Iterable[str]) -> None:
        """Refuse names that are no columns.

        Args:
            names: Names of columns.

        Raises:
            InputError: There are no such columns.
        """
        absent = [name for name in names if name not in self.columns]
        if absent:
            raise InputError(f"{self.place(0)} has no column {shown(absent)}: there are {shown(list(self.columns))}")

    def values(self, column: str) -> Sequence[Any]:
        """Return the values of a column in which no row is empty.

        Args:
            column: Name of the column.

        Raises:
            InputError: There is no such column, or a row has nothing in it.
        """
        self.require([column])
        values = self.columns[column]
        self.refuse_empty(column, [row for row, value in enumerate(values) if value is None])
        return values

    def texts(self, column: str) -> list[str]:
        """Return the values of a column of strings, each with more than white space.

        Args:
            column: Name of the column.

        Raises:
            InputError: There is no such column, or a row has no text in it.
        """
        values = self.values(column)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(f"{self.place(row)} has {kind_of(value)} in column {brief(column)}, expected text")
        self.refuse_empty(column, [row for row, value in enumerate(values) if not value.strip()])
        return list(values)

    def select(self, rows: Sequence[int]) -> "Table":
        """Return the table of these rows alone.

        Args:
            rows: Row numbers, from 0, in any order.
        """

        def read(name: str) -> list[Any]:
            values = self.columns[name]
            return [values[row] for row in rows]

        columns = _ColumnsWhenAskedFor(list(self.columns), read)
        return Table(columns, lambda row: self.place(rows[row]), self.class_names)

    def refuse_empty(self, column: str, rows: Sequence[int], what: str = "nothing") -> None:
        """Refuse rows with nothing in a column, if there are any.

        Args:
            column: Name of the column.
            rows: Numbers of the rows that are empty, from 0.
            what: What stands there, if it is not nothing but means it.

        Raises:
            InputError: There are such rows.
        """
        if rows:
            more = f"{'nor' if what == 'nothing' else 'so'} have {len(rows) - 1} later rows"
            others = f" ({more})" if len(rows) > 1 else ""
            raise InputError(
                f"{self.place(rows[0])} has {what} in column {brief(column)}{others}: fill it in or remove the row"
                + ("" if what == "nothing" else ", or rename the class if it is one")
            )


def read_table(
    path: str | Path,
    delimiter: str | None = None,
    quoted: bool | None = None,
    encoding: str = "utf-8",
    column_names: Sequence[str] | None = None,
) -> Table:
    """Read a file of rows; its ending says how.

    `.csv` and `.tsv` begin with a header and hold strings only. In `.csv` a field in double quotes may contain
    delimiters, line breaks and doubled quotes (RFC 4180); in `.tsv` quotes are text and a line is a row. A line
    `sep=;` before the header, as spreadsheets write it, names the delimiter. `.jsonl`, `.ndjson` and `.json` hold an
    object on each line or a list of objects; what a row lacks is None. Columns of `.parquet` are read when they are
    asked for. Text files may be packed (`.csv.gz`). Nothing is ever unpickled.

    Args:
        path: The file.
        delimiter: One character between fields, or `tab`; by default a comma in `.csv` and a tab in `.tsv`.
        quoted: Whether double quotes enclose fields; by default so in `.csv` only.
        encoding: Of every format but Parquet; a byte order mark overrules it.
        column_names: Names for a `.csv` or `.tsv` file that has no header.

    Returns:
        The table, with at least one row. Names of columns are in Unicode's normal form C.

    Raises:
        InputError: No such file, an unknown ending, another encoding, NUL characters, no rows, rows with more or
            fewer fields than the header, columns without one name each, or whatever else the format forbids.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder, expected a file' if path.is_dir() else 'does not exist'}")
    ending = ending_of(path)
    if ending not in TABLE_ENDINGS:
        raise InputError(
            f"{path}: the ending must be one of {' '.join(TABLE_ENDINGS)}, got {ending or 'none'}"
            + _INSTEAD.get(ending, "")
        )
    if ending == ".parquet":
        return _read_parquet(path)
    text = read_text(path, encoding)
    with reading(path):
        if ending in JSON_ENDINGS:
            return _table_of_objects(path, json_rows(path, io.StringIO(text, newline="\n")))
        quoted = ending == ".csv" if quoted is None else quoted
        return _read_delimited(path, text, delimiter, DELIMITERS[ending], quoted, column_names)


def _read_delimited(
    path: Path,
    text: str,
    delimiter: str | None,
    usual_delimiter: str,
    quoted: bool,
    column_names: Sequence[str] | None,
) -> Table:
    named, line_of_name = named_delimiter(text)
    chosen = {"tab": "\t", "\\t": "\t", None: named or usual_delimiter}.get(delimiter, delimiter)
    if chosen is None or len(chosen) != 1 or chosen in '"\r\n':
        raise InputError(f"`delimiter` must be one character or `tab`, got {brief(delimiter)}")
    numbered = quoted_rows(path, text, chosen) if quoted else plain_rows(text, chosen)
    rows = [(line, fields) for line, fields in numbered if line != line_of_name]
    if column_names is None:
        header = rows.pop(0)[1] if rows else []
        names = [name.strip() or f"column {number}" for number, name in enumerate(header, start=1)]
        other = next((mark for mark in ",;\t|" if len(names) == 1 and delimiter is None and mark in names[0]), None)
        if other:
            raise InputError(
                f"{path}: the header {brief(names[0])} is one column; pass `delimiter` {brief(other)} to split it"
            )
        if not quoted and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names) and names:
            raise InputError(f"{path}: the header {shown(names)} is in quotes; pass `quoted true` to take them off")
    else:
        names = list(column_names)
    names = _checked_names(path, names)
    for line, fields in rows:
        if column_names is None and fields == header:
            raise InputError(f"{path}:{line} repeats the header, as where files were joined: remove the line")
        if len(fields) != len(names):
            in_quotes = not quoted and any(field.startswith('"') for field in fields)
            nameless = len(names) > 1 and all(len(each) == len(names) + 1 for _, each in rows)
            raise InputError(
                f"{path}:{line} has {len(fields)} field{'s' * (len(fields) != 1)}, expected {len(names)}: "
                + shown(names)
                + ("; pass `quoted true` if double quotes enclose fields" if in_quotes else "")
                + ("; every row has a field more than the header: give it a name there, such as `id`" * nameless)
            )
    if not rows:
        raise InputError(f"{path} has a header and no rows")
    lines, values = zip(*rows, strict=True)
    columns = dict(zip(names, map(list, zip(*values, strict=True)), strict=True))
    return Table(columns, lambda row: f"{path}:{lines[row]}")


def json_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Read JSON that has a row on each line, or one list of all rows, whatever the ending of the file.

    Args:
        path: The file, for messages.
        lines: Its lines; those of a list are joined, those of rows are taken one after another.

    Yields:
        Where a row is, and the row.

    Raises:
        InputError: What `json` cannot read, a name that is twice in one object, text that no file can hold, or one
            value that is no list.
    """
    numbered: Iterator[tuple[int, str]] = (each for each in enumerate(lines, start=1) if each[1].strip())
    number, first = next(numbered, (1, ""))
    begin, end = first.strip()[:1], first.strip()[-1:]
    second = next(numbered, None)
    numbered = chain([(number, first)], [second] if second else [], numbered)
    if (begin, end) not in (("{", "}"), ("[", "]")) or second is None and (begin == "[" or ending_of(path) == ".json"):
        rows = parse_json(str(path), "\n" * (number - 1) + "".join(line for _, line in numbered))
        if not isinstance(rows, list):
            got = f"an object with {shown(list(rows))}" if isinstance(rows, dict) else kind_of(rows)
            raise InputError(f"{path} must hold a list of objects, or one on each line, got {got}")
        yield from ((f"{path} (object {count})", row) for count, row in enumerate(rows, start=1))
        return
    for number, line in numbered:
        yield f"{path}:{number}", parse_json(f"{path}:{number}", line)


def parse_json(place: str, text: str) -> Any:
    """Return what a JSON text holds.

    Args:
        place: Where it stands, for messages.
        text: One JSON value.

    Raises:
        InputError: It is no JSON, has a name twice in one object, or text that no file can hold.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object_with_each_name_once)
        if _SURROGATE_ESCAPE.search(text):  # half a character, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        hint = ": write a list of objects, or one object on each line" if error.msg == "Extra data" else ""
        raise InputError(f"{place} is not valid JSON: {error}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not usable JSON: {error}") from None
    return value


def _object_with_each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{brief(twice)} is there twice in one object")
    return row


def _table_of_objects(path: Path, placed_rows: Iterable[tuple[str, Any]]) -> Table:
    places, rows = [], []
    for place, row in placed_rows:
        if not isinstance(row, dict):
            raise InputError(f"{place} must hold an object with named values, got {kind_of(row)}")
        places.append(place)
        rows.append(row)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if not keys:
        raise InputError(f"{path} holds no rows with named values")
    columns = {
        name: [row.get(key) for row in rows] for name, key in zip(_checked_names(path, keys), keys, strict=True)
    }
    return Table(columns, places.__getitem__)


def _read_parquet(path: Path) -> Table:
    import datasets
    from pyarrow import parquet

    def read(name: str | None) -> Any:
        """The values of a column; without a name, the number of rows and the schema."""
        try:
            with reading(path), parquet.ParquetFile(path) as file:
                if name is None:
                    return file.metadata.num_rows, file.schema_arrow
                content = file.read(columns=[name], use_threads=False)
                content.validate(full=True)
                values = content.column(0).to_pylist()
                if len(values) != file.metadata.num_rows:
                    raise ValueError(f"{len(values)} values of {name!r} in {file.metadata.num_rows} rows")
                return values
        except InputError:
            raise
        except Exception as error:  # whatever the decoder stumbles over in a damaged file
            raise InputError(f"{path} is no Parquet file or a damaged one: {reason_of(error)}") from None

    count, schema = read(None)
    if not count or not schema.names:
        raise InputError(f"{path} has no {'rows' if schema.names else 'columns'}")
    try:
        features = datasets.Features.from_arrow_schema(schema)
    except Exception:  # notes on features that are damaged, or those of another version
        features = datasets.Features()
    return table_of_features(str(path), schema.names, read, features)


class _ColumnsWhenAskedFor(Mapping[str, Sequence[Any]]):
    """Columns of which each is read when it is asked for: vectors and images that nobody uses are never read."""

    def __init__(self, names: Sequence[str], read: Callable[[str], Sequence[Any]]) -> None:
        self._columns: dict[str, Sequence[Any] | None] = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> Sequence[Any]:
        values = self._columns[name]
        if values is None:
            values = self._columns[name] = self._read(name)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def table_of_features(
    source: str, names: Sequence[str], read: Callable[[str], Sequence[Any]], features: "datasets.Features"
) -> Table:
    """Return a table whose columns are read when they are asked for.

    Args:
        source: Where it comes from, for messages.
        names: Its columns, of which there is at least one with at least one row.
        read: Column name to its values.
        features: What the datasets library knows of the columns, the names of classes above all.

    Returns:
        The table.

    Raises:
        InputError: Two columns of one name.
    """
    original = dict(zip(_checked_names(source, names), names, strict=True))
    # of a list, those of its elements
    elements = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return Table(
        _ColumnsWhenAskedFor(list(original), lambda name: read(original[name])),
        lambda row: f"{source} (row {row + 1})",
        {name: elements[key].names for name, key in original.items() if hasattr(elements.get(key), "names")},
    )


def _checked_names(source: str | Path, names: Iterable[str]) -> list[str]:
    names = [unicodedata.normalize("NFC", name) for name in names]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise InputError(f"{source} has two columns named {brief(twice)}: rename one of them")
    return names


def check_new_file(path: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, a file that `write_table` could not or should not write.

    Args:
        path: The file; its ending must be one of `WRITTEN_ENDINGS`.
        overwrite: Whether it may exist.

    Raises:
        InputError: Another ending, a file that is there, or a folder that is not.
    """
    if path.suffix.lower() not in WRITTEN_ENDINGS:
        raise InputError(f"the ending of {path} must be one of {' '.join(WRITTEN_ENDINGS)}")
    if path.is_dir() or path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another name or pass `overwrite true`")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a table that `read_table` reads, whole or not at all.

    In `.tsv` tabs and line breaks become spaces. What a format cannot hold as it is (lists in `.tsv` and `.csv`, times
    in `.jsonl`, a column of several types in `.parquet`) is written as JSON.

    Args:
        path: The file; its ending is one of `WRITTEN_ENDINGS`.
        columns: Column name to its values, all of one length.

    Raises:
        InputError: The file cannot be written.
    """
    ending = path.suffix.lower()
    rows = zip(*columns.values(), strict=True)
    try:
        with replaced_at_once(path) as partial:
            if ending == ".parquet":
                from pyarrow import parquet, table

                parquet.write_table(table({name: _arrow_array(values) for name, values in columns.items()}), partial)
                return
            with partial.open("w", encoding="utf-8", newline="") as file:
                if ending == ".jsonl":
                    file.writelines(f"{_json(dict(zip(columns, row, strict=True)))}\n" for row in rows)
                    return
                texts = ([_text(value) for value in row] for row in chain([columns], rows))
                if ending == ".csv":
                    csv.writer(file).writerows(texts)
                else:
                    file.writelines("\t".join(re.sub(r"[\t\r\n]", " ", text) for text in row) + "\n" for row in texts)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}") from error


def _arrow_array(values: Sequence[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.array(list(values))
    except (pyarrow.ArrowException, OverflowError):
        return pyarrow.array([None if value is None else _text(value) for value in values])


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def shown(names: Sequence[str], at_most: int = 12) -> str:
    """Return the names for a message of one line, whatever characters they hold.

    Args:
        names: Any names.
        at_most: How many are named; the others are counted.
    """
    others = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(brief, names[:at_most])) + others


def brief(value: object, at_most: int = 60) -> str:
    """Return a value for a message of one line, whatever characters it holds and however long it is.

    Args:
        value: Any value.
        at_most: Most characters of the result.
    """
    text = repr(value)
    return text if len(text) <= at_most else text[: at_most - 1] + "…"


def kind_of(value: Any) -> str:
    """Return what a value is, in a message: `a string`, `a number` and so on.

    Args:
        value: As it was read from a file.
    """
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float | Decimal):
        return "a number"
    names = {"str": "a string", "list": "a list", "dict": "an object", "NoneType": "nothing"}
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")
