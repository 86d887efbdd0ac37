"""Tables of text: CSV, TSV, JSON, JSON lines and Parquet, read whole or refused at the first row that does not fit."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TextIO

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.files import replaced_at_once

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
TABLE_ENDINGS = (*DELIMITERS, *JSON_LINES, ".json", ".parquet")
WRITTEN_ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet")

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


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
        return len(next(iter(self.columns.values())))

    def require(self, names: Sequence[str]) -> None:
        """Raises InputError for the names that are no columns."""
        absent = [name for name in names if name not in self.columns]
        if absent:
            raise InputError(f"{self.place(0)} has no column {shown(absent)}: there are {shown(list(self.columns))}")

    def values(self, column: str) -> Sequence[Any]:
        """The values of a column; raises InputError if it is not there or a row has nothing in it."""
        self.require([column])
        values = self.columns[column]
        self.refuse_empty(column, [row for row, value in enumerate(values) if value is None])
        return values

    def texts(self, column: str) -> list[str]:
        """The values of a column; raises InputError unless each is a string with more than white space."""
        values = self.values(column)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(f"{self.place(row)} has {kind_of(value)} in column {brief(column)}, expected text")
        self.refuse_empty(column, [row for row, value in enumerate(values) if not value.strip()])
        return list(values)

    def refuse_empty(self, column: str, rows: Sequence[int]) -> None:
        """Raises InputError if there are `rows`, those with nothing in `column`."""
        if rows:
            others = f" (nor have {len(rows) - 1} later rows)" if len(rows) > 1 else ""
            raise InputError(
                f"{self.place(rows[0])} has nothing in column {brief(column)}{others}: fill it in or remove the row"
            )


def read_table(
    path: str | Path,
    delimiter: str | None = None,
    quoted: bool | None = None,
    encoding: str = "utf-8",
    column_names: Sequence[str] | None = None,
) -> Table:
    """Reads a file of rows; its ending says how.

    `.csv` and `.tsv` begin with a header and hold strings only. In `.csv` a field in double quotes may contain
    delimiters, line breaks and doubled quotes (RFC 4180); in `.tsv` quotes are text and a line is a row. `.jsonl` and
    `.ndjson` hold an object a line, `.json` a list of objects; what a row lacks is None. Of `.parquet` the columns of
    strings, numbers, booleans and lists of strings or integers are read. Nothing is ever unpickled.

    Args:
        path: The file.
        delimiter: One character between fields, or `tab`; by default a comma in `.csv` and a tab in `.tsv`.
        quoted: Whether double quotes enclose fields; by default so in `.csv` only.
        encoding: Of every format but Parquet.
        column_names: Names for a `.csv` or `.tsv` file that has no header.

    Returns:
        The table, with at least one row.

    Raises:
        InputError: No such file, an unknown ending, another encoding, NUL characters, no rows, rows with more or
            fewer fields than the header, columns without one name each, or whatever else the format forbids.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder, expected a file' if path.is_dir() else 'does not exist'}")
    ending = path.suffix.lower()
    if ending not in TABLE_ENDINGS:
        raise InputError(f"{path}: the ending must be one of {' '.join(TABLE_ENDINGS)}, got {ending or 'none'}")
    if ending == ".parquet":
        return _read_parquet(path)
    text = read_text(path, encoding)
    if ending == ".json":
        return _table_of_objects(path, _objects_of_list(path, text))
    if ending in JSON_LINES:
        return _table_of_objects(path, _objects_of_lines(path, text))
    quoted = ending == ".csv" if quoted is None else quoted
    return _read_delimited(path, text, delimiter, DELIMITERS[ending], quoted, column_names)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Reads a whole text file.

    Args:
        path: A regular file.
        encoding: Name of its encoding; a byte order mark is left out.

    Raises:
        InputError: Not readable, not in that encoding, empty, or with NUL characters.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise InputError(
            f"`encoding` must be one that Python knows, such as utf-8 or latin-1, got {encoding}"
        ) from None
    except UnicodeError as error:
        position = getattr(error, "start", 0)
        line = content.count(b"\n", 0, position) + 1
        raise InputError(
            f"{path}:{line} is not {encoding} (byte {position} of the file): save the file as UTF-8 or name its "
            "`encoding`"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line} holds a NUL character: this is no {encoding} text file")
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def check_new_file(path: Path, overwrite: bool) -> None:
    """Refuses, before any work is done, a file that `write_table` could not or should not write.

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
    """Writes a table that `read_table` reads, whole or not at all.

    In `.tsv` tabs and line breaks become spaces, in `.tsv` and `.csv` lists and objects are written as JSON.

    Args:
        path: The file; its ending is one of `WRITTEN_ENDINGS`.
        columns: Column name to its values, all of one length.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with replaced_at_once(path) as partial:
            if path.suffix.lower() == ".parquet":
                import pyarrow
                from pyarrow import parquet

                table = pyarrow.table({name: pyarrow.array(list(of)) for name, of in columns.items()})
                parquet.write_table(table, partial)
            else:
                with partial.open("w", encoding="utf-8", newline="") as file:
                    _write_rows(file, path.suffix.lower(), columns)
    except (OSError, ValueError, TypeError) as error:  # the latter two are pyarrow's for a column of several types
        raise InputError(f"{path} cannot be written: {reason_of(error)}") from error


