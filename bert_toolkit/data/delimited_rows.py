"""Lines of CSV and TSV as fields, with the line at which each row begins."""

import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bert_toolkit.errors import InputError

_DELIMITER_LINE = re.compile(r'\s*"?sep ?= ?(\\t|tab|[^\r\n])"?[,;\t ]*\r?(?:\n|$)', re.IGNORECASE)
_QUOTE_AFTER_SPACE = re.compile(r'\s+"')

Row = tuple[int, list[str]]
"""Number of its first line, and its fields."""


def named_delimiter(text: str) -> tuple[str | None, int]:
    r"""Return the delimiter that a first line such as `sep=;` names, as spreadsheets write it.

    Args:
        text: Of the file.

    Returns:
        The delimiter and the number of that line; None and 0 where there is no such line.

    Examples:
        >>> named_delimiter("sep=;\ntext;label")
        (';', 1)
    """
    named = _DELIMITER_LINE.match(text)
    if named is None:
        return None, 0
    return {"\\t": "\t", "tab": "\t"}.get(named[1].lower(), named[1]), 1 + text.count("\n", 0, named.start(1))


def quoted_rows(path: Path, text: str, delimiter: str) -> list[Row]:
    """Return the rows that are not blank, of fields that double quotes may enclose (RFC 4180).

    Args:
        path: The file, for messages.
        text: Its text.
        delimiter: One character.

    Returns:
        The rows.

    Raises:
        InputError: A quote that is not doubled, not closed, or that follows a space and so would enclose nothing.
    """
    rows = list(_parsed(path, text, delimiter, skip_spaces=False))
    spaced = next((i for i, (_, row) in enumerate(rows) if any(map(_QUOTE_AFTER_SPACE.match, row))), None)
    if spaced is not None and not delimiter.isspace():
        try:  # fields that are enclosed whole are the same either way
            others = list(_parsed(path, text, delimiter, skip_spaces=True))
        except InputError:
            return rows
        line, row = rows[spaced]
        if [field.lstrip() for field in row] != [field.lstrip() for field in others[spaced][1]]:
            raise InputError(
                f"{path}:{line} has a space before a quote, so that the quotes enclose nothing: remove such spaces, "
                "or pass `quoted false` if quotes are text"
            )
    return rows


def plain_rows(text: str, delimiter: str) -> list[Row]:
    """Return the rows that are not blank, a line each, in which quotes are text.

    Args:
        text: Of the file.
        delimiter: One character.

    Returns:
        The rows.
    """
    # Only a newline ends a line: str.splitlines would also split at characters that belong to a text
    lines = ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line.split(delimiter)) for number, line in lines if line]


def _parsed(path: Path, text: str, delimiter: str, skip_spaces: bool) -> Iterator[Row]:
    limit = csv.field_size_limit(min(len(text) + 1, sys.maxsize))  # a text may be as long as the file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=skip_spaces, strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "double a quote inside quotes, and close every quote; pass `quoted false` if quotes are text"
        raise InputError(f"{path}:{line}: {error}: {hint}") from None
    finally:
        csv.field_size_limit(limit)
