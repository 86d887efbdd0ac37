"""Turns documents into token ids, in this process or in several, in batches, so that memory stays bounded."""

import hashlib
import itertools
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bert_toolkit.errors import InputError

_BATCH_CHARACTERS = 1_000_000


class EncodedBatch(NamedTuple):
    """Documents as token ids, without sentences that have no token and documents that have no such sentence.

    Attributes:
        tokens: (n_tokens,) ids, the smallest unsigned type that holds the vocabulary.
        sentence_lengths: (n_sentences,) int64, in tokens.
        document_lengths: (n_documents,) int64, in sentences.
        losses: What the corpus loses.
    """

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray
    losses: "Losses"


class Losses(NamedTuple):
    """What a corpus loses when it becomes tokens.

    Attributes:
        empty_documents: Documents without any token, left out.
        empty_sentences: Sentences without any token, left out.
        unknown_tokens: Tokens that stand for text that the tokenizer does not know.
    """

    empty_documents: int = 0
    empty_sentences: int = 0
    unknown_tokens: int = 0

    def __add__(self, other: tuple[Any, ...]) -> "Losses":
        """The losses of both together."""
        return Losses(*(one + more for one, more in zip(self, other, strict=True)))


class SentenceEncoder:
    """An encoder that turns documents into token ids.

    A pair joins sentences, so each is tokenized as it would be inside a text: where the tokenizer keeps white space
    in its tokens and puts none before a text (byte-level BPE), a sentence is given the space that comes before it.

    Args:
        tokenizer: A tokenizer with a fast backend. Truncation and padding that it was set to do not count.
        split_sentences: Turns one document into its sentences, in the process that tokenizes it. Must be picklable.
            None: documents are lists of sentences already.

    Raises:
        InputError: The tokenizer has no fast backend.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, split_sentences: Callable[[Any], list[str]] | None = None
    ) -> None:
        """Take a copy of the tokenizer's backend; see the class for the arguments."""
        self.backend = Tokenizer.from_str(_backend_text(tokenizer))
        self.dtype = np.dtype("uint16" if max(self.backend.get_vocab().values()) < 2**16 else "uint32")
        self.split_sentences = split_sentences
        self.before_sentence = _before_sentence(self.backend)
        self.unknown = None if tokenizer.unk_token is None else tokenizer.unk_token_id

    def __call__(self, batch: list[Any]) -> EncodedBatch:
        """Tokenize one batch of documents in this process.

        Args:
            batch: The documents.

        Returns:
            Their tokens.

        Raises:
            InputError: A sentence holds half a character (of UTF-16, which JSON can write).
        """
        documents = batch if self.split_sentences is None else [self.split_sentences(item) for item in batch]
        sentences = [self.before_sentence + text if text else text for document in documents for text in document]
        try:
            encodings = self.backend.encode_batch_fast(sentences, add_special_tokens=False)
        except TypeError:
            raise _half_character(sentences) from None
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=self.dtype, count=int(lengths.sum()))
        # of every document, the sentences that have tokens
        bounds = offsets_of(np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)))
        filled = offsets_of((lengths > 0).astype(np.int64))
        per_document = filled[bounds[1:]] - filled[bounds[:-1]]
        unknown = 0 if self.unknown is None else int(np.count_nonzero(tokens == self.unknown))
        losses = Losses(int((per_document == 0).sum()), int((lengths == 0).sum()), unknown)
        return EncodedBatch(tokens, lengths[lengths > 0], per_document[per_document > 0], losses)

    def stream(self, documents: Iterable[Any], processes: int, progress: tqdm) -> Iterator[EncodedBatch]:
        """Tokenize documents in batches of about a million characters, in order.

        At most two batches per process are in flight, so memory does not grow with the corpus.

        Args:
            documents: The documents, read once.
            processes: Processes that tokenize; 1 works in this process.
            progress: Gets the bytes of UTF-8 that are done.

        Yields:
            One batch after another.

        Raises:
            InputError: A document is no list of strings (where `split_sentences` is None).
        """
        batches = self._batches(documents)
        if processes == 1:
            for batch in batches:
                yield self(batch)
                progress.update(_utf8_size(batch))
            return
        waiting: deque[tuple[Future, int]] = deque()
        # forked workers share the parent's memory and start at once; where there is no fork they are spawned
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(processes, context, _start_process, (self,)) as pool:
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

    def _batches(self, documents: Iterable[Any]) -> Iterator[list[Any]]:
        """Group documents into batches of about a million characters."""
        batch: list[Any] = []
        characters = 0
        for number, document in enumerate(documents):
            if self.split_sentences is None:
                document = _checked_sentences(document, number)
            batch.append(document)
            characters += sum(map(len, _texts_of(document)))
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of all that decides the ids of a sentence: vocabulary, normalizer and pre-tokenizer.

    Args:
        tokenizer: A tokenizer with a fast backend.

    Returns:
        32 hexadecimal digits.

    Raises:
        InputError: The tokenizer has no fast backend.
    """
    text = _backend_text(tokenizer)
    before_sentence = _before_sentence(Tokenizer.from_str(text))
    return hashlib.blake2b((text + before_sentence).encode(), digest_size=16).hexdigest()


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return where stretches of these lengths begin when they follow one another.

    Args:
        lengths: (n,) integers.

    Returns:
        (n + 1,) int64; the last is the sum.
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _backend_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's backend as JSON, without what earlier calls left there."""
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


def _before_sentence(backend: Tokenizer) -> str:
    """What a sentence inside a text has before it, if the tokenizer does not put it there by itself."""
    alone, after_space, two = (backend.encode(text, add_special_tokens=False).ids for text in ("a", " a", "a a"))
    return " " if two == alone + after_space and after_space != alone else ""


def _half_character(sentences: list[str]) -> InputError:
    for sentence in sentences:
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            begin = max(error.start - 20, 0)
            return InputError(
                f"a sentence holds half a character ({sentence[error.start]!r}, a lone surrogate of UTF-16): replace "
                f"it in {sentence[begin : error.start + 20]!r}"
            )
    return InputError("the tokenizer refuses a sentence: sentences must be str")


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


def _texts_of(document: Any) -> list[str]:
    return [document] if isinstance(document, str) else document


def _utf8_size(batch: list[Any]) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for document in batch for text in _texts_of(document))


_process_encoder: SentenceEncoder


def _start_process(encoder: SentenceEncoder) -> None:
    global _process_encoder
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _process_encoder = encoder


def _end_with(parent: int) -> None:
    """End this process once its parent has gone, which a killed one cannot ask for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _encode_in_process(batch: list[Any]) -> EncodedBatch:
    return _process_encoder(batch)
