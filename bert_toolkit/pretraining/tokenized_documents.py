"""Documents tokenized once, as three flat arrays that may lie in memory or in memory-mapped files."""

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bert_toolkit.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 1
# of `tokens`, by the size of the vocabulary
DTYPES = [
    {"tokens": tokens, "sentence_starts": "int64", "document_starts": "int64"} for tokens in ("uint16", "uint32")
]
_BATCH_CHARACTERS = 1_000_000


class TokenizedDocuments:
    """Token ids of many documents with the places where sentences and documents begin.

    Attributes:
        tokens: (n_tokens,) token ids without special tokens, the smallest unsigned type that holds the vocabulary.
        sentence_starts: (n_sentences + 1,) int64 offsets into `tokens`; the last is n_tokens.
        document_starts: (n_documents + 1,) int64 offsets into sentences; the last is n_sentences.
        tokenizer_fingerprint: Digest of the tokenizer that made the ids.
        directory: Where the arrays are mapped from, None when they lie in memory.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        sentence_starts: np.ndarray,
        document_starts: np.ndarray,
        tokenizer_fingerprint: str,
        directory: Path | None = None,
    ):
        self.tokens = tokens
        self.sentence_starts = sentence_starts
        self.document_starts = document_starts
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.directory = directory

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.document_starts) - 1

    def __reduce__(self) -> tuple:
        # a pickled np.memmap would carry the whole corpus to every spawned worker
        if self.directory is not None:
            return TokenizedDocuments.open, (self.directory,)
        return TokenizedDocuments, (
            self.tokens,
            self.sentence_starts,
            self.document_starts,
            self.tokenizer_fingerprint,
        )

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
            InputError: A document is not a list of strings.
        """
        encoder = _SentenceEncoder(_backend_text(tokenizer), None)
        tokens: list[np.ndarray] = []
        sentence_lengths: list[np.ndarray] = []
        document_lengths: list[np.ndarray] = []
        for batch in _batches_of_text(documents):
            batch_tokens, batch_sentences, batch_documents = encoder(batch)
            tokens.append(batch_tokens)
            sentence_lengths.append(batch_sentences)
            document_lengths.append(batch_documents)
        empty = np.zeros(0, dtype=np.int64)
        return cls(
            np.concatenate(tokens or [empty]),
            _offsets(np.concatenate(sentence_lengths or [empty])),
            _offsets(np.concatenate(document_lengths or [empty])),
            tokenizer_fingerprint(tokenizer),
        )

    @classmethod
    def open(cls, directory: str | os.PathLike) -> "TokenizedDocuments":
        """Map the arrays that `build` wrote; nothing is read until it is used.

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
        return cls(tokens, sentence_starts, document_starts, description["tokenizer_fingerprint"], directory)

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
            InputError: The disk is full, `directory` exists and is no corpus, or a document is malformed.
        """
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.unfinished.", dir=directory.parent))
        lock = _locked(unfinished)
        try:
            encoder = _SentenceEncoder(_backend_text(tokenizer), split_sentences)
            progress = tqdm(
                total=total_bytes,
                unit="B",
                unit_scale=True,
                desc="tokenizing",
                disable=not show_progress,
                mininterval=1.0,
            )
            with progress:
                batches = _batches_of_text(documents, raw=split_sentences is not None)
                encoded = _encode_batches(encoder, batches, processes, progress)
                dtypes = _write_arrays(unfinished, encoded)
            description = {
                "format_version": FORMAT_VERSION,
                "dtypes": dtypes,
                "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            }
            (unfinished / "corpus.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
            if directory.exists():
                cls.open(directory)  # never replaces a folder that is not a corpus
                shutil.rmtree(directory)
            unfinished.rename(directory)
        except OSError as error:
            raise InputError(
                f"could not write the tokenized corpus {directory}: {error.strerror or error}; nothing of it was "
                "kept, free space or choose another folder, then run again"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            if lock is not None:
                os.close(lock)
        return cls.open(directory)


def _locked(folder: Path) -> int | None:
    """A lock on a folder, which the system lifts when this process ends, however it ends; None if it cannot be had."""
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
    """Removes what killed processes left of the same corpus."""
    for folder in directory.parent.glob(f".{directory.name}.unfinished.*"):
        if time.time() - folder.stat().st_mtime > 60 and (lock := _locked(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _damaged(directory: Path, reason: str) -> InputError:
    return InputError(
        f"the tokenized corpus {directory} is damaged: {reason}; delete the folder, then it is tokenized again"
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of all that decides the ids of a sentence: vocabulary, normalizer and pre-tokenizer."""
    return hashlib.blake2b(_backend_text(tokenizer).encode(), digest_size=16).hexdigest()


def _backend_text(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.is_fast:
        raise InputError(
            f"pre-training needs a tokenizer with a fast backend, got {type(tokenizer).__name__}: "
            "load it with AutoTokenizer or save it as tokenizer.json"
        )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # settings that an earlier call may have left there, such as the 128 tokens of sentence-transformers
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()


class _SentenceEncoder:
    """Turns a batch of items into token ids, tokens per sentence and sentences per document."""

    def __init__(self, backend_text: str, split_sentences: Callable[[Any], list[str]] | None):
        self.backend = Tokenizer.from_str(backend_text)
        self.dtype = np.uint16 if self.backend.get_vocab_size() <= 2**16 else np.uint32
        self.split_sentences = split_sentences

    def __call__(self, batch: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        documents = batch if self.split_sentences is None else [self.split_sentences(item) for item in batch]
        sentences = list(itertools.chain.from_iterable(documents))
        encodings = self.backend.encode_batch_fast(sentences, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=self.dtype, count=int(lengths.sum()))
        bounds = _offsets(np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)))
        filled = _offsets((lengths > 0).astype(np.int64))
        per_document = filled[bounds[1:]] - filled[bounds[:-1]]
        return tokens, lengths[lengths > 0], per_document[per_document > 0]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _batches_of_text(documents: Iterable[Any], raw: bool = False) -> Iterator[list[Any]]:
    """Group documents into batches of about a million characters; `raw` items are left as they are."""
    batch: list[Any] = []
    characters = 0
    for number, document in enumerate(documents):
        if not raw:
            document = _checked_sentences(document, number)
        batch.append(document)
        characters += len(document) if isinstance(document, str) else sum(map(len, document))
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _checked_sentences(document: Any, number: int) -> list[str]:
    if isinstance(document, Mapping) and "sentences" in document:
        document = document["sentences"]
    many = isinstance(document, Iterable) and not isinstance(document, str)
    if not many or not all(isinstance(sentence, str) for sentence in document):
        single = "one string" if isinstance(document, str) else type(document).__name__
        found = "something other than strings in it" if many else single
        raise InputError(
            f"document {number} must be a list of sentences (str), got {found}: "
            "split the text first, for example with bert_toolkit.data.documents.split_sentences"
        )
    return list(document)


_process_encoder: _SentenceEncoder


def _start_process(encoder: _SentenceEncoder) -> None:
    global _process_encoder
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _process_encoder = encoder


def _end_with(parent: int) -> None:
    """Ends this process once its parent has gone, which a killed one cannot ask for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _encode_in_process(batch: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _process_encoder(batch)


def _encode_batches(
    encoder: _SentenceEncoder, batches: Iterator[list[Any]], processes: int, progress: tqdm
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Encode batches in order; at most two batches per process are in flight, so memory does not grow."""
    if processes == 1:
        for batch in batches:
            yield encoder(batch)
            progress.update(_utf8_size(batch))
        return
    waiting: deque[tuple[Future, int]] = deque()
    # forked workers share the parent's memory and start at once; where there is no fork they are spawned
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(processes, context, _start_process, (encoder,)) as pool:
        more = True
        while more or waiting:
            following = next(batches, None)
            more = following is not None
            if following is not None:
                waiting.append((pool.submit(_encode_in_process, following), _utf8_size(following)))
            if waiting and (not more or len(waiting) >= 2 * processes):
                result, size = waiting.popleft()
                yield result.result()
                progress.update(size)


def _utf8_size(batch: list[Any]) -> int:
    return sum(
        len(text.encode("utf-8", "surrogatepass"))
        for document in batch
        for text in ([document] if isinstance(document, str) else document)
    )


def _write_arrays(directory: Path, encoded: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, str]:
    """Append the batches to the three files and return their types."""
    n_tokens = n_sentences = 0
    token_type = "uint16"
    with (
        (directory / "tokens.bin").open("wb") as tokens_file,
        (directory / "sentence_starts.bin").open("wb") as sentences_file,
        (directory / "document_starts.bin").open("wb") as documents_file,
    ):
        sentences_file.write(np.zeros(1, dtype=np.int64).tobytes())
        documents_file.write(np.zeros(1, dtype=np.int64).tobytes())
        for tokens, sentence_lengths, document_lengths in encoded:
            token_type = tokens.dtype.name
            tokens_file.write(tokens.tobytes())
            sentences_file.write((n_tokens + np.cumsum(sentence_lengths)).tobytes())
            documents_file.write((n_sentences + np.cumsum(document_lengths)).tobytes())
            n_tokens += len(tokens)
            n_sentences += len(sentence_lengths)
        if n_tokens == 0:
            raise InputError("the corpus is empty: no document has a token; check the files and the tokenizer")
        for file in (tokens_file, sentences_file, documents_file):
            file.flush()
            os.fsync(file.fileno())
    return {"tokens": token_type, "sentence_starts": "int64", "document_starts": "int64"}
