"""Trains the WordPiece tokenizer of a BERT from text."""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer

from bert_toolkit.errors import InputError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_wordpiece(
    texts: Iterable[str | list[str]], vocab_size: int, max_length: int, lowercase: bool = True
) -> BertTokenizer:
    """Learn a WordPiece vocabulary.

    Args:
        texts: Documents, each a text or a list of sentences.
        vocab_size: Entries at most, special tokens included.
        max_length: Longest sequence in tokens, kept as the tokenizer's `model_max_length`.
        lowercase: Lower the case and strip accents.

    Returns:
        A tokenizer with the normalisation and the special tokens of BERT.

    Raises:
        InputError: `vocab_size` has no room for words, or the texts hold none.
    """
    if vocab_size < 100:
        raise InputError(f"`vocab_size` must be at least 100, got {vocab_size}")
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False)
    pieces = (sentence for text in texts for sentence in ([text] if isinstance(text, str) else text))
    tokenizer.train_from_iterator(pieces, trainer)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise InputError("the corpus is empty: there is no word to learn a vocabulary from; check the files")
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length)
