"""Anybody's labeled text: where the rows are, which columns are text and label, and which rows validate."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bert_toolkit.data.class_folders import files_beside_classes, read_class_folders
from bert_toolkit.data.corpus_splits import CorpusSplits, Origin, labeled_rows, split_off_validation
from bert_toolkit.data.hub_tables import read_hub_tables
from bert_toolkit.data.labels import MULTI, REGRESSION, SINGLE, LabelScheme, learn_labels
from bert_toolkit.data.tables import Table, read_table, shown
from bert_toolkit.errors import InputError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

# Names by which a column is recognized, in the order of preference; upper and lower case are one
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
)
TEXT_NAMES = (
    *("text", "sentence", "content", "review", "comment", "document", "message"),
    *("question", "tweet", "utterance"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic"),
    *("score", "rating", "stars"),
)
ROW_NUMBER_NAMES = ("id", "idx", "index", "guid", "column 1")

NO_TEST_REMARK = (
    "There are no rows of their own to test on: the test rows are the validation rows, which chose the checkpoint "
    "too, so the test scores are optimistic."
)
WITHHELD_REMARK = "The labels of the data's own test rows are withheld by their publisher: those rows are left out."


class Columns(NamedTuple):
    """Which columns are used.

    Args:
        text: One name, or two for pairs of texts.
        label: One name, or one per class for columns of 0 and 1.
        description: One plain line that says so, and what was guessed.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    description: str


def load_labeled_tables(
    train_data: str | Path | None = None,
    validation_data: str | Path | None = None,
    test_data: str | Path | None = None,
    hub_dataset: str | None = None,
    hub_config: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_columns: Sequence[str] | None = None,
    problem_type: str = "auto",
    label_separator: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 42,
    **reading: Any,
) -> tuple[CorpusSplits, Columns]:
    """Load anybody's labeled text for a classifier.

    Args:
        train_data: A file for `read_table`, or a folder for `read_class_folders`.
        validation_data: Likewise; if None, the validation rows of the folder or of the hub's dataset, or else a
            fraction of the training rows.
        test_data: Likewise; if None and there is no fraction either, the validation rows.
        hub_dataset: Name of a dataset on the hub, instead of `train_data`.
        hub_config: Which of the configurations of `hub_dataset`.
        text_columns: One name, or two for pairs; guessed from the names if None.
        label_columns: One name, or several columns of 0 and 1; guessed from the names if None.
        problem_type: `auto` or what `learn_labels` takes.
        label_separator: What stands between several labels in one cell.
        validation_fraction: Fraction of the training rows that validates if there are no other rows to do so.
        test_fraction: Fraction of the training rows that is tested; 0 for none.
        seed: Of the choice of both. They are stratified by class, by the rarest label of a row, or by tenths
            of the numbers to predict.
        reading: `delimiter`, `quoted`, `encoding` and `column_names` of `read_table`.

    Returns:
        The splits, with columns `text`, `text_pair` (of pairs), `label` and `place` (where the row comes from), and
        the columns of the source that they were made of.

    Raises:
        InputError: Whatever the data or the choices do not allow, with file and row where there is one.
    """
    for name, fraction in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise InputError(f"`{name}` must lie in [0, 1), got {fraction}")
    tables, description = _read_sources(train_data, validation_data, test_data, hub_dataset, hub_config, reading)
    columns = choose_columns(tables["train"], text_columns, label_columns)
    remarks = []
    for name, table in list(tables.items()):
        kept = _rows_with_label(table, columns.label)
        if name == "test" and not kept:
            del tables["test"]
            remarks.append(WITHHELD_REMARK)
        elif kept and len(kept) < len(table):
            tables[name] = table.select(kept)
            remarks.append(
                f"{len(table) - len(kept):,} {name} rows have the label -1, which is none: they are left out."
            )
    scheme = learn_labels(tables["train"], columns.label, problem_type, label_separator)
    remarks += scheme.remarks
    splits = {name: _dataset(table, columns.text, scheme) for name, table in tables.items()}
    remarks += _remarks_on_labels(splits["train"]["label"][:], scheme)
    if test_fraction and "test" in splits:
        raise InputError("`test_fraction` was given but the data have test rows of their own: leave it out")
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if name not in splits and fraction:
            # both are fractions of all training rows, whichever is taken first
            of_rest = fraction * len(tables["train"]) / len(splits["train"])
            splits["train"], splits[name], remark = _split_off(splits["train"], name, of_rest, seed, scheme)
            remarks.append(remark)
    if "validation" not in splits:
        raise InputError("there are no validation rows: pass `validation_data`, or a `validation_fraction` above 0")
    if "test" not in splits:
        remarks.append(NO_TEST_REMARK)
    corpus = CorpusSplits(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test", splits["validation"]),
        label_names=scheme.names,
        text_column="text",
        description=f"{description}; {_describe(scheme)}",
        remarks=remarks,
        second_text_column="text_pair" if len(columns.text) == 2 else None,
        problem_type=scheme.problem_type,
        origin=Origin(hub_dataset or Path(str(train_data)).name, hub_dataset, hub_config),
    )
    return corpus, columns


