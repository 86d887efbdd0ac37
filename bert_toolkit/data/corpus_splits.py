"""What every data source returns: three splits, the names of the classes, and words on where the rows came from."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bert_toolkit.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Origin:
    """Which data these are, for a model card.

    Args:
        name: For people.
        hub_dataset: Their name on the hub, None for data from elsewhere.
        hub_config: Which of its configurations.
        language: ISO 639-1 code, None where unknown.
        scored: Which rows the scores are of.
    """

    name: str
    hub_dataset: str | None = None
    hub_config: str | None = None
    language: str | None = None
    scored: str = "test"


@dataclass(frozen=True)
class CorpusSplits:
    """A labeled corpus, ready to be tokenized.

    Args:
        train: Rows to learn from; columns: the text (`text_column`), `label` (class id), and what the source adds.
        validation: Rows to choose by.
        test: Rows to report.
        label_names: Class names in the order of their ids.
        text_column: Name of the column that holds the text.
        description: One plain line on which data these are and why they were taken.
        remarks: Sentences that a reader of scores must know.
        second_text_column: Name of the column that holds the second text, where texts come in pairs.
        problem_type: `single_label_classification`, `multi_label_classification` (then a label is a list of 0.0 and
            1.0, one per class) or `regression` (a number), as in the configuration of a transformers model.
        origin: Which data these are; None where nobody knows.
    """

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    label_names: list[str]
    text_column: str
    description: str
    remarks: list[str] = field(default_factory=list)
    second_text_column: str | None = None
    problem_type: str = "single_label_classification"
    origin: Origin | None = None


def labeled_rows(columns: Mapping[str, Sequence[Any]], label: Any) -> "Dataset":
    """Return a dataset of columns of strings and the column `label`.

    Args:
        columns: Column name to its values.
        label: Names of the classes of which `label` holds the numbers, or the feature that it is.

    Returns:
        The dataset.
    """
    import datasets

    label = datasets.ClassLabel(names=label) if isinstance(label, list) else label
    features = {name: label if name == "label" else datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(dict(columns), features=datasets.Features(features))


def split_key(text: str, seed: int) -> bytes:
    """Return what texts are sorted by to choose some for validation: the hash of (seed, text).

    So the choice depends neither on the order of the texts nor on any library's random numbers.

    Args:
        text: Of a row.
        seed: Another seed chooses others.
    """
    return hashlib.sha256(f"{seed}\t{text}".encode()).digest()


def validation_count(count: int, fraction: float, what: str) -> int:
    """Return how many are held out for validation, at least one.

    Args:
        count: How many there are.
        fraction: Fraction of them, in (0, 1).
        what: What they are, for the message.

    Raises:
        InputError: A fraction out of range, or one that leaves none to train on.
    """
    if not 0 < fraction < 1:
        raise InputError(f"`validation_fraction` must lie in (0, 1), got {fraction}")
    wanted = max(1, round(count * fraction))
    if wanted >= count:
        raise InputError(f"`validation_fraction` {fraction} leaves none of {count} {what} to train on")
    return wanted


def split_off_validation(
    texts: Sequence[str], labels: Sequence[int], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Choose rows for validation, the same fraction of every class.

    Within a class the rows with the smallest hash of (seed, text) are taken: the choice depends neither on the order
    of the rows nor on any library's random numbers.

    Args:
        texts: One text per row.
        labels: One class id per row.
        fraction: Fraction of the rows for validation, in (0, 1).
        seed: Another seed chooses other rows.

    Returns:
        Row numbers for training and for validation, both in the order of the corpus.

    Raises:
        InputError: A fraction out of range, or a class with too few rows to be in both parts.
    """
    if not 0 < fraction < 1:
        raise InputError(f"`validation_fraction` must lie in (0, 1), got {fraction}")
    chosen: set[int] = set()
    for label, count in sorted(Counter(labels).items()):
        wanted = max(1, round(count * fraction))
        if wanted >= count:
            raise InputError(
                f"`validation_fraction` {fraction} leaves no training row of class {label}, which has {count} rows"
            )
        rows = [row for row, of_row in enumerate(labels) if of_row == label]
        rows.sort(key=lambda row: split_key(texts[row], seed))
        chosen.update(rows[:wanted])
    return [row for row in range(len(labels)) if row not in chosen], sorted(chosen)
