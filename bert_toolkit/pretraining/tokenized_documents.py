"""Documents tokenized once, as three flat arrays that may lie in memory or in memory-mapped files."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.pretraining.sentence_encoder import (
    EncodedBatch,
    Losses,
    SentenceEncoder,
    offsets_of,
    tokenizer_fingerprint,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 1
# of `tokens`, by the size of the vocabulary
DTYPES = [
    {"tokens": tokens, "sentence_starts": "int64", "document_starts": "int64"} for tokens in ("uint16", "uint32")
]


class TokenizedDocuments:
    """Token ids of many documents with the places where sentences and documents begin.

    Attributes:
        tokens: (n_tokens,) token ids without special tokens, the smallest unsigned type that holds the vocabulary.
        sentence_starts: (n_sentences + 1,) int64 offsets into `tokens`; the last is n_tokens.
        document_starts: (n_documents + 1,) int64 offsets into sentences; the last is n_sentences.
        tokenizer_fingerprint: Digest of the tokenizer that made the ids.
        directory: Where the arrays are mapped from, None when they lie in memory.
        losses: What the corpus lost when it was tokenized; zeros for one that an earlier version built.

    Examples:
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "sleeps"]
        >>> tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        >>> corpus = TokenizedDocuments.from_documents([["The dog sleeps", "The dog"], ["Sleeps"]], tokenizer)
        >>> corpus.tokens.tolist(), corpus.sentence_starts.tolist(), corpus.document_starts.tolist()
        ([5, 6, 7, 5, 6, 7], [0, 3, 5, 6], [0, 2, 3])
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     on_disk = TokenizedDocuments.build(f"{folder}/corpus", [["The dog"]], tokenizer, show_progress=False)
        ...     len(on_disk), on_disk.tokens.tolist()
        (1, [5, 6])
    """

    def __init__(
        self,
        tokens: np.ndarray,
        sentence_starts: np.ndarray,
        document_starts: np.ndarray,
        tokenizer_fingerprint: str,
        directory: Path | None = None,
        losses: Losses | None = None,
    ) -> None:
        """Take the arrays as they are; `from_documents`, `build` and `open` make them.

        Args:
            tokens: See the class, as for the others.
            sentence_starts: Likewise.
            document_starts: Likewise.
            tokenizer_fingerprint: Likewise.
            directory: Likewise.
            losses: Likewise.
        """
        self.tokens = tokens
        self.sentence_starts = sentence_starts
        self.document_starts = document_starts
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.directory = directory
        self.losses = losses or Losses()

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.document_starts) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a mapped corpus as its folder: a pickled np.memmap would carry it to every spawned worker."""
        if self.directory is not None:
            return TokenizedDocuments.open, (self.directory,)
        arrays = (self.tokens, self.sentence_starts, self.document_starts)
        return TokenizedDocuments, (*arrays, self.tokenizer_fingerprint, None, self.losses)

    def bounds_of_document(self, sentence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the document that a sentence belongs to.

        Args:
            sentence: (n,) int64 numbers of sentences.

        Returns:
            Its first sentence, and the sentence after its last: (n,) int64 each.
        """
        following = np.searchsorted(self.document_starts, sentence, side="right")
        return self.document_starts[following - 1], self.document_starts[following]

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Sequence[str] | Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> "TokenizedDocuments":
        """Tokenize documents in this process and keep the result in memory.

        Args:
            documents: Each a list of sentences, or a row with a column "sentences" (as of a `datasets.Dataset`).
            tokenizer: A tokenizer with a fast backend.

        Returns:
            The tokenized documents; sentences without tokens and documents without sentences are left out.

        Raises:
            InputError: A document is not a list of strings, or the tokenizer has no fast backend.
        """
        encoder = SentenceEncoder(tokenizer)
        batches = [encoder([]), *encoder.stream(documents, processes=1, progress=tqdm(disable=True))]
        *arrays, losses = zip(*batches, strict=True)
        tokens, sentence_lengths, document_lengths = map(np.concatenate, arrays)
        return cls(
            tokens,
            offsets_of(sentence_lengths),
            offsets_of(document_lengths),
            tokenizer_fingerprint(tokenizer),
            losses=sum(losses, Losses()),
        )

    @classmethod
    def open(cls, directory: str | os.PathLike) -> "TokenizedDocuments":
        """Map the arrays that `build` wrote; nothing is read until it is used.

        Args:
            directory: The folder that `build` made.

        Returns:
            The corpus.

        Raises:
            InputError: There is no complete corpus of this format in `directory`.
        """
        directory = Path(directory)
        try:
            description = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"no tokenized corpus in {directory}: expected the folder that TokenizedDocuments.build wrote"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(directory, f"corpus.json cannot be read: {error}") from None
        if not isinstance(description, dict) or not isinstance(description.get("tokenizer_fingerprint"), str):
            raise _damaged(directory, "corpus.json does not describe a corpus")
        if description.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{directory} holds a tokenized corpus of format {description.get('format_version')}, this version "
                f"reads format {FORMAT_VERSION}: delete the folder and tokenize again"
            )
        if description.get("dtypes") not in DTYPES:
            raise _damaged(directory, "corpus.json names other types of numbers than `build` writes")
        try:
            tokens, sentence_starts, document_starts = (
                np.memmap(directory / f"{name}.bin", dtype=description["dtypes"][name], mode="r")
                for name in ("tokens", "sentence_starts", "document_starts")
            )
        except (OSError, ValueError) as error:  # ValueError: no whole number of elements, or none
            raise _damaged(directory, str(error)) from None
        for name, starts, end in (
            ("document_starts.bin", document_starts, len(sentence_starts) - 1),
            ("sentence_starts.bin", sentence_starts, len(tokens)),
        ):
            if starts[0] != 0 or starts[-1] != end:
                raise _damaged(directory, f"{name} does not fit the other files")
        losses = description.get("losses", {})
        if not isinstance(losses, dict) or not all(type(losses.get(name, 0)) is int for name in Losses._fields):
            raise _damaged(directory, "corpus.json counts losses in something other than numbers")
        losses = Losses(*(losses.get(name, 0) for name in Losses._fields))
        return cls(tokens, sentence_starts, document_starts, description["tokenizer_fingerprint"], directory, losses)

    @classmethod
    def build(
        cls,
        directory: str | os.PathLike,
        documents: Iterable[Any],
        tokenizer: PreTrainedTokenizerBase,
        split_sentences: Callable[[Any], list[str]] | None = None,
        processes: int = 1,
        total_bytes: int | None = None,
        show_progress: bool = True,
    ) -> "TokenizedDocuments":
        """Tokenize documents into memory-mapped files, with several processes and bounded memory.

        The files are written under a temporary name beside `directory` and renamed when they are complete, so an
        interrupted run or a full disk never leaves a corpus that a later run would take for whole. What a killed run
        left under such a name is removed.

        Args:
            directory: Folder to create. Its parent must be on the disk that shall hold the corpus.
            documents: Documents as in `from_documents`, or whatever `split_sentences` takes; read once, as a stream.
            tokenizer: A tokenizer with a fast backend.
            split_sentences: Run in the worker processes: turns one item of `documents` into its sentences. Must be
                picklable. None: the items are lists of sentences already.
            processes: Processes that tokenize; 1 works in this process.
            total_bytes: Size of all items in UTF-8, for the remaining time of the progress bar.
            show_progress: Show the bar (on standard error).

        Returns:
            The corpus, opened as by `open`.

        Raises:
            InputError: The disk is full, `directory` exists and is no corpus, a document is malformed, or no document
                has a token.
        """
        directory = Path(directory)
        encoder = SentenceEncoder(tokenizer, split_sentences)
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.unfinished.", dir=directory.parent))
        lock = _locked(unfinished)
        shown: dict[str, Any] = {"desc": "tokenizing", "disable": not show_progress, "mininterval": 1.0}
        try:
            with tqdm(total=total_bytes, unit="B", unit_scale=True, **shown) as progress:
                losses = _write_arrays(unfinished, encoder.stream(documents, processes, progress))
            description = {
                "format_version": FORMAT_VERSION,
                "dtypes": {"tokens": encoder.dtype.name, "sentence_starts": "int64", "document_starts": "int64"},
                "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
                "losses": losses._asdict(),
            }
            (unfinished / "corpus.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
            if directory.exists():
                cls.open(directory)  # never replaces a folder that is not a corpus
                shutil.rmtree(directory)
            unfinished.rename(directory)
        except OSError as error:
            raise InputError(
                f"could not write the tokenized corpus {directory}: {reason_of(error)}; nothing of it was "
                "kept, free space or choose another folder, then run again"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            if lock is not None:
                os.close(lock)
        return cls.open(directory)


def _locked(folder: Path) -> int | None:
    """A lock on a folder, which the system lifts when this process ends, however it ends; None if there is none."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system knows no locks
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed processes left of the same corpus."""
    for folder in directory.parent.glob(f".{directory.name}.unfinished.*"):
        if time.time() - folder.stat().st_mtime > 60 and (lock := _locked(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _damaged(directory: Path, reason: str) -> InputError:
    return InputError(
        f"the tokenized corpus {directory} is damaged: {reason}; delete the folder, then it is tokenized again"
    )


def _write_arrays(directory: Path, batches: Iterator[EncodedBatch]) -> Losses:
    """Append the batches to the three files, and return their losses together."""
    n_tokens = n_sentences = 0
    losses = Losses()
    with (
        (directory / "tokens.bin").open("wb") as tokens_file,
        (directory / "sentence_starts.bin").open("wb") as sentences_file,
        (directory / "document_starts.bin").open("wb") as documents_file,
    ):
        sentences_file.write(np.zeros(1, dtype=np.int64).tobytes())
        documents_file.write(np.zeros(1, dtype=np.int64).tobytes())
        for tokens, sentence_lengths, document_lengths, lost in batches:
            tokens_file.write(tokens.tobytes())
            sentences_file.write((n_tokens + np.cumsum(sentence_lengths)).tobytes())
            documents_file.write((n_sentences + np.cumsum(document_lengths)).tobytes())
            n_tokens += len(tokens)
            n_sentences += len(sentence_lengths)
            losses += lost
        if n_tokens == 0:
            raise InputError("the corpus is empty: no document has a token; check the files and the tokenizer")
        for file in (tokens_file, sentences_file, documents_file):
            file.flush()
            os.fsync(file.fileno())
    return losses