def choose_columns(
    table: Table, text_columns: Sequence[str] | None = None, label_columns: Sequence[str] | None = None
) -> Columns:
    """Decide by their names which columns are text and label, and refuse where that is not plain.

    Args:
        table: The training rows.
        text_columns: One or two names, if they are known.
        label_columns: One or more names, if they are known.

    Returns:
        The columns.

    Raises:
        InputError: No such column, one named twice, or none that is known by its name.
    """
    # as `read_table` has them
    text_columns, label_columns = (
        names and [unicodedata.normalize("NFC", name) for name in names] for names in (text_columns, label_columns)
    )
    chosen = [*(text_columns or ()), *(label_columns or ())]
    table.require(chosen)
    if len(set(chosen)) < len(chosen) or len(text_columns or ()) > 2:
        raise InputError(
            f"`text_columns` and `label_columns` name one or two columns and one or more others, got {shown(chosen)}"
        )
    free = {name.lower(): name for name in table.columns if name not in chosen}
    label = tuple(label_columns or _take_first(free, [(name,) for name in LABEL_NAMES]))
    text = tuple(text_columns or _take_first(free, [*PAIR_NAMES, *((name,) for name in TEXT_NAMES)]))
    left = tuple(name for name in free.values() if name.lower() not in ROW_NUMBER_NAMES)
    if len(left) == 1 and text and not label:
        label = left
    elif len(left) == 1 and label and not text:
        text = left
    for kind, found in (("text", text), ("label", label)):
        if not found:
            raise InputError(
                f"cannot tell which column of {table.place(0)} is the {kind}: pass `{kind}_columns`; there are "
                f"{shown(list(table.columns))}; if these are no names, pass `column_names` for a file without header"
            )
    guesses = [kind for kind, named in (("text", text_columns), ("label", label_columns)) if named is None]
    guessed = f" ({' and '.join(guesses)} guessed from the names)" if guesses else ""
    unused = [name for name in table.columns if name not in (*text, *label)]
    description = f"text: {shown(text)}, label: {shown(label)}{guessed}" + (
        f", unused: {shown(unused)}" if unused else ""
    )
    return Columns(text, label, description)


