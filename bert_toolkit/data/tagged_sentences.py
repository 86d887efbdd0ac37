"""Sentences whose words have tags: CoNLL columns, or JSON with lists of words and tags."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_toolkit.data.corpus_splits import split_key, validation_count
from bert_toolkit.data.tables import brief, json_rows, kind_of, shown
from bert_toolkit.data.text_files import ending_of, read_lines
from bert_toolkit.errors import InputError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
WORD_FIELDS, TAG_FIELDS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels")
_HEADER = ({*WORD_FIELDS, "token", "word", "form", "text"}, {*TAG_FIELDS, "tag", "ner_tag", "pos_tag", "label", "ner"})
OUTSIDE = "O"
PREFIXES = {"BIO": frozenset("BI"), "BIOES": frozenset("BIES"), "BILOU": frozenset("BILU")}


@dataclass(frozen=True)
class TaggedSplits:
    """Sentences with a tag for each word.

    Args:
        train: Rows to learn from; columns: `words` and `tags` (ids), lists of one length, and `place` in the file.
        validation: Rows to choose by.
        test: Rows to report.
        tag_names: Tags in the order of their ids: `O` first, the others by name, or by number where all are numbers.
        scheme: `BIO`, `BIOES` or `BILOU` where tags mark entities, else empty (parts of speech and the like).
        description: One plain line on which data these are.
        remarks: Sentences that a reader of scores must know.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    tag_names: list[str]
    scheme: str
    description: str
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sentence:
    place: str
    words: list[str]
    tags: list[str]


def load_tagged_sentences(
    train_data: str | None,
    validation_data: str | None = None,
    test_data: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 42,
) -> TaggedSplits:
    """Read tagged sentences, and split off validation rows where no file has them.

    Args:
        train_data: A file of CoNLL columns (words first, the tag to learn last, a blank line after each sentence), or
            of JSON with a list of words and a list of tags per sentence.
        validation_data: Likewise.
        test_data: Likewise; None for the validation rows.
        validation_fraction: Fraction of the training sentences that validates where `validation_data` is None.
        seed: Another seed chooses other sentences.

    Returns:
        The three splits.

    Raises:
        InputError: No file, a file that is no such table, tags that are in no training sentence, or too few sentences.
    """
    if train_data is None:
        raise InputError("`train_data` must name a file of CoNLL columns or JSON, got none")
    train, remarks = _read(train_data), []
    if validation_data is not None:
        validation = _read(validation_data)
    else:
        train, validation = _split(train, validation_fraction, seed)
        remarks.append(f"The validation sentences are {len(validation)} of the training sentences (seed {seed}).")
    test = validation if test_data is None else _read(test_data)
    if test_data is None:
        remarks.append(
            "There are no sentences of their own to test on: the test sentences are the validation sentences, which "
            "chose the checkpoint too, so the test scores are optimistic."
        )
    counts = Counter(tag for sentence in train for tag in sentence.tags)
    if len(counts) < 2:
        raise InputError(f"{train_data} has only the tag {brief(next(iter(counts)))}: there is nothing to learn")
    numeric = all(tag.isascii() and tag.isdecimal() for tag in counts)
    names = sorted(counts, key=lambda tag: (tag != OUTSIDE, int(tag) if numeric else 0, tag))
    ids = {name: number for number, name in enumerate(names)}
    for part in (validation, test):
        for sentence in part:
            unknown = [tag for tag in sentence.tags if tag not in ids]
            if unknown:
                raise InputError(
                    f"{sentence.place} has the tag {brief(unknown[0])}, which no training sentence has; those have "
                    f"{shown(names)}"
                )
    scheme = scheme_of(names)
    remarks += _remarks_on_tags(names, scheme)
    kind = f"entities as {scheme}" if scheme else "one tag per word"
    return TaggedSplits(
        _rows(train, ids),
        rows := _rows(validation, ids),
        rows if test is validation else _rows(test, ids),
        names,
        scheme,
        f"{train_data}; {kind}",
        remarks,
    )


def scheme_of(tags: list[str]) -> str:
    """Return the scheme by which tags mark entities, from their prefixes; empty where they do not.

    Args:
        tags: Names of tags.
    """
    marked = [tag for tag in tags if tag != OUTSIDE]
    prefixes = {tag[0] for tag in marked if tag[1:2] == "-" and len(tag) > 2}
    if OUTSIDE not in tags or not all(tag[1:2] == "-" and len(tag) > 2 for tag in marked):
        return ""
    return next((name for name, allowed in PREFIXES.items() if prefixes <= allowed), "")


