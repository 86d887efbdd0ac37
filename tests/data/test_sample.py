"""The bundled sample: reproducible, balanced, without leaks, and neither trivial nor impossible to learn."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import in_domain_pairs
import out_of_domain_pairs
import pytest
from drawing import Draw, inflect, nouns, regular_plural, with_article
from grammar import write_sample
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from bert_toolkit.data import sample
from bert_toolkit.data.cola import SAMPLE_DIR, load_cola
from bert_toolkit.metrics import matthews_correlation

GRAMMAR = Path(__file__).parents[2] / "tools" / "sample" / "grammar.py"
FILES = ("in_domain_train.tsv", "in_domain_dev.tsv", "out_of_domain_dev.tsv")

# Any English text needs these: articles, pronouns, auxiliaries, prepositions, conjunctions, question words
CLOSED_CLASS = {
    *("a", "an", "the", "this", "that", "these", "those", "both", "either", "neither"),
    *("i", "you", "he", "she", "it", "we", "they", "him", "her", "us", "them", "my", "his", "our"),
    *(
        "nobody",
        "somebody",
        "anybody",
        "there",
        "what",
        "which",
        "who",
        "whom",
        "whose",
        "when",
        "where",
        "why",
        "how",
    ),
    *("is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "do", "does", "did"),
    *("will", "would", "can", "could", "might", "must", "should", "not"),
    *("at", "by", "for", "from", "in", "into", "of", "off", "on", "onto", "out", "over", "to", "under", "up", "down"),
    *("with", "within", "without", "and", "or", "nor", "but", "so", "as", "if", "because", "before", "after", "until"),
    *("than", "too"),
}


def words(sentences: list[str]) -> set[str]:
    return {word for sentence in sentences for word in re.findall(r"[a-z']+", sentence.lower())}


@pytest.fixture(scope="module")
def corpus():
    return load_cola("sample")


@pytest.fixture(scope="module")
def splits(corpus):
    return {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}


def test_generator_writes_the_bundled_bytes(tmp_path):
    """In a process of its own, as people run it, with another hash seed."""
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    command = [sys.executable, str(GRAMMAR), str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (SAMPLE_DIR / name).read_bytes()


@pytest.fixture(scope="module", params=["bundled", 1, 2])
def folder(request, tmp_path_factory):
    """The bundled files, and what other seeds write: the guarantees are the grammar's, not a lucky draw's."""
    if request.param == "bundled":
        return SAMPLE_DIR
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, seed=request.param)
    return folder


class TestGuarantees:
    @pytest.fixture
    def splits(self, folder):
        corpus = load_cola(data_dir=folder)
        return {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}

    def test_size_and_balance(self, splits):
        sizes = {name: len(split) for name, split in splits.items()}
        assert sizes == {"train": 1440, "validation": 300, "test": 280}
        for split in splits.values():
            assert Counter(split["label"][:]) == {0: len(split) // 2, 1: len(split) // 2}

    def test_no_sentence_twice_in_or_across_files(self, splits):
        everything = [sentence.lower() for split in splits.values() for sentence in split["sentence"][:]]
        assert len(set(everything)) == len(everything)

    def test_phenomena(self, splits):
        sources = {name: Counter(split["source"][:]) for name, split in splits.items()}
        assert len(sources["train"]) >= 15
        assert set(sources["train"]) == set(sources["validation"])
        assert not set(sources["train"]) & set(sources["test"])
        assert len(sources["test"]) >= 6
        assert {len(set(counts.values())) for counts in sources.values()} == {1}  # all equally often

    def test_out_of_domain_shares_only_closed_class_words(self, splits):
        in_domain = words(splits["train"]["sentence"][:] + splits["validation"]["sentence"][:])
        shared = in_domain & words(splits["test"]["sentence"][:])
        assert shared - CLOSED_CLASS == set()
        for sentence in splits["test"]["sentence"][:]:
            assert len(words([sentence]) - in_domain) >= 2

    def test_in_domain_dev_has_the_words_of_train(self, splits):
        """New sentences of known words."""
        train, dev = (words(splits[name]["sentence"][:]) for name in ("train", "validation"))
        assert len(dev - train) / len(dev) < 0.08

    def test_minimal_pairs(self, splits):
        for split in splits.values():
            sentences, labels, sources = (split[name][:] for name in ("sentence", "label", "source"))
            assert labels == [1, 0] * (len(labels) // 2)
            for good, bad, source in zip(sentences[::2], sentences[1::2], sources[::2], strict=True):
                known, other = Counter(good.lower().split()), Counter(bad.lower().split())
                assert (known & other).total() >= 0.4 * max(known.total(), other.total()), (source, good, bad)

    def test_spelling(self, splits):
        for split in splits.values():
            for sentence in split["sentence"][:]:
                assert re.fullmatch(r"[A-Z][A-Za-z0-9', ]*[a-z0-9'][.?]", sentence), sentence
                assert "  " not in sentence
                assert not re.search(r"\b[Aa] [aeio]", sentence), sentence
                assert not re.search(r"\b[Aa]n [^aeiou]", sentence), sentence
                assert not re.search(r"\b(\w+) \1\b", sentence.replace("that that", "")), sentence


def test_the_two_grammars_share_only_closed_class_words():
    """Whatever seed: the words of 300 pairs of each phenomenon, many times what a file draws."""
    of_grammar = [
        words([text for phenomenon in grammar.PHENOMENA for n in range(300) for text in phenomenon(Draw("words", n))])
        for grammar in (in_domain_pairs, out_of_domain_pairs)
    ]
    assert (of_grammar[0] & of_grammar[1]) - CLOSED_CLASS == set()


def test_a_constant_guess_scores_zero_and_word_sequences_score_little(corpus):
    """A logistic regression on 1- to 3-grams picks up something in domain and nothing out of it."""
    vectorizer = CountVectorizer(ngram_range=(1, 3), token_pattern=r"[\w']+|[?.,]")
    model = LogisticRegression(C=10, max_iter=2000)
    model.fit(vectorizer.fit_transform(corpus.train["sentence"][:]), corpus.train["label"][:])
    scores = {}
    for name, split in (("in-domain", corpus.validation), ("out-of-domain", corpus.test)):
        assert matthews_correlation([1] * len(split), split["label"][:]) == 0.0
        predicted = model.predict(vectorizer.transform(split["sentence"][:]))
        scores[name] = matthews_correlation(predicted, split["label"][:])
    assert 0.2 < scores["in-domain"] < 0.5
    assert abs(scores["out-of-domain"]) < 0.15


def test_package_data_is_found_beside_the_code():
    assert {path.name for path in Path(sample.__file__).parent.glob("*.tsv")} == set(FILES)


class TestDrawing:
    def test_choices_follow_from_the_key(self):
        first, second = Draw(1, "key"), Draw(1, "key")
        options = list(range(1000))
        assert [first(options) for _ in range(20)] == [second(options) for _ in range(20)]
        assert Draw(1, "key")(options) != Draw(2, "key")(options)

    def test_choices_are_even(self):
        draw = Draw("even")
        counts = Counter(draw("abcd") for _ in range(4000))
        assert all(abs(count - 1000) < 5 * 27.4 for count in counts.values())  # binomial sd sqrt(4000 * 3 / 16)

    def test_two_are_different(self):
        draw = Draw("two")
        assert all(len({*draw.two("ab")}) == 2 for _ in range(20))

    @pytest.mark.parametrize(
        "base, forms",
        [
            ("paint", "paint paints painted painted painting"),
            ("carry", "carry carries carried carried carrying"),
            ("play", "play plays played played playing"),
            ("bake", "bake bakes baked baked baking"),
            ("watch", "watch watches watched watched watching"),
            ("steal steals stole stolen stealing",) * 2,
        ],
    )
    def test_inflection(self, base, forms):
        assert " ".join(inflect(base)) == forms

    def test_nouns(self):
        assert [noun.plural for noun in nouns("teacher, child/children")] == ["teachers", "children"]
        assert [regular_plural(noun) for noun in ("box", "key", "story", "watch")] == [
            "boxes",
            "keys",
            "stories",
            "watches",
        ]
        assert [with_article(noun) for noun in ("apple", "pear")] == ["an apple", "a pear"]


@pytest.mark.parametrize(
    "phenomenon", [*in_domain_pairs.PHENOMENA, *out_of_domain_pairs.PHENOMENA], ids=lambda p: p.__name__
)
def test_each_phenomenon_has_many_different_pairs(phenomenon):
    pairs = [phenomenon(Draw("variety", number)) for number in range(200)]
    assert all(good != bad for good, bad in pairs)
    assert len(set(pairs)) > 100
    assert not {good for good, _ in pairs} & {bad for _, bad in pairs}
