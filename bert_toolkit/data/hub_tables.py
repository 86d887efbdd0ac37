"""Tables of a dataset on the Hugging Face hub."""

from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from bert_toolkit.data.class_folders import SPLIT_NAMES
from bert_toolkit.data.tables import Table, shown, table_of_features
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.hub import hub_answers

if TYPE_CHECKING:
    import datasets


def read_hub_tables(name: str, config: str | None = None) -> tuple[dict[str, Table], list[str]]:
    """Download a dataset, or take it from the cache of the datasets library. No code of the dataset is run.

    Args:
        name: Such as `nyu-mll/glue`.
        config: Such as `mrpc`, where the dataset has several.

    Returns:
        Split name (`train`, `validation`, `test`) to its table, and the names of the splits that were left out.

    Raises:
        InputError: The hub does not answer (found out within seconds), it has no such dataset, or no training split.
    """
    if not hub_answers():
        raise InputError(
            f"`hub_dataset` {name} was asked for but the hub {constants.ENDPOINT} does not answer: pass a file or a "
            "folder as `train_data`"
        )
    downloaded = download(f"`hub_dataset` {name}", "", name, *([config] if config else []))
    tables: dict[str, Table] = {}
    others = []
    for split, rows in downloaded.items():
        if split in SPLIT_NAMES and SPLIT_NAMES[split] not in tables and len(rows):
            tables[SPLIT_NAMES[split]] = _table(f"{name} {split}", rows)
        else:
            others.append(split)
    if "train" not in tables:
        raise InputError(f"`hub_dataset` {name} has no split named train: it has {shown(list(downloaded))}")
    return tables, others


def _table(source: str, rows: "datasets.Dataset") -> Table:
    return table_of_features(source, rows.column_names, lambda name: rows[name][:], rows.features)


def download(what: str, remedy: str, *dataset: str) -> Any:
    """Call `datasets.load_dataset`, with its errors in one line.

    Args:
        what: What could not be loaded, for the message.
        remedy: What to do then.
        dataset: Name, and configuration if there are several.

    Returns:
        Its splits.

    Raises:
        InputError: Anything that the library raises, whose own errors have no common base.
    """
    import datasets

    try:
        return datasets.load_dataset(*dataset)
    except Exception as error:
        raise InputError(f"{what} could not be loaded: {reason_of(error)}{remedy}") from error
