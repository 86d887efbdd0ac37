"""Scores of answers to questions, as SQuAD's own script gives them: exact match, and F1 of words in common."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized_answer(text: str) -> str:
    """Return an answer without what does not count: case, ASCII punctuation, articles, blanks (Rajpurkar 2016).

    Args:
        text: As a person or a model gave it.

    Returns:
        Words with one blank between them.

    Examples:
        >>> normalized_answer("The  Eiffel-Tower!")
        'eiffeltower'
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of a predicted answer, the best over all right answers.

    Args:
        predicted: Empty to say that there is no answer.
        answers: The right ones, which count alike; none for a question without an answer.

    Returns:
        Exact match (0 or 1) and F1 (0 to 1).

    Examples:
        >>> answer_scores("the old king", ["old king", "the king"])
        (1.0, 1.0)
        >>> answer_scores("a king", [])
        (0.0, 0.0)
    """
    # an answer of nothing but articles and punctuation is left out where there is another, as in SQuAD 2.0's script
    right = [words for words in map(normalized_answer, answers) if words] or [""]
    guess = normalized_answer(predicted)
    return float(guess in right), max(_f1(guess.split(), words.split()) for words in right)


def _f1(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))
