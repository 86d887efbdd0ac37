"""20 newsgroups, the by-date version (Lang 1995; Rennie): a folder, the archive, scikit-learn's cache, or the hub."""

import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from huggingface_hub import constants

from bert_toolkit.data.corpus_splits import CorpusSplits, Origin, labeled_rows, split_off_validation
from bert_toolkit.data.hub_tables import download
from bert_toolkit.data.text_files import encoding_of, is_clutter, reading
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.hub import hub_answers

CATEGORIES = ("alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc")
"""The four groups of scikit-learn's examples: two that are alike and two that are not."""

HUB_DATASET = "SetFit/20_newsgroups"
FOLDERS = {"train": "20news-bydate-train", "test": "20news-bydate-test"}
SCIKIT_LEARN_PICKLES = ("20news-bydate_py3.pkz", "20news-bydate.pkz")
LARGEST_POST = 16 * 2**20  # bytes; the largest real one has less than 1 MiB

Post = tuple[str, str, str, str]
"""Split (`train` or `test`), newsgroup, file name, text."""

ENCODING = "latin-1"
"""As scikit-learn: every byte has a meaning in it, and some posts are not UTF-8."""


def load_newsgroups(
    source: str = "auto",
    data_dir: str | Path | None = None,
    categories: Sequence[str] | str | None = CATEGORIES,
    remove: Sequence[str] | str = (),
    validation_fraction: float | None = 0.1,
    seed: int = 42,
) -> CorpusSplits:
    """Load posts to be sorted into newsgroups; the test posts were written after the training posts.

    Args:
        source: `auto` (scikit-learn's cache if it holds readable files, otherwise the hub), `scikit-learn`, or `hub`
            (SetFit/20_newsgroups).
        data_dir: The folder that holds `20news-bydate-train` and `20news-bydate-test`, the archive
            `20news-bydate*.tar.gz`, or a folder with that archive. Goes with `auto` only.
        categories: Newsgroups to keep, or the name of one; `all` or None keeps all.
        remove: One or more of `headers`, `footers` and `quotes`: parts of a post that give its group away, recognized
            as in scikit-learn's `fetch_20newsgroups`. The hub's posts come without all three.
        validation_fraction: Fraction of the training posts for validation, stratified by group; None validates on the
            test posts.
        seed: Seed of that split.

    Returns:
        The splits, with columns `text`, `label` (groups in alphabetical order) and `source` (group/file).

    Raises:
        InputError: Files missing or damaged, an unknown group, hub asked for but not reachable, or arguments that
            contradict one another.
    """
    if source not in ("auto", "scikit-learn", "hub"):
        raise InputError(f"`dataset` must be auto, scikit-learn or hub, got {source}")
    if data_dir is not None and source != "auto":
        raise InputError(f"`data_dir` and `dataset {source}` contradict one another: pass one of them")
    categories = [categories] if isinstance(categories, str) else categories
    categories = None if categories is None or list(categories) == ["all"] else categories
    remove = (remove,) if isinstance(remove, str) else remove
    unknown = [part for part in remove if part not in REMOVERS]
    if unknown:
        raise InputError(f"`remove` accepts {', '.join(REMOVERS)}, got {unknown[0]}")
    remarks = []
    cache = None if data_dir is not None or source == "hub" else _scikit_learn_cache(required=source == "scikit-learn")
    origin = Origin("20 newsgroups", language="en")
    if data_dir is not None or cache is not None:
        path = Path(data_dir).expanduser() if data_dir is not None else cache
        assert path is not None
        rows = _select(_read_posts(path), categories, remove)
        description = f"20 newsgroups by date from {path}"
        if remove:
            description += f", without {', '.join(part for part in REMOVERS if part in remove)}"
    elif hub_answers():
        rows = _select(_load_hub(), categories, ())
        origin = replace(origin, hub_dataset=HUB_DATASET)
        description = f"20 newsgroups from the hub ({HUB_DATASET}), without headers, footers, quotes"
        if set(remove) != set(REMOVERS):
            remarks.append("The hub's posts come without headers, footers and quotes, whatever `remove` says.")
    else:
        raise InputError(
            f"20 newsgroups could not be found: the hub {constants.ENDPOINT} does not answer"
            + (" and scikit-learn's cache holds no readable files" if source == "auto" else "")
            + "; pass `data_dir` with the by-date folder or 20news-bydate.tar.gz"
        )
    label_names, columns = rows
    empty = sum(not text.strip() for split in columns.values() for text in split["text"])
    if empty:
        remarks.append(f"{empty} posts have no text left; they are kept, as scikit-learn does.")
    train, test = (labeled_rows(columns[split], label_names) for split in ("train", "test"))
    if validation_fraction is None:
        validation = test
        remarks.append(
            "Validated on the test posts, which chose the checkpoint too, so the test scores are optimistic."
        )
    else:
        kept, held_out = split_off_validation(train["text"][:], train["label"][:], validation_fraction, seed)
        train, validation = train.select(kept), train.select(held_out)
    return CorpusSplits(train, validation, test, label_names, "text", description, remarks, origin=origin)


