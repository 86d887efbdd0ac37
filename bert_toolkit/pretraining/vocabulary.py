"""Trains the tokenizer of a BERT from text: WordPiece, or whole words."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, trainers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizer

from bert_toolkit.errors import InputError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_wordpiece(
    texts: Iterable[str | list[str]], vocab_size: int, max_length: int, lowercase: bool = True
) -> BertTokenizer:
    """Learn a WordPiece vocabulary; the same texts always give the same one.

    Args:
        texts: Documents, each a text or a list of sentences; gone through twice.
        vocab_size: Entries at most, special tokens included.
        max_length: Longest sequence in tokens, kept as the tokenizer's `model_max_length`.
        lowercase: Lower the case; accents stay.

    Returns:
        A tokenizer with the normalization and the special tokens of BERT.

    Raises:
        InputError: `vocab_size` has no room for words, the texts hold none, or can be gone through once only.

    Examples:
        >>> tokenizer = train_wordpiece(["The dog sleeps. The dog wakes."], vocab_size=100, max_length=64)
        >>> tokenizer.tokenize("The dogs")
        ['the', 'dog', '##s']
    """
    if vocab_size < 100:
        raise InputError(f"`vocab_size` must be at least 100, got {vocab_size}")
    if iter(texts) is texts:
        raise InputError("`texts` must be something that can be gone through twice, such as a list, got an iterator")
    # The trainer numbers the pieces of one character after the first in the order of a hash table, which differs from
    # run to run, and breaks ties between pairs by these numbers. Naming the pieces beforehand gives them fixed ones.
    alphabet = _learned(texts, models.WordPiece, _trainer(trainers.WordPieceTrainer, 0, SPECIAL_TOKENS), lowercase)
    inner = sorted(piece for piece in alphabet if piece.startswith("##"))
    trainer = _trainer(trainers.WordPieceTrainer, vocab_size, [*SPECIAL_TOKENS, *inner])
    vocabulary = _learned(texts, models.WordPiece, trainer, lowercase)
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, strip_accents=False, model_max_length=max_length)


def train_words(
    texts: Iterable[str | list[str]], vocab_size: int, max_length: int, lowercase: bool = True
) -> BertTokenizer:
    """Take the most frequent words for a vocabulary, for small corpora; every other word is [UNK].

    Args:
        texts: Documents, each a text or a list of sentences.
        vocab_size: Entries at most, special tokens included.
        max_length: Longest sequence in tokens, kept as the tokenizer's `model_max_length`.
        lowercase: Lower the case; accents stay.

    Returns:
        A tokenizer as of `train_wordpiece`, but without pieces of words.

    Raises:
        InputError: `vocab_size` has no room for words, or the texts hold none.

    Examples:
        >>> tokenizer = train_words(["The dog sleeps. The dog wakes."], vocab_size=100, max_length=64)
        >>> tokenizer.tokenize("The dogs sleep. The dog wakes.")
        ['the', '[UNK]', '[UNK]', '.', 'the', 'dog', 'wakes', '.']
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise InputError(f"`vocab_size` must be at least {len(SPECIAL_TOKENS) + 1}, got {vocab_size}")
    trainer = _trainer(trainers.WordLevelTrainer, vocab_size, SPECIAL_TOKENS)
    vocabulary = _learned(texts, models.WordLevel, trainer, lowercase)
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, strip_accents=False, model_max_length=max_length)


def save_tokenizer(tokenizer: BertTokenizer, folder: Path) -> None:
    """Save a tokenizer whole or not at all, so that a later run never reads what a killed one left half written.

    Args:
        tokenizer: The tokenizer.
        folder: Where it is loaded from; complete as soon as it holds `tokenizer.json`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.unfinished.", dir=folder.parent) as unfinished:
        tokenizer.save_pretrained(unfinished)
        folder.mkdir(exist_ok=True)
        # what says that the folder is complete comes last
        for file in sorted(Path(unfinished).iterdir(), key=lambda file: file.name == "tokenizer.json"):
            file.replace(folder / file.name)


def _trainer(trainer_class: Any, vocab_size: int, first: list[str]) -> Any:
    return trainer_class(vocab_size=vocab_size, special_tokens=first, show_progress=False)


def _learned(texts: Iterable[str | list[str]], model_class: Any, trainer: Any, lowercase: bool) -> dict[str, int]:
    """Every entry and its number: the trainer's special tokens, single pieces if any, then what the trainer chose."""
    tokenizer = Tokenizer(model_class(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(
        lowercase=lowercase, strip_accents=False
    )  # accents of many scripts are vowels
    tokenizer.pre_tokenizer = BertPreTokenizer()
    sentences = (sentence for text in texts for sentence in ([text] if isinstance(text, str) else text))
    tokenizer.train_from_iterator(sentences, trainer)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise InputError("the corpus is empty: there is no word to learn a vocabulary from; check the files")
    return vocabulary
