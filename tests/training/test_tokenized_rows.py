"""Texts become the tokens that the tokenizer gives, and only those that are needed."""

from dataclasses import replace

import datasets
import pytest
from transformers import AutoTokenizer, CanineTokenizer

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.training.tokenized_rows import tokenize_corpus, tokenize_texts


def test_second_text_has_token_type_one(tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    rows = {"text": ["the dog", "a cat runs today ."], "text_pair": ["a cat", "my friend laughs"]}
    encoded = tokenize_texts(rows, tokenizer, ["text", "text_pair"], max_length=8)
    assert encoded["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer.decode(encoded["input_ids"][0]) == "[CLS] the dog [SEP] a cat [SEP]"
    assert encoded["length"] == [7, 8]
    assert encoded["truncated"] == [False, True]


@pytest.mark.parametrize("columns", [["text"], ["text", "text_pair"]])
def test_tokenizer_in_python_says_what_it_cut(columns):
    rows = {"text": ["abcd", "abcde", "abcdef", "a"], "text_pair": ["x", "", "xyz", "x" * 30]}
    encoded = tokenize_texts(rows, CanineTokenizer(), columns, max_length=7 + (len(columns) == 2))
    whole = CanineTokenizer()(*(rows[column] for column in columns))
    expected = [len(ids) > 7 + (len(columns) == 2) for ids in whole["input_ids"]]
    assert encoded["truncated"] == expected and True in expected and False in expected
    assert encoded["length"] == [len(ids) for ids in encoded["input_ids"]]


def test_tokenizer_in_python_may_cut_nothing():
    encoded = tokenize_texts({"text": ["abcd", "a"]}, CanineTokenizer(), ["text"], max_length=20)
    assert encoded["truncated"] == [False, False]
    assert encoded["length"] == [6, 3]


@pytest.fixture
def corpus():
    texts = [f"the dog {'runs ' * (i % 3)}{i}" for i in range(30)]
    train, held_out = (datasets.Dataset.from_dict({"text": texts, "label": list(range(30))}) for _ in range(2))
    return CorpusSplits(train, held_out, held_out, [str(i) for i in range(30)], "text", "made here")


def test_rows_that_are_not_trained_on_are_not_tokenized(corpus, tiny_bert_dir):
    class Counting:
        is_fast, seen = True, 0

        def __init__(self):
            self.tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)

        def __call__(self, texts, **settings):
            Counting.seen += len(texts)
            return self.tokenizer(texts, **settings)

    few = tokenize_corpus(corpus, Counting(), 16, seed=3, max_train_samples=4)
    assert len(few.train) == 4
    assert Counting.seen == 4 + 30, "the training rows once, the shared validation and test rows once"
    assert few.test is few.validation
    whole = tokenize_corpus(corpus, AutoTokenizer.from_pretrained(tiny_bert_dir), 16, seed=3)
    expected = whole.train.shuffle(seed=3).select(range(4))
    assert few.train[:] == expected[:], "the rows that were the first four before"


def test_more_rows_than_there_are_is_all(corpus, tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    assert len(tokenize_corpus(corpus, tokenizer, 16, seed=3, max_train_samples=1000).train) == 30


@pytest.mark.parametrize(("text", "share"), [("the dog 日本 語", "42.9%"), ("the dog sleeps today . x", "12.5%")])
def test_text_that_the_tokenizer_does_not_know_is_told(corpus, tiny_bert_dir, text, share):
    """A text in another language would be one unknown token after another, and every text the same."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    rows = datasets.Dataset.from_dict({"text": [text] * 10, "label": list(range(10))})
    tokens = tokenizer(text)["input_ids"]
    assert f"{tokens.count(tokenizer.unk_token_id) / len(tokens):.1%}" == share
    (remark,) = tokenize_corpus(replace(corpus, train=rows), tokenizer, 16, seed=3).remarks
    assert remark.startswith(f"The tokenizer does not know the text of {share} of the tokens: check that model and")
    known = datasets.Dataset.from_dict({"text": ["the dog sleeps today ."] * 10, "label": list(range(10))})
    assert tokenize_corpus(replace(corpus, train=known), tokenizer, 16, seed=3).remarks == []
