"""Table files: what is read agrees with pandas and pyarrow, and what does not fit is refused with its row."""

import bz2
import csv
import errno
import gzip
import lzma
import pickle
from datetime import datetime

import pandas
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from bert_toolkit.data.tables import check_new_file, read_table, write_table
from bert_toolkit.errors import InputError

ROWS = [
    ("plain", "pos"),
    ('with "quotes", a comma and\na line break', "neg"),
    ("  kept spaces  ", "pos"),
    ("null", "NA"),
    ("日本語 ünïcode \u2028 not a line", "neg"),
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        read_table(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestDelimited:
    def test_csv_as_pandas_writes_it(self, tmp_path):
        pandas.DataFrame(ROWS, columns=["text", "label"]).to_csv(tmp_path / "rows.csv", index=False)
        table = read_table(tmp_path / "rows.csv")
        assert table.columns == {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
        assert len(table) == 5

    def test_index_column_that_pandas_writes_without_a_name(self, tmp_path):
        pandas.DataFrame(ROWS, columns=["text", "label"]).to_csv(tmp_path / "rows.csv")
        assert list(read_table(tmp_path / "rows.csv").columns) == ["column 1", "text", "label"]

    def test_places_are_lines_also_after_fields_of_several_lines(self, tmp_path):
        table = read_table(write(tmp_path / "a.csv", 'text,label\n"one\ntwo",x\n\nthree,y\r\n"four",z'))
        assert [table.place(row).rsplit(":")[-1] for row in range(3)] == ["2", "5", "6"]

    def test_tsv_takes_quotes_as_text(self, tmp_path):
        table = read_table(write(tmp_path / "a.tsv", 'text\tlabel\n"unbalanced\tx\nhe said "no"\ty\n'))
        assert table.columns["text"] == ['"unbalanced', 'he said "no"']

    def test_quoted_tsv(self, tmp_path):
        path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\ttab"\tx\n')
        assert read_table(path, quoted=True).columns["text"] == ["a\ttab"]
        refused(path, "a.tsv:2 has 3 fields, expected 2")

    def test_only_newlines_end_rows(self, tmp_path):
        table = read_table(write(tmp_path / "a.tsv", "text\tlabel\na\x0b\u2028b\tx\r\nc\td\r\n"))
        assert table.columns == {"text": ["a\x0b\u2028b", "c"], "label": ["x", "d"]}

    def test_other_delimiters(self, tmp_path):
        path = write(tmp_path / "a.csv", "text;label\na, b;x\n")
        message = refused(path, "the header 'text;label' is one column; pass `delimiter` ';'")
        assert "a.csv" in message
        assert read_table(path, delimiter=";").columns == {"text": ["a, b"], "label": ["x"]}
        path = write(tmp_path / "b.csv", "text\tlabel\na\tx\n")
        assert read_table(path, delimiter="tab").columns == {"text": ["a"], "label": ["x"]}

    def test_file_without_header(self, tmp_path):
        path = write(tmp_path / "a.tsv", "a\tx\nb\ty\n")
        table = read_table(path, column_names=["text", "label"])
        assert table.columns == {"text": ["a", "b"], "label": ["x", "y"]}
        assert table.place(0).endswith(":1")
        refused(path, "a.tsv:1 has 2 fields, expected 3", column_names=["a", "b", "c"])

    def test_encodings(self, tmp_path):
        path = write(tmp_path / "a.csv", "text,label\nna\xefve,x\n".encode("latin-1"))
        refused(
            path,
            r"a.csv:2 is not utf-8 \(byte 0xef at column 3, byte 13 of the file\): save it as UTF-8, for",
        )
        assert read_table(path, encoding="latin-1").columns["text"] == ["naïve"]
        refused(path, "`encoding` must be one that Python knows", encoding="latin-x")
        path = write(tmp_path / "b.csv", "text,label\na,x\n".encode("utf-8-sig"))
        assert list(read_table(path).columns) == ["text", "label"]
        path = write(tmp_path / "c.csv", "text,label\na,x\n".encode("utf-16"))
        assert list(read_table(path, encoding="utf-16").columns) == ["text", "label"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b" \n\n", "is empty"),
            (b"text,label\n", "has a header and no rows"),
            (b"text,label\na,x\nb\n", "a.csv:3 has 1 field, expected 2: 'text', 'label'"),
            (b"text,label\na,x\nb,c,d\n", "a.csv:3 has 3 fields"),
            (b"text,text\na,x\n", "two columns named 'text'"),
            (b"text,label\na,x\ntext,label\nb,y\n", "a.csv:3 repeats the header, as where files were joined"),
            (b"text,label\na,x\nb\x00,y\n", "a.csv:3 holds a NUL"),
            (b'text,label\na,x\n"b,y\nc,z\n', "a.csv:3: unexpected end of data"),
            (b'text,label\n"a"b,x\n', "a.csv:2: ',' expected after '\"'"),
            (b"PAR1\xff\xfe", "a.csv is a Parquet file: give it the ending .parquet"),
        ],
        ids=[
            "empty",
            "blank",
            "header-only",
            "short",
            "long",
            "duplicate",
            "joined",
            "nul",
            "unclosed",
            "quote",
            "binary",
        ],
    )
    def test_refused(self, tmp_path, content, message):
        refused(write(tmp_path / "a.csv", content), message)

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_field_of_any_length(self, tmp_path, ending):
        """Longer than the 131,072 characters that Python's csv takes unless it is told otherwise."""
        text = "word " * 60_000
        mark = "," if ending == ".csv" else "\t"
        limit = csv.field_size_limit()
        assert read_table(write(tmp_path / f"a{ending}", f"text{mark}label\n{text}{mark}x\n")).texts("text") == [text]
        assert csv.field_size_limit() == limit, "a setting of the whole process is left as it was"
        path = write(tmp_path / "b.csv", 'text,label\n"' + "a" * 200_000 + "\nb,x\n")
        refused(path, "b.csv:2: unexpected end of data: double a quote inside quotes, and close every quote")

    @pytest.mark.parametrize(
        "content",
        [
            "sep=;\ntext;label\na, b;x\n",
            "SEP=;\r\ntext;label\r\na, b;x\r\n",
            '"sep=;"\ntext;label\na, b;x\n',
            '\ufeffsep=;\ntext;label\n"a, b";x\n',
            "sep=;\rtext;label\ra, b;x\r",
        ],
        ids=["plain", "windows", "quoted", "mark", "mac"],
    )
    @pytest.mark.parametrize("options", [{}, {"delimiter": ";"}])
    def test_line_that_names_the_delimiter(self, tmp_path, content, options):
        table = read_table(write(tmp_path / "a.csv", content), **options)
        assert table.columns == {"text": ["a, b"], "label": ["x"]}
        assert table.place(0).endswith("a.csv:3"), "lines are those of the file"

    def test_line_that_names_the_delimiter_of_a_file_without_header(self, tmp_path):
        path = write(tmp_path / "a.tsv", "sep=\t\na\tx\n")
        assert read_table(path, column_names=["text", "label"]).columns == {"text": ["a"], "label": ["x"]}
        assert read_table(write(tmp_path / "b.tsv", "sep=;\ntext;label\na;x\n")).columns["label"] == ["x"]
        refused(write(tmp_path / "c.csv", "sep=;\n"), "has a header and no rows")

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_carriage_returns_alone_end_lines(self, tmp_path, ending):
        mark = "," if ending == ".csv" else "\t"
        table = read_table(write(tmp_path / f"a{ending}", f"text{mark}label\ra{mark}x\r\rb{mark}y\r"))
        assert table.columns == {"text": ["a", "b"], "label": ["x", "y"]}
        assert table.place(1).endswith(":4")

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_quoted_header_in_a_file_whose_quotes_are_text(self, tmp_path, ending):
        mark = "," if ending == ".csv" else "\t"
        path = write(tmp_path / f"a{ending}", f'"text"{mark}"label"\n"a"{mark}"x"\n')
        refused(path, "is in quotes; pass `quoted true` to take them off", quoted=False)
        assert read_table(path, quoted=True).columns == {"text": ["a"], "label": ["x"]}

    def test_quoted_fields_in_a_file_whose_quotes_are_text_are_named(self, tmp_path):
        pandas.DataFrame({"text": ["a\nb"], "label": ["x"]}).to_csv(tmp_path / "a.tsv", index=False, sep="\t")
        refused(tmp_path / "a.tsv", "a.tsv:2 has 1 field, expected 2: .*; pass `quoted true` if double quotes enclose")

    def test_names_of_columns_are_composed(self, tmp_path):
        """macOS and some programs write é as two characters; whoever types the name writes one."""
        decomposed = "re\u0301ponse"
        write(tmp_path / "a.csv", f"{decomposed},label\na,x\n")
        write(tmp_path / "a.jsonl", f'{{"{decomposed}": "a"}}')
        parquet.write_table(pyarrow.table({decomposed: ["a"]}), tmp_path / "a.parquet")
        for path in tmp_path.iterdir():
            assert read_table(path).texts("r\u00e9ponse") == ["a"]
        refused(write(tmp_path / "b.csv", f"{decomposed},r\u00e9ponse\na,x\n"), "two columns named 'réponse'")

    def test_delimiter_of_several_characters(self, tmp_path):
        refused(write(tmp_path / "a.csv", "a,b\n1,2"), "`delimiter` must be one character", delimiter="::")


class TestJson:
    def test_lines(self, tmp_path):
        rows = [{"text": text, "label": label, "n": n} for n, (text, label) in enumerate(ROWS)]
        pandas.DataFrame(rows).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
        table = read_table(tmp_path / "a.jsonl")
        assert table.columns == {name: [row[name] for row in rows] for name in ("text", "label", "n")}
        assert table.place(2).endswith("a.jsonl:3")

    @pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
    def test_content_says_whether_lines_or_a_list(self, tmp_path, name):
        lines = '{"text": "a"}\r\n\r\n{"text": "b"}\r\n'
        table = read_table(write(tmp_path / name, lines))
        assert (table.columns, table.place(1)) == ({"text": ["a", "b"]}, f"{tmp_path / name}:3")
        table = read_table(write(tmp_path / name, '\ufeff\n[\n  {"text": "a"},\n  {"text": "b"}\n]\n'))
        assert (table.columns, table.place(1)) == ({"text": ["a", "b"]}, f"{tmp_path / name} (object 2)")

    def test_list_of_objects_and_absent_values(self, tmp_path):
        path = write(tmp_path / "a.json", '[{"text": "a"}, {"text": "b", "label": [1, 2]}]')
        table = read_table(path)
        assert table.columns == {"text": ["a", "b"], "label": [None, [1, 2]]}
        assert table.place(1).endswith("a.json (object 2)")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"text": "a"}\n{"text": }', r"a.jsonl:2 is not valid JSON"),
            ('{"text": "a"}\n["b"]', "a.jsonl:2 must hold an object with named values, got a list"),
            ('{"text": "a", "text": "b"}', "a.jsonl:1 is not usable JSON: 'text' is there twice"),
            ('{"text": "\\ud800"}', "a.jsonl:1 is not usable JSON: .*surrogates"),
            ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "a.jsonl:1 is not usable JSON"),
            ('{"n": ' + "9" * 5_000 + "}", "a.jsonl:1 is not usable JSON"),
            ("{}\n{}", "holds no rows with named values"),
        ],
        ids=["syntax", "no-object", "name-twice", "half-character", "deep", "huge-number", "no-names"],
    )
    def test_refused_lines(self, tmp_path, content, message):
        refused(write(tmp_path / "a.jsonl", content), message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"text": "a"}', "must hold a list of objects, or one on each line, got an object with 'text'"),
            ('{\n"text": "a"\n}', "must hold a list of objects, or one on each line, got an object with 'text'"),
            (
                '{"data": [{"text": "a"}]}',
                "must hold a list of objects, or one on each line, got an object with 'data'",
            ),
            ("5", "must hold a list of objects, or one on each line, got a number"),
            ('["a"]\n["b"]', "a.json:1 must hold an object with named values, got a list"),
            (
                '{"text": "a"},\n{"text": "b"}',
                "Extra data: line 1 column 14 .*: write a list of objects, or one object on",
            ),
            ('{"text":\n"a"}\n{"text":\n"b"}', "Extra data: line 3 column 1 .*: write a list of objects, or one obj"),
            ("[]", "holds no rows"),
            ("[1]", "object 1"),
            ('\n[{"text": "a"},\n{"text": }]', r"a.json is not valid JSON: Expecting value: line 3 column 10"),
        ],
    )
    def test_refused_lists(self, tmp_path, content, message):
        refused(write(tmp_path / "a.json", content), message)


