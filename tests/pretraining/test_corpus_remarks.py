"""What a corpus loses is said with the numbers that were planted, and nothing is said of a good one."""

import re

import pytest
from conftest import LANGUAGES

from bert_toolkit import NextSentencePairs
from bert_toolkit.data.documents import split_sentences

GOOD = [["w1 w2 w3", "w4 w5", "w6"]] * 10


def remarks(documents, tokenizer, **settings):
    return NextSentencePairs(documents, tokenizer, **{"max_length": 16, **settings}).remarks


def test_nothing_is_said_of_a_good_corpus(tokenizer):
    assert remarks(GOOD, tokenizer) == []


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([["w1"]] * 5, "Documents of one sentence serve as random B only: 5 of 15 documents, 14.3% of all"),
        ([["w1", " "], [""]], "The tokenizer makes no token of 2 sentences and of 1 document: they are left out"),
        (
            [["w1 " * 33, "w2"]],
            "Sentences longer than a pair of 16 tokens are cut: 1 of 32, with at least 21.3% of all tokens",
        ),
        ([["w1", "w1 nonsense ☃ w2", "❄ ❄"]], "The tokenizer does not know the text of 6.0% of the tokens"),
    ],
    ids=["one-sentence", "empty", "long", "unknown"],
)
def test_each_loss_is_counted(tokenizer, documents, message):
    found = remarks(GOOD + documents, tokenizer)
    assert any(re.match(message, remark) for remark in found), found
    assert all(remark.endswith(".") for remark in found)


def test_one_sentence_is_no_loss_where_no_b_is_random(tokenizer):
    assert remarks(GOOD + [["w1"]] * 5, tokenizer, random_next_probability=0.0) == []


def test_a_language_whose_sentences_are_not_found_is_told(tokenizer_of_any_kind):
    """Thai has no marks at the end of sentences: documents of one sentence, cut to the length of a pair."""
    english = [split_sentences("The dog sleeps. The fox runs away. It is quick.")] * 10
    thai = [split_sentences("ภาษาไทยไม่มีช่องว่าง " * 40)] * 10
    assert [len(document) for document in thai] == [1] * 10
    pairs = NextSentencePairs(english + thai, tokenizer_of_any_kind, max_length=32)
    assert any("one sentence serve as random B only: 10 of 20 documents" in remark for remark in pairs.remarks)
    assert any("longer than a pair of 32 tokens are cut: 10 of" in remark for remark in pairs.remarks)


def test_characters_that_a_vocabulary_has_not_are_told(tokenizer):
    assert any("tokenizer does not know" in remark for remark in remarks([LANGUAGES[:4], LANGUAGES[4:]], tokenizer))
