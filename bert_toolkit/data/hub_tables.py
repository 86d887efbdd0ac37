"""Tables of a dataset on the Hugging Face hub."""

from huggingface_hub import constants

from bert_toolkit.data.class_folders import SPLIT_NAMES
from bert_toolkit.data.tables import Table, shown
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.training.pretrained import hub_answers


def read_hub_tables(name: str, config: str | None = None) -> dict[str, Table]:
    """Downloads a dataset, or takes it from the cache of the datasets library. No code of the dataset is run.

    Args:
        name: Such as `nyu-mll/glue`.
        config: Such as `mrpc`, where the dataset has several.

    Returns:
        Split name (`train`, `validation`, `test`) to its table; splits of other names are left out.

    Raises:
        InputError: The hub does not answer (found out within seconds), it has no such dataset, or no training split.
    """
    import datasets

    if not hub_answers():
        raise InputError(
            f"`hub_dataset` {name} was asked for but the hub {constants.ENDPOINT} does not answer: pass a file or a "
            "folder as `train_data`"
        )
    try:
        downloaded = datasets.load_dataset(name, config)
    except Exception as error:  # the library's own errors have no common base
        raise InputError(f"`hub_dataset` {name} could not be loaded: {reason_of(error)}") from error
    tables = {
        SPLIT_NAMES[split]: _table(f"{name} {split}", rows)
        for split, rows in downloaded.items()
        if split in SPLIT_NAMES
    }
    if "train" not in tables:
        raise InputError(f"`hub_dataset` {name} has no split named train: it has {shown(list(downloaded))}")
    return tables


def _table(source: str, rows) -> Table:
    class_names = {}
    for name, feature in rows.features.items():
        feature = getattr(feature, "feature", feature)  # of a list, its elements
        if hasattr(feature, "names"):
            class_names[name] = feature.names
    columns = {name: rows[name][:] for name in rows.column_names}
    return Table(columns, lambda row: f"{source} (row {row + 1})", class_names)