class TestParquet:
    def test_types(self, tmp_path):
        columns = {
            "text": ["a", None],
            "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
            "number": [1, 2],
            "share": [0.5, float("nan")],
            "yes": [True, False],
            "labels": [["p"], []],
            "vector": [[0.5], [0.25]],
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        table = read_table(tmp_path / "a.parquet")
        assert list(table.columns) == list(columns)
        assert table.columns["kind"] == ["x", "y"]
        assert table.columns["labels"] == [["p"], []]
        assert table.columns["vector"] == [[0.5], [0.25]]
        assert table.place(1).endswith("a.parquet (row 2)")

    def test_class_names_of_the_datasets_library(self, tmp_path):
        from datasets import ClassLabel, Dataset, Features, List, Value

        features = Features(
            {"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "tags": List(ClassLabel(names=["t"]))}
        )
        rows = {"text": ["a", "b"], "label": [1, 0], "tags": [[0], []]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
        assert read_table(tmp_path / "a.parquet").class_names == {"label": ["no", "yes"], "tags": ["t"]}

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"text": pyarrow.array([], pyarrow.string())}, "has no rows"),
            ({}, "has no columns"),
        ],
    )
    def test_refused(self, tmp_path, columns, message):
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        refused(tmp_path / "a.parquet", message)

    def test_other_columns_do_not_matter_until_they_are_used(self, tmp_path):
        """Structs, times and bytes can stand beside the text."""
        columns = {"text": ["a"], "at": [datetime(2024, 1, 1)], "parts": [{"a": 1}], "raw": [b"\xff"]}
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        table = read_table(tmp_path / "a.parquet")
        assert (len(table), table.texts("text")) == (1, ["a"])
        for name, kind in (
            ("at", "a value of type datetime"),
            ("parts", "an object"),
            ("raw", "a value of type bytes"),
        ):
            with pytest.raises(InputError, match=rf"a.parquet \(row 1\) has {kind} in column '{name}', expected text"):
                table.texts(name)

    def test_column_that_nobody_asks_for_is_not_read(self, tmp_path, monkeypatch):
        parquet.write_table(pyarrow.table({"text": ["a"], "vector": [[0.5] * 768]}), tmp_path / "a.parquet")
        read = []
        original = parquet.ParquetFile.read
        monkeypatch.setattr(
            parquet.ParquetFile,
            "read",
            lambda file, columns, **k: read.extend(columns) or original(file, columns, **k),
        )
        table = read_table(tmp_path / "a.parquet")
        assert (table.texts("text"), table.texts("text")) == (["a"], ["a"])
        assert read == ["text"]

    def test_duplicate_columns(self, tmp_path):
        twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
        parquet.write_table(twice, tmp_path / "a.parquet")
        refused(tmp_path / "a.parquet", "two columns named 'text'")

    def test_damaged(self, tmp_path):
        parquet.write_table(pyarrow.table({"text": ["a"] * 100}), tmp_path / "a.parquet")
        content = (tmp_path / "a.parquet").read_bytes()
        refused(write(tmp_path / "b.parquet", content[:-20]), "no Parquet file or a damaged one")
        refused(write(tmp_path / "c.parquet", b""), "no Parquet file or a damaged one")


