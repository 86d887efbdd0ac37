"""Documents of invented words, of which every sentence tells its document; small tokenizers of every kind."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{i}" for i in range(400)]
PIECES = [f"##p{i}" for i in range(50)]


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    entries = SPECIAL + [f"[unused{i}]" for i in range(3)] + WORDS + PIECES
    return BertTokenizer(vocab={token: i for i, token in enumerate(entries)}, do_lower_case=True)


@pytest.fixture(scope="session")
def make_documents():
    """Documents whose sentence number s of document d begins with the words w<d> w<s>."""

    def make(sizes: list[int], seed: int = 0, longest: int = 30) -> list[list[str]]:
        generator = np.random.default_rng(seed)
        return [
            [
                " ".join([f"w{d % 400}", f"w{s % 400}", *(f"w{i}" for i in generator.integers(0, 400, n))])
                for s, n in enumerate(generator.integers(1, longest, size))
            ]
            for d, size in enumerate(sizes)
        ]

    return make


# Western, Turkish, Greek, Chinese, Japanese, Korean, Arabic, Hindi, Thai, emoji with joiners and skin tones, signs
LANGUAGES = [
    "The quick brown fox jumps over the lazy dog.",
    "Don't stop (she said): it's 3.14 metres, or $5!",
    "Ein schöner Tag für müde Füße; İstanbul'da kış uzun sürer.",
    "Καλημέρα κόσμε, πώς είστε σήμερα;",
    "我爱北京天安门。今天天气很好，我们去公园吧！",
    "彼は東京へ行きました。とても楽しかったです。",
    "한국어 문장입니다. 오늘은 날씨가 좋네요.",
    "السلام عليكم، كيف حالك اليوم؟",
    "यह एक वाक्य है। आज मौसम अच्छा है।",
    "ภาษาไทยไม่มีช่องว่าง",
    "I like 🍕 and 🎉, so do 👩‍👩‍👧‍👦 and 👍🏽.",
]
TOKENS = {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def _byte_level(size: int, add_prefix_space: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(TOKENS.values())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(LANGUAGES * 3, trainer)
    return backend


def _sentencepiece(size: int, prepend_scheme: str = "always") -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(TOKENS.values()), unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(LANGUAGES * 3, trainer)
    return backend


def _sentencepiece_of_bytes() -> Tokenizer:
    """As of Llama and Gemma: BPE, characters that it does not know as bytes, white space as a normalizer's mark."""
    known = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"abcdefghijklmnopqrstuvwxyzT.", "▁t", "he", "▁the"]
    vocabulary = {token: i for i, token in enumerate([*TOKENS.values(), *known])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(TOKENS.values()), show_progress=False)
    backend.train_from_iterator(LANGUAGES * 3, trainer)
    return backend


def _bpe_with_word_ends() -> Tokenizer:
    """As of XLM and CLIP."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(TOKENS.values()), end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(LANGUAGES * 3, trainer)
    return backend


def _words() -> Tokenizer:
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(special_tokens=list(TOKENS.values()), show_progress=False)
    backend.train_from_iterator(LANGUAGES * 3, trainer)
    return backend


KINDS = {
    "WordPiece": _wordpiece,
    "words": _words,
    "BPE with word ends": _bpe_with_word_ends,
    "byte-level BPE": lambda: _byte_level(900),
    "byte-level BPE of single bytes": lambda: _byte_level(270),
    "byte-level BPE with a space before a text": lambda: _byte_level(900, add_prefix_space=True),
    "SentencePiece": lambda: _sentencepiece(400),
    "SentencePiece of few pieces": lambda: _sentencepiece(250),
    "SentencePiece without a space before a text": lambda: _sentencepiece(400, prepend_scheme="never"),
    "SentencePiece with bytes": _sentencepiece_of_bytes,
}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer_of_any_kind(request) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param](), **TOKENS)