def _select(
    posts: Iterator[Post], categories: Sequence[str] | None, remove: Sequence[str]
) -> tuple[list[str], dict[str, dict[str, list]]]:
    """Names of the groups, and for each split its columns, ordered by group and file name."""
    by_place = {(split, group, name): text for split, group, name, text in posts}
    for split in FOLDERS:
        available = {group for of_split, group, _ in by_place if of_split == split}
        if not available:
            raise InputError(f"20 newsgroups holds no {split} posts: expected files {FOLDERS[split]}/GROUP/NUMBER")
        missing = sorted(set(categories or ()) - available)
        if missing:
            raise InputError(
                f"`categories` names {missing[0]}, which has no {split} posts; there are "
                + ", ".join(sorted(available))
            )
    label_names = sorted(set(categories) if categories else {group for _, group, _ in by_place})
    if len(label_names) < 2:
        raise InputError(f"at least two newsgroups are needed, got {', '.join(label_names)}")
    columns: dict[str, dict[str, list]] = {split: {"text": [], "label": [], "source": []} for split in FOLDERS}
    for (split, group, name), text in sorted(by_place.items()):
        if group in label_names:
            for part, remover in REMOVERS.items():
                text = remover(text) if part in remove else text
            columns[split]["text"].append(text)
            columns[split]["label"].append(label_names.index(group))
            columns[split]["source"].append(f"{group}/{name}")
    return label_names, columns


def _read_posts(path: Path) -> Iterator[Post]:
    if path.is_file():
        return _read_archive(path)
    if not path.is_dir():
        raise InputError(f"`data_dir` {path} does not exist")
    if any((path / folder).is_dir() for folder in FOLDERS.values()):
        return _read_folder(path)
    archives = sorted(path.glob("20news-bydate*.tar.gz"))
    if not archives:
        raise InputError(
            f"`data_dir` {path} holds neither {' and '.join(FOLDERS.values())} nor an archive 20news-bydate*.tar.gz"
        )
    return _read_archive(archives[0])


def _read_folder(folder: Path) -> Iterator[Post]:
    for split, name in FOLDERS.items():
        for path in folder.glob(f"{name}/*/*"):
            if is_clutter(path) or is_clutter(path.parent):
                continue
            if not path.is_file():
                raise InputError(f"{path} is no file: posts lie in {name}/GROUP, nothing else does")
            with reading(path):
                yield split, path.parent.name, path.name, _text_of_post(path.read_bytes())


def _read_archive(path: Path) -> Iterator[Post]:
    """Read members in memory: nothing is written, so a member's path can do no harm."""
    splits = {folder: split for split, folder in FOLDERS.items()}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if not member.isreg() or len(parts) < 3 or parts[0] not in splits:
                    continue
                if any(is_clutter(Path(part)) for part in parts):
                    continue
                if len(parts) > 3:
                    raise InputError(f"{path} holds {member.name}: posts lie in {parts[0]}/GROUP, not deeper")
                if member.size > LARGEST_POST:
                    raise InputError(f"{path} holds a post of {member.size} bytes, {member.name}: not 20 newsgroups")
                content = archive.extractfile(member)
                assert content is not None  # a regular file has content
                yield splits[parts[0]], parts[1], parts[2], _text_of_post(content.read())
            while archive.fileobj.read(2**20):  # on to the end, where the checksum stands
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{path} is not a whole tar archive: {reason_of(error).rstrip(':')}") from None


def _text_of_post(content: bytes) -> str:
    """Text with newlines at the ends of lines, on which the removal of headers and footers depends.

    A file that went through Windows or an old Mac may hold several kinds of line ends; a carriage return among the
    newlines of the original belongs to the text.
    """
    text = content.decode(encoding_of(content, ENCODING), errors="replace").lstrip("\ufeff")
    return re.sub(r"\r*\n|\r", "\n", text) if "\r\n" in text or "\n" not in text else text


def _scikit_learn_cache(required: bool) -> Path | None:
    """The files of scikit-learn's cache that can be read without unpickling."""
    home = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    for folder in (home / "20news_home", home):
        if all((folder / name).is_dir() for name in FOLDERS.values()) or any(folder.glob("20news-bydate*.tar.gz")):
            return folder
    if not required:
        return None
    pickles = [home / name for name in SCIKIT_LEARN_PICKLES if (home / name).exists()]
    if pickles:
        raise InputError(
            f"scikit-learn's cache {pickles[0]} is a pickle, which can run code when it is read, and is not opened: "
            "pass `data_dir` with the by-date folder or 20news-bydate.tar.gz"
        )
    raise InputError(f"scikit-learn's cache {home} holds no 20 newsgroups: pass `data_dir`, or `dataset hub`")


def _load_hub() -> Iterator[Post]:
    hub = download(f"the hub answered, but {HUB_DATASET}", "; pass `data_dir`", HUB_DATASET)
    for split in FOLDERS:
        rows = zip(hub[split]["label_text"][:], hub[split]["text"][:], strict=True)
        yield from ((split, group, f"{number:05}", text) for number, (group, text) in enumerate(rows))


def remove_headers(text: str) -> str:
    """Return what follows the first empty line; nothing where there is none.

    Args:
        text: A post.
    """
    return text.partition("\n\n")[2]


def remove_footers(text: str) -> str:
    """Return what precedes the last line that is blank or made of hyphens: what follows it is likely a signature.

    Args:
        text: A post.
    """
    lines = text.strip().split("\n")
    borders = [number for number, line in enumerate(lines) if not line.strip().strip("-")]
    return "\n".join(lines[: borders[-1]]) if borders and borders[-1] > 0 else text


QUOTATION = re.compile(r"writes in|writes:|wrote:|says:|said:|^In article|^Quoted from|^\||^>")
"""scikit-learn's signs of a quotation or of a line that introduces one (sklearn.datasets._twenty_newsgroups)."""


def remove_quotes(text: str) -> str:
    """Return the lines that neither quote another post nor introduce a quotation.

    Args:
        text: A post.
    """
    return "\n".join(line for line in text.split("\n") if not QUOTATION.search(line))


REMOVERS: dict[str, Callable[[str], str]] = {
    "headers": remove_headers,
    "footers": remove_footers,
    "quotes": remove_quotes,
}
"""In the order in which scikit-learn applies them."""