def _take_first(free: dict[str, str], groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Take the first group of names that are all free, if there is one."""
    found = next((group for group in groups if set(group) <= set(free)), ())
    return tuple(free.pop(name) for name in found)


def read_source(path: str | Path, **reading: Any) -> dict[str, Table]:
    """Read a file (its rows are the split `train`) or a folder of classes.

    Args:
        path: The file or folder.
        reading: Arguments of `read_table`; a folder takes `encoding` only.

    Returns:
        Split name to its table.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return read_class_folders(path, reading.get("encoding", "utf-8"))
    return {"train": read_table(path, **reading)}


def _read_sources(
    train: str | Path | None,
    validation: str | Path | None,
    test: str | Path | None,
    hub_dataset: str | None,
    hub_config: str | None,
    reading: Mapping[str, Any],
) -> tuple[dict[str, Table], str]:
    if train is not None and hub_dataset is None:
        tables, description = read_source(train, **reading), str(train)
        beside = files_beside_classes(train) if Path(train).is_dir() else 0
        description += f", left out: {beside} files beside the folders of classes" * bool(beside)
    elif hub_dataset is not None and train is None:
        tables, others = read_hub_tables(hub_dataset, hub_config)
        description = f"{hub_dataset}{f' ({hub_config})' if hub_config else ''} from the hub"
        description += f", left out: {shown(others)}" * bool(others)
    else:
        raise InputError(
            "pass `train_data` (a CSV, TSV, JSON, JSON lines or Parquet file, or a folder with a folder of text files "
            "for each class) or `hub_dataset`, one of the two"
        )
    for name, path in (("validation", validation), ("test", test)):
        if path is None:
            continue
        given = read_source(path, **reading)
        if name in tables or len(given) > 1:
            raise InputError(
                f"`{name}_data` {path} is one {name} split too many: {shown(list(tables))} come from {description}, "
                f"{shown(list(given))} from {path}"
            )
        tables[name] = given["train"]
        description += f", {name} rows of {path}"
    return tables, description


def _rows_with_label(table: Table, columns: Sequence[str]) -> Sequence[int]:
    """The rows but those whose class has the number -1, which publishers of numbered classes give to none."""
    values = table.columns.get(columns[0], ())
    if len(columns) > 1 or not len(values):
        return range(len(table))
    if all(value is None for value in values):
        return []
    return [row for row, value in enumerate(values) if value != -1 or columns[0] not in table.class_names]


def _remarks_on_labels(labels: Sequence[Any], scheme: LabelScheme) -> list[str]:
    if scheme.problem_type == REGRESSION:
        mean, spread = float(np.mean(labels)), float(np.std(labels))
        if abs(mean) < 10 and 0.1 < spread < 10:
            return []
        return [
            f"The numbers to predict have mean {mean:.4g} and standard deviation {spread:.4g}: a model learns them "
            "sooner if you scale them to about 0 and 1."
        ]
    array = np.asarray(labels)
    numbers = range(len(scheme.names))
    rows = np.bincount(array, minlength=len(numbers)) if array.ndim == 1 else array.sum(axis=0)
    absent = [scheme.names[number] for number in numbers if not rows[number]]
    return [f"No training row has the label {shown(absent)}."] if absent else []


def _dataset(table: Table, text_columns: Sequence[str], scheme: LabelScheme) -> "Dataset":
    import datasets

    texts = dict(zip(("text", "text_pair"), map(table.texts, text_columns), strict=False))
    number = datasets.Value("float32")
    label = {SINGLE: scheme.names, MULTI: datasets.List(number), REGRESSION: number}[scheme.problem_type]
    places = [one_line(table.place(row)) for row in range(len(table))]  # names of files may be no text
    return labeled_rows({**texts, "label": scheme.encode(table), "place": places}, label)


def _split_off(
    rows: "Dataset", name: str, fraction: float, seed: int, scheme: LabelScheme
) -> "tuple[Dataset, Dataset, str]":
    """The rows that are left, those split off, and a remark on them."""
    texts = rows["text"][:]
    if "text_pair" in rows.column_names:
        texts = [f"{first}\t{second}" for first, second in zip(texts, rows["text_pair"][:], strict=True)]
    strata = _strata(rows["label"][:], scheme.problem_type)
    sizes = Counter(strata)
    divided = [row for row, stratum in enumerate(strata) if sizes[stratum] > 1]
    if not divided or fraction >= 1:
        raise InputError(f"{len(rows)} rows are too few to split off `{name}_fraction`: pass `{name}_data`")
    _, held_out = split_off_validation(
        [texts[row] for row in divided], [strata[row] for row in divided], fraction, seed
    )
    chosen = {divided[row] for row in held_out}
    remark = f"The {name} rows are {len(chosen)} of the training rows, stratified (seed {seed})."
    if scheme.problem_type == SINGLE and len(divided) < len(rows):
        alone = [scheme.names[stratum] for stratum, size in sizes.items() if size == 1]
        remark += f" There are none of the classes with one row: {shown(alone)}."
    return rows.select([row for row in range(len(rows)) if row not in chosen]), rows.select(sorted(chosen)), remark


def _strata(labels: Sequence[Any], problem_type: str) -> list[int]:
    """What is divided alike: rows of a class, of a rarest label (-1: of none), or of a tenth of the numbers."""
    array = np.asarray(labels)
    if problem_type == SINGLE:
        return array.tolist()
    if problem_type == MULTI:
        frequency = np.where(array > 0, array.sum(axis=0), np.inf)  # (rows, classes)
        return np.where(array.any(axis=1), frequency.argmin(axis=1), -1).tolist()
    parts = max(1, min(10, len(array) // 10))
    ranks = array.argsort(kind="stable").argsort(kind="stable")
    return (ranks * parts // len(array)).tolist()


def _describe(scheme: LabelScheme) -> str:
    if scheme.problem_type == REGRESSION:
        return "a number to predict (regression)"
    return f"{len(scheme.names)} classes" + (", any number of them a row" if scheme.problem_type == MULTI else "")
