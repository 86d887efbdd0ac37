"""Choices and word forms for the sample grammar."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Option = TypeVar("Option")


class Draw:
    """Choices that follow from a key alone, so that they are equal on every machine and every Python.

    Args:
        key: Anything with a stable text form; each further choice is a function of the key and of its number.
    """

    def __init__(self, *key: object) -> None:
        """Begins with the first choice."""
        self._key = "/".join(map(str, key))
        self._choices = 0

    def __call__(self, options: Sequence[Option]) -> Option:
        """One of the options."""
        digest = hashlib.sha256(f"{self._key}/{self._choices}".encode()).digest()
        self._choices += 1
        return options[int.from_bytes(digest[:8], "big") % len(options)]

    def two(self, options: Sequence[Option]) -> tuple[Option, Option]:
        """Two different options."""
        first = self(options)
        return first, self([option for option in options if option != first])

    def chance(self, numerator: int, denominator: int) -> bool:
        """True in `numerator` of `denominator` draws."""
        return self(range(denominator)) < numerator


class Verb(NamedTuple):
    """Forms of a verb."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str

    def present(self, plural: bool) -> str:
        """The form for a plural or a singular subject."""
        return self.base if plural else self.third


class Noun(NamedTuple):
    """Forms of a noun."""

    singular: str
    plural: str

    def form(self, plural: bool) -> str:
        """Plural or singular."""
        return self.plural if plural else self.singular


class Action(NamedTuple):
    """What a person can do to a thing: the objects are phrases with their article."""

    verb: Verb
    objects: list[str]


def inflect(forms: str) -> Verb:
    """From all five forms, or from a regular base: `steal steals stole stolen stealing`, `paint`, `carry`, `bake`."""
    words = forms.split()
    if len(words) == 5:
        return Verb(*words)
    (base,) = words
    stem = base.removesuffix("e")
    if base.endswith("y") and base[-2] not in "aeou":
        return Verb(base, base[:-1] + "ies", base[:-1] + "ied", base[:-1] + "ied", base + "ing")
    third = base + ("es" if base.endswith(("sh", "ch", "s", "x", "z")) else "s")
    return Verb(base, third, stem + "ed", stem + "ed", stem + "ing")


def action(entry: str) -> Action:
    """From `forms: object, object`."""
    forms, objects = entry.split(": ")
    return Action(inflect(forms), objects.split(", "))


def nouns(entry: str) -> list[Noun]:
    """From words separated by commas; an irregular plural follows a slash: `teacher, child/children`."""
    pairs = (word.partition("/") for word in entry.split(", "))
    return [Noun(singular, plural or regular_plural(singular)) for singular, _, plural in pairs]


def regular_plural(noun: str) -> str:
    """`box, boxes`; `city, cities`; `lamp, lamps`."""
    if noun.endswith("y") and noun[-2] not in "aeou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("sh", "ch", "s", "x", "z")) else "s")


def words(entry: str) -> list[str]:
    """Phrases separated by commas."""
    return entry.split(", ")


def with_article(phrase: str) -> str:
    """`an apple`, `a pear`."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
