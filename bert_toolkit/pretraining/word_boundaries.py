"""Which tokens belong to one word, told from the vocabulary alone: WordPiece, byte-level BPE, SentencePiece, words.

A word is what BERT's own tokenizer takes for one (google-research/bert, tokenization.py, `BasicTokenizer`): white
space divides words, and every punctuation mark and every Chinese character is a word.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

# the blocks of `_is_chinese_char`
_CHINESE = [
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)),
    *((0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F)),
]
_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")
# by the leading five bits of a character's first byte
_UTF8_LENGTHS = [1] * 16 + [0] * 8 + [2] * 4 + [3] * 2 + [4, 0]


class WordBoundaries(NamedTuple):
    """What each token of a vocabulary says of the words around it.

    Attributes:
        continues: (vocabulary,) bool, False for tokens that begin a word.
        ends: (vocabulary,) bool, True for tokens that end a word, whatever follows; None where there are none.
    """

    continues: np.ndarray
    ends: np.ndarray | None

    def continues_word(self, input_ids: np.ndarray) -> np.ndarray:
        """Return where a token belongs to the word of the token before it.

        Args:
            input_ids: (batch_size, sequence_length) int64.

        Returns:
            (batch_size, sequence_length) bool.
        """
        continues = self.continues[input_ids]
        if self.ends is not None:
            continues[:, 1:] &= ~self.ends[input_ids[:, :-1]]
        return continues


def word_boundaries(tokenizer: PreTrainedTokenizerBase) -> WordBoundaries | None:
    """Read from a vocabulary where words begin and end.

    - WordPiece: what has the continuing prefix (`##`) continues a word.
    - Whole words: nothing continues.
    - Byte-level BPE (`Ġ`) and SentencePiece (`▁`): what has the mark of white space begins a word; punctuation and
      Chinese characters begin and end one. Of a character that is divided among tokens, the first byte decides.
    - BPE with a suffix at the end of words (`</w>`): what has it ends a word.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        The boundaries; None if the tokenizer marks words in no such way.
    """
    vocabulary = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    marks = set("".join(backend.encode("a a", add_special_tokens=False).tokens))
    if type(backend.model).__name__ == "WordLevel":
        return WordBoundaries(_of_tokens(vocabulary, lambda token: False), None)
    if prefix := getattr(backend.model, "continuing_subword_prefix", None):
        return WordBoundaries(_of_tokens(vocabulary, lambda token: token.startswith(prefix)), None)
    if suffix := getattr(backend.model, "end_of_word_suffix", None):
        every = _of_tokens(vocabulary, lambda token: True)
        return WordBoundaries(every, _of_tokens(vocabulary, lambda token: token.endswith(suffix)))
    if not marks & {"▁", "Ġ"}:
        return None
    white_space = ("▁",) if "▁" in marks else ("Ġ", "Ċ", "ĉ")
    bytes_of = _without_fallback if "▁" in marks else _byte_decoder()

    def begins(token: str) -> bool:
        return token.startswith(white_space) or _stands_alone(_first_character(bytes_of(token)))

    def ends(token: str) -> bool:
        return _stands_alone(bytes_of(token).decode(errors="replace")[-1:])

    return WordBoundaries(~_of_tokens(vocabulary, begins), _of_tokens(vocabulary, ends))


def _of_tokens(vocabulary: dict[str, int], property_of: Callable[[str], bool]) -> np.ndarray:
    """A property of every token, by its number."""
    values = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    values[[number for token, number in vocabulary.items() if property_of(token)]] = True
    return values


def _stands_alone(character: str) -> bool:
    """Whether BERT's tokenizer makes a character a word: Chinese, punctuation, ASCII but letters and digits."""
    if not character or character.isspace():
        return False
    if character.isascii():
        return character.isprintable() and not character.isalnum()
    if unicodedata.category(character).startswith("P"):
        return True
    return any(first <= ord(character) <= last for first, last in _CHINESE)


def _byte_decoder() -> Callable[[str], bytes]:
    """Turn tokens of a byte-level vocabulary into the bytes that they stand for."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # visible characters of Latin-1 stand for themselves, the others follow in the order of their bytes
    byte_of = {character: ord(character) for character in alphabet if ord(character) < 256}
    invisible = sorted(set(range(256)) - set(byte_of.values()))
    byte_of |= zip(sorted(set(alphabet) - byte_of.keys()), invisible, strict=True)
    # what was added to the vocabulary is plain text
    return lambda token: bytes(map(byte_of.__getitem__, token)) if byte_of.keys() >= set(token) else token.encode()


def _without_fallback(token: str) -> bytes:
    """The bytes of a SentencePiece token, which may stand for one byte of a character: `<0xE4>`."""
    return bytes.fromhex(token[3:5]) if _FALLBACK.fullmatch(token) else token.encode()


def _first_character(text: bytes) -> str:
    """The character at the beginning; where its last bytes are missing, the first one that has the others."""
    length = _UTF8_LENGTHS[text[0] >> 3] if text else 0
    return text[:length].ljust(length, b"\x80").decode(errors="ignore")
