"""Rows of CSV and TSV as programs and people write them, against Python's own writer."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_toolkit.data.delimited_rows import named_delimiter, plain_rows, quoted_rows
from bert_toolkit.data.tables import read_table
from bert_toolkit.errors import InputError

PATH = Path("a.csv")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        *(("sep=;", ";"), ("sep =;", ";"), ("sep= ;", ";"), ('"sep=;"', ";"), ("Sep=|", "|"), ("sep=,", ",")),
        *(("sep=;,,", ";"), ("sep=\t", "\t"), ("sep=\\t", "\t"), ("sep=TAB", "\t"), ("sep= ", " "), ("sep=;  ", ";")),
        *(("sep=", None), ("sep=::", None), ("separator", None), ("text,sep=;", None), ("sep;", None)),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_that_names_the_delimiter(line, named, end):
    assert named_delimiter(line + end) == (named, int(named is not None))


def test_lines_before_the_one_that_names_the_delimiter(tmp_path):
    assert named_delimiter("\n \nsep=;\nx;y") == (";", 3)
    (tmp_path / "a.csv").write_text("\n\nsep=;\ntext;label\na, b;x\n")
    table = read_table(tmp_path / "a.csv")
    assert (table.columns, table.place(0)[-2:]) == ({"text": ["a, b"], "label": ["x"]}, ":5")


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2)))
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_whatever_pythons_writer_writes_comes_back(quoting, rows):
    """Also texts that begin with a space and a quote."""
    file = io.StringIO(newline="")
    csv.writer(file, quoting=quoting).writerows(rows)
    assert [fields for _, fields in quoted_rows(PATH, file.getvalue(), ",")] == rows


@pytest.mark.parametrize("row", ['a, "x"', ' "a",x', 'a, "x, y"', 'a,  "x ""y"""'])
def test_quotes_after_a_space_enclose_nothing_and_are_refused(row):
    with pytest.raises(
        InputError, match="a.csv:3 has a space before a quote, so that .*: remove such spaces, or pass"
    ):
        quoted_rows(PATH, f"text,label\nb,y\n{row}\n", ",")


@pytest.mark.parametrize("row", ['" ""a""",x', 'he said "no", "yes" or so', 'a, "b" c', 'a,x "y"'])
def test_quotes_that_are_text_stay(row):
    rows = quoted_rows(PATH, f"text,label\n{row}\n", ",")
    assert [fields for _, fields in rows[1:]] == list(csv.reader([row]))


def test_lines_of_a_file_without_quotes_may_end_in_any_number_of_carriage_returns():
    assert plain_rows("a\tb\r\r\n\r\r\nc\td\r\n", "\t") == [(1, ["a", "b"]), (3, ["c", "d"])]


@pytest.mark.parametrize(
    ("header", "row", "hint"),
    [
        ('"text","label"', '"1","a","x"', "every row has a field more than the header: give it a name there"),
        ("text,label", "a,x,", "every row has a field more than the header: give it a name there"),
        ("# made by hand", "a,x", "has 2 fields, expected 1: '# made by hand'$"),
    ],
    ids=["R", "delimiter-at-the-end", "comment"],
)
def test_rows_that_are_longer_than_the_header(tmp_path, header, row, hint):
    (tmp_path / "a.csv").write_text("\n".join([header, row, row, ""]))
    with pytest.raises(InputError, match=f"a.csv:2 .*{hint}"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.csv.zip", "unpack it"),
        ("a.tar.gz", "unpack it"),
        ("a.xlsx", "save the sheet as CSV"),
        ("a.txt", "rename it"),
    ],
)
def test_files_of_other_endings_come_with_advice(tmp_path, name, advice):
    (tmp_path / name).write_text("text,label\na,x\n")
    with pytest.raises(InputError, match=f"the ending must be one of .*, got .*: {advice}"):
        read_table(tmp_path / name)


def test_header_of_a_joined_file_is_no_row(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.csv").write_bytes(mark + b"text,label\na,x\n" + mark + b"text,label\nb,y\n")
    with pytest.raises(InputError, match="a.csv:3 repeats the header, as where files were joined"):
        read_table(tmp_path / "a.csv")