def _remarks_on_tags(names: list[str], scheme: str) -> list[str]:
    """Tags that differ in case only, and those that keep the others from being entities."""
    cases: dict[str, list[str]] = {}
    for name in names:
        cases.setdefault(name.casefold(), []).append(name)
    alike = [shown(each) for each in cases.values() if each[1:]]
    marked = [name for name in names if name[1:2] == "-" and len(name) > 2]
    others = [name for name in names if name not in (*marked, OUTSIDE)]
    remarks = [f"Tags that differ in case only may be one: {'; '.join(alike)}."] if alike else []
    if not scheme and len(marked) > len(others):
        why = f"not {shown(others)}" if others else f"their letters are not those of {', '.join(PREFIXES)}"
        why = why if OUTSIDE in names else f"{OUTSIDE}, the tag of words outside, is missing"
        remarks.append(f"Most tags look like parts of entities, but {why}: scores are those of single words.")
    return remarks


def _read(given: str) -> list[_Sentence]:
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file")
    sentences = list(_json_sentences(path) if ending_of(path) in JSON_ENDINGS else _column_sentences(path))
    if not sentences:
        raise InputError(f"{path} holds no sentence")
    return sentences


def _column_sentences(path: Path) -> Iterator[_Sentence]:
    """Columns stand between tabs where a line has any, else between blanks; lines of `-DOCSTART-` are passed over."""
    words: list[str] = []
    tags: list[str] = []
    begin, columns = 1, 0
    for number, line in enumerate(read_lines(path), start=1):
        tabs = "\t" in line
        # a space that does not break, as in numbers, belongs to a word
        cells = [cell.strip() for cell in line.split("\t" if tabs else " ") if tabs or cell.strip()]
        if not any(cells) or cells[0] == "-DOCSTART-":
            if words:
                yield _Sentence(f"{path}:{begin}", words, tags)
            words, tags = [], []
            continue
        if not words and line.startswith("# ") and (" = " in line or len(cells) != columns > 0):
            continue  # a remark, as CoNLL-U has them before a sentence
        if number == 1 and cells[0].lower() in _HEADER[0] and cells[-1].lower() in _HEADER[1]:
            continue
        columns = columns or len(cells)
        if columns == 10 and cells[0] == "1" and not words:
            raise InputError(
                f"{path}:{number} has the ten columns of CoNLL-U, the first of which is no word: keep the word "
                "and the tag to learn, for example with `cut -f 2,4`"
            )
        if len(cells) != columns or columns < 2:
            expected = f"{columns}, as the first line has" if columns > 1 else "2 or more: a word, and its tag last"
            raise InputError(f"{path}:{number} has {len(cells)} columns, expected {expected}")
        if not cells[0] or not cells[-1]:
            raise InputError(f"{path}:{number} has no {'tag' if cells[0] else 'word'}")
        begin = begin if words else number
        words.append(cells[0])
        tags.append(_tag_name(cells[-1]))
    if words:
        yield _Sentence(f"{path}:{begin}", words, tags)


def _json_sentences(path: Path) -> Iterator[_Sentence]:
    for place, row in json_rows(path, read_lines(path)):
        if not isinstance(row, dict):
            raise InputError(f"{place} must be an object with lists of words and tags, got {kind_of(row)}")
        words, tags = (_list_of(place, row, names) for names in (WORD_FIELDS, TAG_FIELDS))
        tags = list(map(_tag_name, tags))
        if len(words) != len(tags):
            raise InputError(f"{place} has {len(words)} words and {len(tags)} tags: each word needs one")
        if words:
            yield _Sentence(place, words, tags)


def _list_of(place: str, row: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise InputError(f"{place} has no list {' or '.join(f'`{name}`' for name in names)}, only {shown(list(row))}")
    values = row[name]
    if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
        raise InputError(f"{place}: `{name}` must be a list of strings, got {brief(values)}")
    empty = next((i for i, value in enumerate(values, start=1) if not str(value).strip()), None)
    if empty is not None:
        raise InputError(f"{place}: number {empty} of `{name}` is empty")
    return [str(value) for value in values]


def _tag_name(tag: str) -> str:
    return unicodedata.normalize("NFC", tag.strip())


def _split(sentences: list[_Sentence], fraction: float, seed: int) -> tuple[list[_Sentence], list[_Sentence]]:
    """By the hash of their words, so that the choice depends on nothing but them and the seed."""
    wanted = validation_count(len(sentences), fraction, "sentences")
    order = sorted(range(len(sentences)), key=lambda i: split_key(" ".join(sentences[i].words), seed))
    chosen = set(order[:wanted])
    return [s for i, s in enumerate(sentences) if i not in chosen], [sentences[i] for i in sorted(chosen)]


def _rows(sentences: list[_Sentence], ids: dict[str, int]) -> Dataset:
    import datasets

    return datasets.Dataset.from_dict(
        {
            "place": [one_line(sentence.place) for sentence in sentences],  # names of files may be no text
            "words": [sentence.words for sentence in sentences],
            "tags": [[ids[tag] for tag in sentence.tags] for sentence in sentences],
        }
    )