def test_paths(tmp_path):
    refused(tmp_path / "absent.csv", "absent.csv does not exist")
    refused(tmp_path, "is a folder, expected a file")
    refused(
        write(tmp_path / "a.xlsx", "x"), "the ending must be one of .csv .tsv .jsonl .ndjson .json .parquet, got .xlsx"
    )


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv.gz", "a.jsonl.gz", "a.JSON.GZ", "a.csv.xz"])
def test_packed_files(tmp_path, name, pack):
    """Whatever the name says, the content says whether and how it is packed."""
    content = {"c": "text,label\na,x\n", "t": "text\tlabel\na\tx\n", "j": '[{"text": "a", "label": "x"}]'}
    path = write(tmp_path / name, pack(content[name[2].lower()].encode()))
    assert read_table(path).columns == {"text": ["a"], "label": ["x"]}
    refused(write(tmp_path / name, pack(b"text,label\na,x\n" * 99)[:-9]), "is packed and damaged")


def test_texts_must_hold_something(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": " "}\n{"text": ""}\n{"n": 1}'))
    with pytest.raises(InputError, match=r"a.jsonl:4 has nothing in column 'text'"):
        table.texts("text")
    table = read_table(write(tmp_path / "b.csv", "text,n\na,1\n ,2\n,3\n"))
    with pytest.raises(InputError, match=r"b.csv:3 has nothing in column 'text' \(nor have 1 later rows\)"):
        table.texts("text")
    table = read_table(write(tmp_path / "c.jsonl", '{"text": "a"}\n{"text": 5}'))
    with pytest.raises(InputError, match=r"c.jsonl:2 has a number in column 'text', expected text"):
        table.texts("text")
    with pytest.raises(InputError, match=r"c.jsonl:1 has no column 'txt': there are 'text'"):
        table.texts("txt")


class TestWriting:
    COLUMNS = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS], "n": [1, 2, 3, 4, 5]}

    @pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
    def test_is_read_back(self, tmp_path, ending):
        write_table(tmp_path / f"a{ending}", self.COLUMNS)
        expected = dict(self.COLUMNS, n=["1", "2", "3", "4", "5"]) if ending == ".csv" else self.COLUMNS
        assert read_table(tmp_path / f"a{ending}").columns == expected
        assert len(list(tmp_path.iterdir())) == 1

    def test_tsv_has_a_row_a_line(self, tmp_path):
        write_table(tmp_path / "a.tsv", {"text": ["a\tb\nc\rd", '"'], "tags": [["x"], None]})
        assert read_table(tmp_path / "a.tsv").columns == {"text": ["a b c d", '"'], "tags": ['["x"]', ""]}

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
    def test_nothing_is_left_where_the_disk_is_full(self, tmp_path, ending):
        path = tmp_path / f"a{ending}"
        write_table(path, {"text": ["before"]})

        def values():
            yield "a"
            raise OSError(errno.ENOSPC, "No space left on device")

        class Filling(list):
            __iter__ = lambda self: values()  # noqa: E731

        with pytest.raises(InputError, match=f"a{ending} cannot be written: No space left on device$"):
            write_table(path, {"text": Filling()})
        assert list(tmp_path.iterdir()) == [path]
        assert read_table(path).columns == {"text": ["before"]}

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
    def test_whatever_another_format_held_is_written(self, tmp_path, ending):
        """The work of a prediction is not lost for a column beside the text."""
        at = datetime(2024, 1, 2)
        columns = {
            "text": ["a", "b", "c"],
            "mixed": ["x", {"b": [1]}, 5],
            "at": [at, None, at],
            "huge": [2**70, 1, None],
        }
        write_table(tmp_path / f"a{ending}", columns)
        table = read_table(tmp_path / f"a{ending}")
        assert table.texts("text") == ["a", "b", "c"]
        expected = {".jsonl": columns["mixed"]}.get(ending, ["x", '{"b": [1]}', "5"])
        assert table.columns["mixed"] == expected
        assert str(table.columns["huge"][0]) == str(2**70)
        assert str(table.columns["at"][0]).strip('"') == str(at)

    def test_new_file(self, tmp_path):
        check_new_file(tmp_path / "a.csv", overwrite=False)
        write(tmp_path / "a.csv", "kept")
        check_new_file(tmp_path / "a.csv", overwrite=True)
        for path, message in (
            (tmp_path / "a.csv", "exists"),
            (tmp_path / "a.txt", "the ending of .* must be one of .tsv .csv"),
            (tmp_path / "absent" / "a.csv", "there is no folder"),
        ):
            with pytest.raises(InputError, match=message):
                check_new_file(path, overwrite=False)

    @given(
        st.lists(
            st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")), st.integers())
        )
    )
    def test_any_csv_and_json_lines_come_back(self, tmp_path_factory, rows):
        folder = tmp_path_factory.mktemp("rows")
        columns = {"text": [text for text, _ in rows], "n": [n for _, n in rows]}
        for ending in (".csv", ".jsonl"):
            write_table(folder / f"a{ending}", columns)
            if not rows:
                continue
            table = read_table(folder / f"a{ending}")
            assert table.columns["text"] == columns["text"]
            assert list(map(int, table.columns["n"])) == columns["n"]


