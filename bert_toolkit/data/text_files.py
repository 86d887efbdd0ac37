"""Files as text: packed or not, in which encoding, and where the first byte is that does not fit."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bert_toolkit.errors import InputError, reason_of

PACKED_ENDINGS = (".gz", ".bz2", ".xz")
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# Beginnings of files that are no text, whatever their names say, and what to do with them
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, as spreadsheets are: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "a document of an old office program: save it as CSV or text",
    b"\x28\xb5\x2f\xfd": "packed with zstandard: unpack it",
    b"\x1f\x9d": "packed with compress: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!\x1a": "a RAR archive: unpack it",
    b"PAR1": "a Parquet file: give it the ending .parquet",
    b"ARROW1\0": "an Arrow file: save it as Parquet",
    b"SQLite format 3": "a database: export the table as CSV",
    b"%PDF-": "a PDF document: save its text",
    b"{\\rtf": "a document with formatting: save it as text",
    b"version https://git-lfs": "a pointer of git-lfs: fetch the file itself with `git lfs pull`",
}
# UTF-32 comes first, as its mark begins like that of UTF-16
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def ending_of(path: Path) -> str:
    """Return the ending that says what a file holds, in lower case: `.csv` of `a.CSV` and of `a.csv.gz`.

    Args:
        path: The file, which may be packed.
    """
    return Path(path.stem if path.suffix.lower() in PACKED_ENDINGS else path.name).suffix.lower()


def is_clutter(path: Path) -> bool:
    """Return whether a system or a program left this beside the data: hidden files, thumbnails, locks, backups.

    Args:
        path: A file or a folder; only its name is looked at.
    """
    name = path.name.lower()
    left = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "icon\r")
    return name.startswith((".", "~$")) or name.endswith("~") or name[:1] == name[-1:] == "#" or name in left


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong while a file is read into the toolkit's error.

    Args:
        path: The file, for the message.

    Raises:
        InputError: The file cannot be opened, is packed and damaged, or does not fit into memory.
    """
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path} cannot be read: {reason_of(error)}") from None
        raise InputError(f"{path} is packed and damaged: {reason_of(error)}") from None
    except MemoryError:
        raise InputError(f"{path} does not fit into the memory of this process: divide it into files") from None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a whole text file, which may be packed with gzip, bzip2 or xz.

    Args:
        path: A regular file.
        encoding: Name of its encoding. A byte order mark overrules it and is left out.

    Returns:
        The text, without byte order marks at the beginnings of lines, as joined files have them. Where a file has
        carriage returns and no newline but at its end, they are its line ends and become newlines.

    Raises:
        InputError: Not readable, not in that encoding, empty, or with NUL characters.
    """
    with reading(path):
        with _open(path) as file:
            content = file.read()
        text = _decode(path, content, encoding_of(content, encoding))
    if not text.strip():
        raise InputError(f"{path} is empty")
    text = text.removesuffix("\x1a")  # the end of a file to DOS
    body = text.rstrip("\r\n")
    if "\r" in body and "\n" not in body:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n\ufeff", "\n")  # marks in the middle, where files were joined


def read_lines(path: Path) -> Iterator[str]:
    """Read the lines of a UTF-8 file one after another, so that it need not fit into memory.

    Args:
        path: A regular file, which may be packed. UTF-16 and UTF-32 with their mark are taken too, and read whole.

    Yields:
        Each line, ended by a newline whatever ended it in the file.

    Raises:
        InputError: As `read_text`, when the line is reached; an empty file has no lines.
    """
    offset = 0
    with reading(path), _open(path) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1 and encoding_of(raw, "utf-8") != "utf-8":
                yield from io.StringIO(read_text(path), newline=None)
                return
            line = _decode(path, raw, "utf-8", number, offset)
            offset += len(raw)
            lines = io.StringIO(line, newline=None) if "\r" in line else (line,)
            yield from (each.removeprefix("\ufeff") for each in lines)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        begin = file.read(512)
    opener = next((opener for magic, opener in _OPENERS.items() if begin.startswith(magic)), None)
    if opener is not None:
        with opener(path) as file:
            begin = file.read(512)
        if begin.startswith(tuple(_OPENERS)):
            raise InputError(f"{path} is packed twice: unpack it once")
    kind = next((kind for magic, kind in _OTHER_FILES.items() if begin.startswith(magic)), None)
    if kind is None and begin[257:262] == b"ustar":
        kind = "a tar archive: unpack it"
    if kind is not None:
        raise InputError(f"{path} is {kind}")
    return opener(path) if opener else path.open("rb")


def encoding_of(content: bytes, named: str) -> str:
    """Return the encoding that a byte order mark tells, otherwise the named one.

    Args:
        content: At least the first four bytes of a file.
        named: Name of an encoding.
    """
    return next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), named)


def _decode(path: Path, content: bytes, encoding: str, line: int = 1, offset: int = 0) -> str:
    """Bytes of a file that begin at a line and an offset, as text without a byte order mark."""
    try:
        text = content.decode(encoding).lstrip("\ufeff")
    except LookupError:
        raise InputError(
            f"`encoding` must be one that Python knows, such as utf-8 or latin-1, got {encoding}"
        ) from None
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line += content.count(b"\n", 0, start)
        column = start - content.rfind(b"\n", 0, start)
        if b"\0" not in content and not content[:start].isascii():
            remedy = "what stands before it is: correct the byte, or leave it out with `iconv -c -f utf-8 -t utf-8`"
        else:  # cp1252 has all letters of latin-1, and quotes and dashes that are control characters there
            likely = "utf-16" if b"\0" in content else "cp1252"
            remedy = (
                f"save it as UTF-8, for example with `iconv -f {likely} -t utf-8`, or name the `encoding` of a table"
            )
        raise InputError(
            f"{path}:{line} is not {encoding} (byte 0x{content[start : start + 1].hex()} at column {column}, "
            f"byte {offset + start} of the file): {remedy}"
        ) from None
    if "\0" in text:
        line += text.count("\n", 0, text.index("\0"))
        raise InputError(
            f"{path}:{line} holds a NUL character: this is no {encoding} text file, or one in UTF-16 without its mark"
        )
    return text
