"""Folders of text files, one sub-folder per class, as 20 newsgroups and many collections are laid out."""

from pathlib import Path

from bert_toolkit.data.tables import Table, shown
from bert_toolkit.data.text_files import is_clutter, read_text, reading
from bert_toolkit.errors import InputError

SPLIT_NAMES = {"train": "train", "training": "train", "test": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def read_class_folders(folder: str | Path, encoding: str = "utf-8") -> dict[str, Table]:
    """Read every file of every class; the whole text of a file is one row.

    `folder/CLASS/FILE`, or `folder/train/CLASS/FILE` with `validation` (`valid`, `val`, `dev`) and `test` beside it
    where they exist. Hidden files, what systems and editors leave, and files beside the class folders are passed over.

    Args:
        folder: The outermost folder.
        encoding: Of the files.

    Returns:
        Split name (`train`, `validation`, `test`) to a table with columns `text` and `label`, sorted by class and
        file name; only `train` if the folder has no folders named after splits.

    Raises:
        InputError: No class folders, a class without files, a folder inside a class folder, or a file that is not
            text of that encoding.
    """
    folder = Path(folder)
    folders = _folders(folder)
    named = [(path, SPLIT_NAMES[path.name.lower()]) for path in folders if path.name.lower() in SPLIT_NAMES]
    if not any(split == "train" and _folders(path) for path, split in named):
        return {"train": _read_split(folder, encoding)}
    others = [path.name for path in folders if path.name.lower() not in SPLIT_NAMES]
    if others:
        raise InputError(
            f"{folder} holds `train` and beside it {shown(others)}: name folders {', '.join(SPLIT_NAMES)} if they are "
            "splits, or pass the folder above the classes"
        )
    splits: dict[str, Table] = {}
    for path, split in named:
        if split in splits:
            raise InputError(f"{folder} holds two folders for {split}: remove or rename {path.name!r}")
        splits[split] = _read_split(path, encoding)
    return splits


def files_beside_classes(folder: str | Path) -> int:
    """Return how many files `read_class_folders` passes over, clutter aside, as they lie in no folder of a class.

    Args:
        folder: The folder above the classes.
    """
    return sum(path.is_file() for path in _visible(Path(folder)))


def _read_split(folder: Path, encoding: str) -> Table:
    classes = {path: _visible(path) for path in _folders(folder)}
    if not classes:
        raise InputError(f"{folder} holds no folders: expected one folder of text files for each class")
    for path, files in classes.items():
        strange = next((file for file in files if not file.is_file()), None)
        if strange is not None:
            raise InputError(f"{strange} is no file: the folder of a class may hold text files only")
        if not files:
            raise InputError(f"{path} holds no files: remove the folder or put the texts of class {path.name!r} there")
    paths = [file for files in classes.values() for file in files]
    texts = [read_text(path, encoding) for path in paths]
    return Table({"text": texts, "label": [path.parent.name for path in paths]}, lambda row: str(paths[row]))


def _visible(folder: Path) -> list[Path]:
    with reading(folder):
        paths = sorted(path for path in folder.iterdir() if not is_clutter(path))
    for path in paths:
        if not path.name.isprintable():  # line breaks, and bytes that are not UTF-8
            raise InputError(f"{folder} holds a name with characters that cannot be shown, {path.name!r}: rename it")
    return paths


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]