def _write_rows(file: TextIO, ending: str, columns: Mapping[str, Sequence[Any]]) -> None:
    rows = zip(*columns.values(), strict=True)
    if ending in JSON_LINES:
        for row in rows:
            file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
    elif ending == ".csv":
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)
    else:
        for row in chain([tuple(columns)], rows):
            file.write("\t".join(re.sub(r"[\t\r\n]", " ", _cell(value)) for value in row) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_delimited(
    path: Path,
    text: str,
    delimiter: str | None,
    usual_delimiter: str,
    quoted: bool,
    column_names: Sequence[str] | None,
) -> Table:
    chosen = {"tab": "\t", "\\t": "\t", None: usual_delimiter}.get(delimiter, delimiter)
    if chosen is None or len(chosen) != 1 or chosen in '"\r\n':
        raise InputError(f"`delimiter` must be one character or `tab`, got {brief(delimiter)}")
    rows = _quoted_rows(path, text, chosen) if quoted else _plain_rows(text, chosen)
    if column_names is None:
        _, header = next(rows)
        names = [name.strip() or f"column {number}" for number, name in enumerate(header, start=1)]
        other = next((mark for mark in ",;\t|" if len(names) == 1 and delimiter is None and mark in names[0]), None)
        if other:
            raise InputError(
                f"{path}: the header {brief(names[0])} is one column; pass `delimiter` {brief(other)} to split it"
            )
    else:
        names = list(column_names)
    _check_names(path, names)
    lines, values = [], []
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(
                f"{path}:{line} has {_count(len(row), 'field')}, expected {len(names)}: {shown(names)}"
                + ("" if quoted or chosen != "," else "; pass `quoted true` if double quotes enclose fields")
            )
        lines.append(line)
        values.append(row)
    if not values:
        raise InputError(f"{path} has a header and no rows")
    return Table(
        dict(zip(names, map(list, zip(*values, strict=True)), strict=True)), lambda row: f"{path}:{lines[row]}"
    )


def _quoted_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """First line and fields of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "double a quote inside quotes, and close every quote; pass `quoted false` if quotes are text"
        raise InputError(f"{path}:{line}: {error}: {hint}") from None


def _plain_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # Only a newline ends a line: str.splitlines would also split at characters that belong to a text
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line:
            yield number, line.split(delimiter)


def _objects_of_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, parse_json(place, line)


def _objects_of_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    rows = parse_json(str(path), text)
    if not isinstance(rows, list):
        raise InputError(f"{path} must hold a list of objects, got {type(rows).__name__}; JSON lines end in .jsonl")
    for number, row in enumerate(rows, start=1):
        yield f"{path} (object {number})", row


def parse_json(place: str, text: str) -> Any:
    """A JSON value of which every string can be encoded and no object has a name twice.

    Args:
        place: Where the text stands, for the message.
        text: The JSON.

    Raises:
        InputError: Not JSON, nested too deeply, a number that is too long, half a character, or a name twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object_with_each_name_once)
        if _SURROGATE_ESCAPE.search(text):  # half a character, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not valid JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not usable JSON: {error}") from None
    return value


def _object_with_each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"{brief(next(name for name in names if names.count(name) > 1))} is there twice in one object"
        )
    return row


def _table_of_objects(path: Path, objects: Iterator[tuple[str, Any]]) -> Table:
    places, rows = [], []
    for place, row in objects:
        if not isinstance(row, dict):
            raise InputError(f"{place} must hold an object with named values, got {type(row).__name__}")
        places.append(place)
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise InputError(f"{path} holds no rows with named values")
    return Table({name: [row.get(name) for row in rows] for name in names}, places.__getitem__)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet, types

    def is_read(kind: pyarrow.DataType) -> bool:
        if types.is_list(kind) or types.is_large_list(kind):
            return is_text(kind.value_type) or types.is_integer(kind.value_type)
        if types.is_dictionary(kind):
            kind = kind.value_type
        return is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)

    def is_text(kind: pyarrow.DataType) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    def refuse(reason: Exception) -> NoReturn:
        raise InputError(f"{path} is no Parquet file or a damaged one: {reason_of(reason)}") from None

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = [column.name for column in schema if is_read(column.type)]
            _check_names(path, schema.names)
            if not names:
                raise InputError(f"{path} has no column of strings, numbers, booleans or lists of them")
            table = file.read(columns=names, use_threads=False)
        table.validate(full=True)
        columns = {name: table.column(name).to_pylist() for name in names}
    except InputError:
        raise
    except Exception as error:  # whatever the decoder stumbles over in a damaged file
        refuse(error)
    if not table.num_rows:
        raise InputError(f"{path} has no rows")
    return Table(columns, lambda row: f"{path} (row {row + 1})", _class_names(schema.metadata or {}, names))


def _class_names(metadata: Mapping[bytes, bytes], names: Sequence[str]) -> dict[str, list[str]]:
    """Names of classes that the datasets library has noted in a Parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        features = {name: features[name].get("feature", features[name]) for name in names}  # of a list, its elements'
        return {name: list(map(str, each["names"])) for name, each in features.items() if "names" in each}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # not from that library


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise InputError(f"{path} has two columns named {brief(twice)}: rename one of them")


def shown(names: Sequence[str], at_most: int = 12) -> str:
    """Names for a message of one line, whatever characters they hold."""
    return ", ".join(map(brief, names[:at_most])) + (
        f" and {len(names) - at_most} more" if len(names) > at_most else ""
    )


def brief(value: object, at_most: int = 60) -> str:
    """A value for a message of one line, whatever characters it holds and however long it is."""
    text = repr(value)
    return text if len(text) <= at_most else text[: at_most - 1] + "…"


def kind_of(value: Any) -> str:
    """What a value is, in a message: a string, a number, …"""
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float):
        return "a number"
    names = {"str": "a string", "list": "a list", "dict": "an object", "NoneType": "nothing"}
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
