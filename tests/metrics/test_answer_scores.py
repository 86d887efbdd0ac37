"""Scores of answers against torchmetrics, published values, SQuAD 2.0's definition, and cases counted by hand."""

import random
import string
from fractions import Fraction

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


WORDS = [
    "the",
    "a",
    "An",
    "king",
    "King's",
    "old",
    "U.S.",
    "1,976",
    "Beyoncé",
    "theatre",
    "x-ray",
    "—",
    "‘so’",
    "\u00a0",
    "...",
]


def random_answer(generator, least=1):
    """Words with articles, punctuation, doubled blanks and another case."""
    words = [generator.choice(WORDS) for _ in range(generator.randint(least, 6))]
    text = generator.choice(["", " "]).join(
        [generator.choice([" ", "  ", "\t"]).join(words), generator.choice(["", "!"])]
    )
    return generator.choice([str, str.upper, str.lower])(text)


def random_cases(seed, count=400):
    generator = random.Random(seed)
    for _ in range(count):
        answers = [random_answer(generator) for _ in range(generator.randint(1, 3))]
        predicted = generator.choice(
            [generator.choice(answers), random_answer(generator, 0), generator.choice(answers) + " old"]
        )
        yield predicted, answers


def test_scores_equal_those_of_torchmetrics():
    """SQuAD 1.1, where every question has an answer with words."""
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    seen = set()
    for predicted, answers in random_cases(0):
        answers = [*answers, "king"] if not all(map(normalized_answer, answers)) else answers
        answers = [answer for answer in answers if normalized_answer(answer)]
        target = [{"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "1"}]
        expected = squad([{"prediction_text": predicted, "id": "1"}], target)
        exact, f1 = answer_scores(predicted, answers)
        assert (100 * exact, 100 * f1) == pytest.approx(
            (float(expected["exact_match"]), float(expected["f1"])), abs=1e-4
        )
        seen.add("exact" if exact else "part" if f1 else "nothing")
    assert seen == {"exact", "part", "nothing"}


def as_squad_2_defines(predicted, answers):
    """Written from the definition, word by word and in fractions: nothing of the package is used."""

    def words(text):
        kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        found, word = [], ""
        for letter in kept + " ":
            # an article is one between characters that belong to no word, as a dash that is not ASCII
            if letter == "_" or letter.isalnum():
                word += letter
                continue
            found += [word] if word not in ("a", "an", "the", "") else [" "] if word else []
            found += [letter]
            word = ""
        return "".join(found).split()

    best = (0, Fraction(0))
    right = [words(answer) for answer in answers if words(answer)] or [[]]
    for of_answer in right:
        guess, left, common = words(predicted), list(of_answer), 0
        for word in guess:
            if word in left:
                left.remove(word)
                common += 1
        if not guess or not of_answer:
            f1 = Fraction(guess == of_answer)
        elif common == 0:
            f1 = Fraction(0)
        else:
            precision, recall = Fraction(common, len(guess)), Fraction(common, len(of_answer))
            f1 = 2 * precision * recall / (precision + recall)
        best = (max(best[0], int(guess == of_answer)), max(best[1], f1))
    return best


def test_scores_equal_squad_2s_definition_with_questions_that_have_no_answer():
    without = 0
    for predicted, answers in random_cases(1, 2000):
        for right in (answers, []):
            exact, f1 = as_squad_2_defines(predicted, right)
            assert answer_scores(predicted, right) == (exact, pytest.approx(float(f1), abs=1e-12)), (predicted, right)
            without += not right and exact
    assert without > 20, "predictions without words answer questions that have no answer"


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [  # the examples on the metric cards of `squad` and `squad_v2` on the hub, in per cent
        (["1976"], ["1976"], 100, 100),
        (["1999"], ["1976"], 0, 0),
        (
            ["1976", "Beyonce", "climate change"],
            ["1976", "Beyoncé and Bruno Mars", "climate change"],
            200 / 3,
            200 / 3,
        ),
    ],
)
def test_published_values(predicted, answers, exact, f1):
    scores = [answer_scores(given, [right]) for given, right in zip(predicted, answers, strict=True)]
    means = [100 * sum(column) / len(scores) for column in zip(*scores, strict=True)]
    assert means == pytest.approx([exact, f1])
