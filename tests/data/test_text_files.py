"""Bytes as text: encodings, marks, packing, line ends, and the place of what does not fit."""

import errno
import gzip
import resource
import subprocess
import sys

import pytest

from bert_toolkit.data.text_files import ending_of, is_clutter, read_lines, read_text
from bert_toolkit.errors import InputError

TEXT = "naïve 日本\nsecond 😀 line\n"


def written(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-marked", "utf-16-be-marked", "utf-32-be-marked"]
)
@pytest.mark.parametrize("named", ["utf-8", "latin-1", "cp1252"])
@pytest.mark.parametrize("packed", [False, True])
def test_mark_overrules_the_named_encoding(tmp_path, encoding, named, packed):
    if encoding.endswith("-marked"):
        content = ("\ufeff" + TEXT).encode(encoding.removesuffix("-marked"))
    else:
        content = TEXT.encode(encoding)
    if encoding == "utf-8" and named != "utf-8":
        assert read_text(written(tmp_path, content), named) != TEXT, "without a mark the name counts"
        return
    path = written(tmp_path, gzip.compress(content) if packed else content)
    assert read_text(path, named) == TEXT
    assert "".join(read_lines(path)) == TEXT


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_in_newlines(tmp_path, end):
    path = written(tmp_path, f"one{end}{end}two\u2028\x0b\x85{end}three".encode())
    assert list(read_lines(path)) == ["one\n", "\n", "two\u2028\x0b\x85\n", "three"]


@pytest.mark.parametrize("read", [read_text, lambda path: list(read_lines(path))], ids=["text", "lines"])
class TestRefused:
    @pytest.mark.parametrize("before", [0, 1, 136_000, 3_000_000])
    def test_wrong_byte_is_found_at_its_offset(self, tmp_path, read, before):
        """Whatever the size of a block that is decoded at once."""
        content = b"x" * 511 + b"\n"
        content = content * (before // 512) + b"y" * (before % 512)
        path = written(tmp_path, content + b"\xe9 and more\n")
        line, column = before // 512 + 1, before % 512 + 1
        with pytest.raises(
            InputError, match=rf"a.txt:{line} is not utf-8 \(byte 0xe9 at column {column}, byte {before} "
        ):
            read(path)

    def test_character_that_is_cut_off(self, tmp_path, read):
        with pytest.raises(InputError, match=r"a.txt:2 is not utf-8 \(byte 0xe6 at column 3, byte 6 of"):
            read(written(tmp_path, "one\nab日".encode()[:-1]))

    def test_nul(self, tmp_path, read):
        with pytest.raises(InputError, match="a.txt:2 holds a NUL character: this is no utf-8 text file"):
            read(written(tmp_path, b"a\nb\0c\n"))
        with pytest.raises(InputError, match="a.txt:1 holds a NUL .* or one in UTF-16 without its mark"):
            read(written(tmp_path, "one\n".encode("utf-16-le")))
        with pytest.raises(InputError, match="a.txt:1 is not utf-8 .*, for example with `iconv -f utf-16 -t utf-8`"):
            read(written(tmp_path, TEXT.encode("utf-16-le")))

    def test_spreadsheet_under_another_name(self, tmp_path, read):
        with pytest.raises(InputError, match="a.txt is a zip archive, as spreadsheets are: unpack it"):
            read(written(tmp_path, b"PK\x03\x04\x14\0\6\0"))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\xd0\xcf\x11\xe0\xa1\xb1", "is a document of an old office program: save it as CSV or text"),
            (b"\x28\xb5\x2f\xfd\0\0", "is packed with zstandard: unpack it"),
            (b"PAR1\x15\0", "is a Parquet file: give it the ending .parquet"),
            (b"%PDF-1.7\n", "is a PDF document: save its text"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                "fetch the file itself with `git lfs pull`",
            ),
            (b"a.csv".ljust(257, b"\0") + b"ustar\0", "is a tar archive: unpack it"),
            (gzip.compress(b"a,b\n"), "is packed twice: unpack it once"),
        ],
        ids=["xls", "zstd", "parquet", "pdf", "git-lfs", "tar", "packed"],
    )
    def test_other_files_are_named(self, tmp_path, read, content, message):
        for packed in (content, gzip.compress(content))[content[:2] == b"\x1f\x8b" :]:
            with pytest.raises(InputError, match=f"a.txt {message}|a.txt is .*: {message}"):
                read(written(tmp_path, packed))

    def test_advice_does_no_harm(self, tmp_path, read):
        """Quotes of Windows must not become control characters, nor UTF-8 be encoded once more."""
        path = written(tmp_path, "“naïve”\n".encode("cp1252"))
        with pytest.raises(InputError, match="with `iconv -f cp1252 -t utf-8`"):
            read(path)
        assert path.read_bytes().decode("cp1252") == "“naïve”\n"
        path = written(tmp_path, "plain\nnaïve ".encode() + b"\xe9 caf\n")
        with pytest.raises(InputError, match=r"a.txt:2 .*: what stands before it is: .* `iconv -c -f utf-8 -t utf-8`"):
            read(path)

    @pytest.mark.parametrize(
        "damage", [lambda c: c[:-9], lambda c: c[:20] + b"\xff" * 8 + c[28:]], ids=["cut", "bytes"]
    )
    def test_damaged_packing(self, tmp_path, read, damage):
        with pytest.raises(InputError, match="a.txt is packed and damaged: "):
            read(written(tmp_path, damage(gzip.compress(TEXT.encode() * 999))))

    def test_disk_that_cannot_be_read(self, tmp_path, read, monkeypatch):
        path = written(tmp_path, b"a")

        def fail(*arguments, **keywords):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(type(path), "open", fail)
        with pytest.raises(InputError, match="a.txt cannot be read: Input/output error"):
            read(path)