def test_no_table_is_unpickled(tmp_path):
    """A pickle that would leave a file behind, under every ending that is read."""
    trap = tmp_path / "was-executed"

    class Trap:
        def __reduce__(self):
            return open, (str(trap), "w")

    content = pickle.dumps(Trap())
    pickle.loads(content).close()
    assert trap.exists(), "the trap itself works"
    trap.unlink()
    for ending in (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pkl", ".pickle", ".npy", ".pt"):
        with pytest.raises(InputError):
            read_table(write(tmp_path / f"a{ending}", content))
    assert not trap.exists()


def test_parquet_extension_types_are_not_unpickled(tmp_path):
    """`arrow.py_extension_type` carried a pickle that older versions of pyarrow ran (CVE-2023-47248)."""
    trap = tmp_path / "was-executed"

    class Trap:
        def __reduce__(self):
            return open, (str(trap), "w")

    field = pyarrow.field(
        "text",
        pyarrow.string(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Trap()),
        },
    )
    parquet.write_table(pyarrow.table([pyarrow.array(["a"])], schema=pyarrow.schema([field])), tmp_path / "a.parquet")
    try:
        table = read_table(tmp_path / "a.parquet")
    except InputError:
        pass
    else:
        assert table.columns["text"] == ["a"]
    assert not trap.exists()
