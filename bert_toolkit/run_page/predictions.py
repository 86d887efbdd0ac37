"""What `predictions.tsv` tells: which classes are taken for which, and which rows are predicted worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path

from bert_toolkit.errors import InputError, reason_of

WORST_SHOWN, LONGEST_TEXT = 20, 400
OF_ONE_LABEL = "probability of "


@dataclass(frozen=True)
class Predictions:
    """Predictions of a run.

    Args:
        rows: Number of rows.
        wrong: Number of rows that are predicted otherwise than they are labeled; None for numbers.
        counts: (true class, predicted class) -> rows; empty unless every row has one class.
        worst: The worst predicted rows, the worst first: column to text, of at most `LONGEST_TEXT` characters.
        order: By what they are ordered, in words.
    """

    rows: int
    wrong: int | None
    counts: Mapping[tuple[str, str], int]
    worst: Sequence[Mapping[str, str]]
    order: str

    @property
    def only_class(self) -> str | None:
        """The class that every row was predicted as though their labels differ; None where there is no such class."""
        predicted = {prediction for _, prediction in self.counts}
        return predicted.pop() if len(predicted) == 1 and len(self.counts) > 1 else None


def read_predictions(path: Path) -> Predictions:
    """Read the predictions that a recipe has written.

    Args:
        path: `predictions.tsv`.

    Returns:
        What they tell.

    Raises:
        InputError: The file cannot be read, or is no such table.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    columns = lines[0].split("\t")
    if not {"label", "prediction"} <= set(columns):
        raise InputError(f"{path} is damaged: it has no columns `label` and `prediction`")
    rows = []
    for number, line in enumerate(filter(None, lines[1:]), start=2):
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise InputError(f"{path} is damaged: line {number} has {len(cells)} cells, its header {len(columns)}")
        rows.append(dict(zip(columns, cells, strict=True)))
    several = any(name.startswith(OF_ONE_LABEL) for name in columns)
    try:
        if "exact_match" in columns:
            return _of_answers(rows)
        if "probability" in columns:
            return _of_classes(rows)
        return _of_label_sets(rows) if several else _of_numbers(rows)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _of_classes(rows: Sequence[Mapping[str, str]]) -> Predictions:
    counts = Counter((row["label"], row["prediction"]) for row in rows)
    wrong = [row for row in rows if row["label"] != row["prediction"]]
    worst = nlargest(WORST_SHOWN, wrong, key=lambda row: float(row["probability"]))
    return Predictions(len(rows), len(wrong), counts, _shortened(worst), "the surest wrong predictions first")


def _of_answers(rows: Sequence[Mapping[str, str]]) -> Predictions:
    wrong = [row for row in rows if float(row["exact_match"]) < 1]
    worst = nlargest(WORST_SHOWN, wrong, key=lambda row: float(row["probability"]))
    return Predictions(len(rows), len(wrong), {}, _shortened(worst), "the surest wrong answers first")


def _of_label_sets(rows: Sequence[Mapping[str, str]]) -> Predictions:
    def mistake(row: Mapping[str, str]) -> float:
        """The largest distance of a label's probability from what it should be."""
        labels = row["label"].split("; ")
        return max(
            abs((name.removeprefix(OF_ONE_LABEL) in labels) - float(value))
            for name, value in row.items()
            if name.startswith(OF_ONE_LABEL)
        )

    wrong = [row for row in rows if row["label"] != row["prediction"]]
    worst = nlargest(WORST_SHOWN, wrong, key=mistake)
    return Predictions(len(rows), len(wrong), {}, _shortened(worst), "the surest wrong label first")


def _of_numbers(rows: Sequence[Mapping[str, str]]) -> Predictions:
    worst = nlargest(WORST_SHOWN, rows, key=lambda row: abs(float(row["label"]) - float(row["prediction"])))
    return Predictions(len(rows), None, {}, _shortened(worst), "the farthest from the label first")


def _shortened(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [
        {
            name: text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
            for name, text in row.items()
            if not name.startswith(OF_ONE_LABEL)
        }
        for row in rows
    ]
