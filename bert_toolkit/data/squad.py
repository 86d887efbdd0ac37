"""Questions whose answers stand in a text: files in the layout of SQuAD 1.1 and 2.0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_toolkit.data.corpus_splits import split_key, validation_count
from bert_toolkit.data.tables import brief, kind_of, parse_json, shown
from bert_toolkit.data.text_files import read_text
from bert_toolkit.errors import InputError, one_line

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class QuestionSplits:
    """Questions, each with the text that answers it.

    Args:
        train: Rows to learn from; columns: `place` in the file, `question`, `context`, `answers` (texts; none where
            the context has no answer), and `begins` (first character of each).
        validation: Rows to choose by.
        test: Rows to report.
        some_have_none: Whether some questions have no answer, as in SQuAD 2.0.
        description: One plain line on which data these are.
        remarks: Sentences that a reader of scores must know.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    some_have_none: bool
    description: str
    remarks: list[str] = field(default_factory=list)


_Row = dict[str, Any]


def load_questions(
    train_data: str | None,
    validation_data: str | None = None,
    test_data: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 42,
) -> QuestionSplits:
    """Read questions, and split off validation rows where no file has them.

    Args:
        train_data: A JSON file in the layout of SQuAD 1.1 or 2.0.
        validation_data: Likewise.
        test_data: Likewise; None for the validation rows.
        validation_fraction: Fraction of the training texts whose questions validate where `validation_data` is None.
        seed: Another seed chooses other texts.

    Returns:
        The three splits.

    Raises:
        InputError: No file, a file of another layout, an answer that its text does not have, or too few texts.
    """
    if train_data is None:
        raise InputError("`train_data` must name a JSON file in the layout of SQuAD, got none")
    train, remarks = _read(train_data), []
    if validation_data is not None:
        validation = _read(validation_data)
    else:
        train, validation = _split(train, validation_fraction, seed)
        remarks.append(f"The validation questions are {len(validation)} of the training questions (seed {seed}).")
    test = validation if test_data is None else _read(test_data)
    if test_data is None:
        remarks.append(
            "There are no questions of their own to test on: the test questions are the validation questions, which "
            "chose the checkpoint too, so the test scores are optimistic."
        )
    if not any(row["answers"] for row in train):
        raise InputError(f"{train_data}: no training question has an answer, so there is nothing to learn")
    some_have_none = any(not row["answers"] for row in [*train, *validation, *test])
    rows = _rows(validation)
    return QuestionSplits(
        _rows(train),
        rows,
        rows if test is validation else _rows(test),
        some_have_none,
        f"{train_data}; {'some questions have no answer' if some_have_none else 'every question has an answer'}",
        remarks,
    )


def _read(given: str) -> list[_Row]:
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file")
    whole = parse_json(str(path), read_text(path))
    if not isinstance(whole, dict) or "data" not in whole:
        raise InputError(f"{path} must be one JSON object with a list `data`, as SQuAD's files are")
    rows = list(_questions(path, whole))
    if not rows:
        raise InputError(f"{path} holds no question")
    return rows


def _questions(path: Path, whole: dict[str, Any]) -> Iterator[_Row]:
    for number, article in enumerate(_get(str(path), whole, "data", list), start=1):
        place = f"{path} article {number}"
        for text_number, paragraph in enumerate(_get(place, article, "paragraphs", list), start=1):
            of_text = f"{place} paragraph {text_number}"
            context = _get(of_text, paragraph, "context", str)
            if not context.strip():
                raise InputError(f"{of_text} has an empty `context`")
            for question_number, entry in enumerate(_get(of_text, paragraph, "qas", list), start=1):
                of_question = f"{of_text} question {question_number}"
                question = _get(of_question, entry, "question", str)
                impossible = "is_impossible" in entry and _get(of_question, entry, "is_impossible", bool)
                # where there is no answer, the list may be left out
                answers = _get(of_question, {"answers": []} | entry if impossible else entry, "answers", list)
                if not question.strip():
                    raise InputError(f"{of_question} is empty")
                if impossible and answers:
                    raise InputError(
                        f"{of_question} has `is_impossible` true and {len(answers)} answers: correct one of them"
                    )
                if not answers and not impossible:
                    raise InputError(f"{of_question} has no answer: where there is none, write `is_impossible` true")
                texts = [_get(of_question, answer, "text", str) for answer in answers]
                begins = [_get(of_question, answer, "answer_start", int) for answer in answers]
                for text, begin in zip(texts, begins, strict=True):
                    found = context[begin : begin + len(text)] if begin >= 0 else ""
                    if not text.strip() or found != text:
                        place_of_text = context.find(text) if text.strip() else -1
                        remedy = f", it is at {place_of_text}" if place_of_text >= 0 else ""
                        raise InputError(
                            f"{of_question}: the answer {brief(text)} is not in its context at character {begin}, "
                            f"where {brief(found)} stands{remedy}: correct `answer_start`"
                        )
                yield {
                    "place": one_line(of_question),  # names of files may be no text
                    "question": question.strip(),
                    "context": context,
                    "answers": texts,
                    "begins": begins,
                }


def _get(place: str, entry: Any, name: str, kind: type) -> Any:
    if not isinstance(entry, dict):
        raise InputError(f"{place} must be an object with `{name}`, got {kind_of(entry)}")
    if name not in entry:
        raise InputError(f"{place} has no `{name}`, only {shown(list(entry))}")
    if type(entry[name]) is not kind:
        wanted = {list: "a list", str: "a text", int: "a whole number", bool: "true or false"}[kind]
        raise InputError(f"{place}: `{name}` must be {wanted}, got {kind_of(entry[name])}")
    return entry[name]


def _split(rows: list[_Row], fraction: float, seed: int) -> tuple[list[_Row], list[_Row]]:
    """Whole texts, so that none is in both, by their hash: the choice depends on nothing but them and the seed."""
    contexts = {row["context"] for row in rows}
    wanted = validation_count(len(contexts), fraction, "contexts")
    chosen = set(sorted(contexts, key=lambda text: split_key(text, seed))[:wanted])
    return [row for row in rows if row["context"] not in chosen], [row for row in rows if row["context"] in chosen]


def _rows(rows: list[_Row]) -> Dataset:
    import datasets

    text, number = datasets.Value("string"), datasets.Value("int64")
    features = {"place": text, "question": text, "context": text}
    lists = {"answers": datasets.List(text), "begins": datasets.List(number)}
    return datasets.Dataset.from_list(rows, features=datasets.Features({**features, **lists}))