def test_file_that_does_not_fit_into_memory_is_one_line(tmp_path):
    """A gigabyte of zeros packs into a megabyte."""
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(1024):
            file.write(b"a," * 2**19)
    code = (
        "import resource; from bert_toolkit.data.text_files import read_text; from pathlib import Path;"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({2**29}, {resource.RLIM_INFINITY}));"
        f"read_text(Path({str(path)!r}))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stderr.splitlines()[-1].endswith(
        "does not fit into the memory of this process: divide it into files"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf\xef\xbb\xbfone\ntwo\n",
        b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n",
        b"\xef\xbb\xbfone\r\xef\xbb\xbftwo\r",
        "\ufeffone\n\ufefftwo\n".encode("utf-16"),
        gzip.compress(b"one\n") + gzip.compress(b"\xef\xbb\xbftwo\n"),
    ],
    ids=["twice", "joined", "joined-mac", "joined-utf-16", "joined-packed"],
)
def test_marks_of_joined_files_are_no_text(tmp_path, content):
    path = written(tmp_path, content)
    assert read_text(path) == "".join(read_lines(path)) == "one\ntwo\n"


def test_carriage_returns_end_lines_whatever_ends_the_file(tmp_path):
    assert read_text(written(tmp_path, b"one\rtwo\r\n")) == "one\ntwo\n"
    assert read_text(written(tmp_path, b"one\rtwo\n")) == "one\ntwo\n"
    assert read_text(written(tmp_path, b"a\rb\nc\n")) == "a\rb\nc\n", "among newlines they belong to a text"


def test_end_of_file_of_dos_is_no_text(tmp_path):
    assert read_text(written(tmp_path, b"a\x1ab\r\n\x1a")) == "a\x1ab\r\n"


def test_empty_text_is_refused(tmp_path):
    for content in (b"", b" \r\n", b"\xef\xbb\xbf", b"\xff\xfe", gzip.compress(b"")):
        with pytest.raises(InputError, match="a.txt is empty"):
            read_text(written(tmp_path, content))
    with pytest.raises(
        InputError, match="`encoding` must be one that Python knows, such as utf-8 or latin-1, got hex"
    ):
        read_text(written(tmp_path, b"61"), "hex")
    with pytest.raises(InputError, match="is not undefined"):
        read_text(written(tmp_path, b"61"), "undefined")


def test_what_the_ending_is(tmp_path):
    endings = [
        ending_of(tmp_path / name) for name in ("a.CSV", "a.csv.gz", "a.b.jsonl.XZ", "a.gz", "a", ".gz", "a.csv.zip")
    ]
    assert endings == [".csv", ".csv", ".jsonl", "", "", "", ".zip"]


def test_what_is_clutter(tmp_path):
    left = [
        ".DS_Store",
        "._a.txt",
        ".git",
        "Thumbs.db",
        "desktop.ini",
        "~$a.csv",
        "__MACOSX",
        "50001~",
        "Icon\r",
        "@eaDir",
        "#a.txt#",
    ]
    assert all(is_clutter(tmp_path / name) for name in left)
    assert not any(is_clutter(tmp_path / name) for name in ("a.txt", "_a", "thumbs", "50001", "-", "#1"))
