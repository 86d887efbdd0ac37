"""Vocabularies that are learned from text: WordPiece and whole words."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bert_toolkit import InputError, NextSentencePairs
from bert_toolkit.pretraining.vocabulary import SPECIAL_TOKENS, save_tokenizer, train_wordpiece, train_words


def test_wordpiece_learns_words_and_pieces():
    texts = ["the cat sat on the mat", ["The cats sat.", "A mat!"]] * 50
    tokenizer = train_wordpiece(texts, vocab_size=100, max_length=64)
    assert tokenizer.tokenize("The cat") == ["the", "cat"]
    assert tokenizer.decode(tokenizer("the cats sat", add_special_tokens=False)["input_ids"]) == "the cats sat"
    ids = tokenizer("the cat", "a mat")
    assert ids["input_ids"][0] == tokenizer.cls_token_id and set(ids["token_type_ids"]) == {0, 1}
    assert tokenizer.model_max_length == 64
    with pytest.raises(InputError, match="`vocab_size` must be at least 100"):
        train_wordpiece(texts, vocab_size=5, max_length=64)
    with pytest.raises(InputError, match="the corpus is empty"):
        train_wordpiece([" "], vocab_size=200, max_length=64)


def test_wordpiece_vocabulary_is_the_same_every_time():
    """Words that are equally frequent leave many ties, which a hash table would break differently every time."""
    texts = [f"{a}{b}{c}" for a in "abcdefg" for b in "hijklm" for c in "nopqr"]
    first, *others = (train_wordpiece(texts, vocab_size=150, max_length=64).get_vocab() for _ in range(4))
    assert len(first) == 150
    assert all(other == first for other in others)


def test_texts_that_can_be_read_once_only_are_refused():
    with pytest.raises(InputError, match="gone through twice"):
        train_wordpiece(iter(["the cat"]), vocab_size=100, max_length=64)


def test_tokenizer_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    tokenizer = train_wordpiece(["the cat sat"], vocab_size=100, max_length=64)
    folder = tmp_path / "cache" / "wordpiece"

    def killed(self, target):
        (Path(target) / "tokenizer.json").write_text('{"half": ')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            save_tokenizer(tokenizer, folder)
    assert not (folder / "tokenizer.json").exists()
    save_tokenizer(tokenizer, folder)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in folder.parent.iterdir()] == ["wordpiece"]


TALE = "The dog sleeps. The cat, the old cat, wakes; the DOG sleeps!"


def test_words_are_the_most_frequent_ones():
    counts = Counter(re.findall(r"\w+|[^\w\s]", TALE.lower()))
    for size in (9, 100):
        tokenizer = train_words([TALE], size, max_length=64)
        vocabulary = tokenizer.get_vocab()
        assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
        words = vocabulary.keys() - set(SPECIAL_TOKENS)
        assert len(words) == min(size - 5, len(counts))
        assert min(counts[word] for word in words) >= max(counts[word] for word in [*(counts.keys() - words), "none"])
    assert sorted(tokenizer.convert_ids_to_tokens(tokenizer("The dogs wake", "The cat")["input_ids"])) == sorted(
        ["[CLS]", "the", "[UNK]", "[UNK]", "[SEP]", "the", "cat", "[SEP]"]
    )
    assert train_words([[TALE], TALE], 100, 64).get_vocab().keys() == tokenizer.get_vocab().keys()


def test_words_keep_their_case_if_asked_to():
    assert train_words(["Ärger Ärger"], 100, 64).tokenize("Ärger") == ["ärger"]
    assert train_words(["Ärger Ärger"], 100, 64, lowercase=False).tokenize("Ärger ärger") == ["Ärger", "[UNK]"]


@pytest.mark.parametrize("word", ["हिन्दी", "ภาษาไทย", "がぎぐげご", "kéz", "ёлка", "đường", "עִבְרִית"])
@pytest.mark.parametrize("train", [train_words, train_wordpiece])
def test_marks_of_a_script_are_kept(train, word):
    (piece,) = train([f"{word} {word}"], 100, 64).tokenize(word)
    assert unicodedata.normalize("NFC", piece) == unicodedata.normalize("NFC", word)


def test_word_vocabulary_is_the_same_every_time_and_loads_as_any_tokenizer(tmp_path):
    texts = [f"{a}{b}{c}" for a in "abcdefg" for b in "hijklm" for c in "nopqr"]
    first, *others = (train_words(texts, 150, 64) for _ in range(4))
    assert all(other.get_vocab() == first.get_vocab() for other in others)
    save_tokenizer(first, tmp_path / "words")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "words")
    assert loaded("ahn ahn zzz", "bhn")["input_ids"] == first("ahn ahn zzz", "bhn")["input_ids"]
    assert NextSentencePairs([["ahn bhn", "chn"], ["dhn", "ehn"]], loaded, max_length=16)[0]["input_ids"]


def test_word_vocabulary_without_room_or_words_is_refused():
    with pytest.raises(InputError, match="`vocab_size` must be at least 6, got 5"):
        train_words([TALE], 5, 64)
    with pytest.raises(InputError, match="the corpus is empty"):
        train_words([" ", []], 100, 64)
