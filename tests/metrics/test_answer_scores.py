"""Scores of answers against cases counted by hand from SQuAD's definition."""

import pytest

from bert_toolkit.metrics.answer_scores import answer_scores, normalized_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        (" \tten\n thousand ", "ten thousand"),
        ("«Die Brücke»", "«die brücke»"),
        ("the", ""),
    ],
)
def test_normalization(text, normalized):
    assert normalized_answer(text) == normalized


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("Denver Broncos", ["The Denver Broncos"], 1, 1),
        ("the Broncos of Denver", ["Denver Broncos"], 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("king king", ["king"], 0, 2 * 0.5 / 1.5),  # a word counts as often as both have it
        ("1999", ["2000", "in 1999"], 0, 2 * 0.5 / 1.5),  # the best of all
        ("", [], 1, 1),
        ("king", [], 0, 0),
        ("", ["king"], 0, 0),
        ("a", ["the", "king"], 0, 0),  # an answer without words is left out
    ],
)
def test_scores(predicted, answers, exact, f1):
    assert answer_scores(predicted, answers) == (exact, pytest.approx(f1))
