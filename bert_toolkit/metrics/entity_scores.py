"""Scores of entities in tagged sentences: an entity counts where its type, first and last word are all right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]
"""Type, first word, and the word after the last."""


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Return the entities that tags mark, read leniently as `conlleval` does.

    A tag continues the entity before it if it has the same type and is inside (`I`) or ends it (`E`, `L`). Everything
    else begins one: `B`, `S` and `U`, and an `I` or `E` after another type or outside. So BIO, IOB1, BIOES and BILOU
    are read alike.

    Args:
        tags: Of one sentence: `O`, or a prefix, `-` and a type.

    Returns:
        The entities, in order.

    Examples:
        >>> entities_of(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
        [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    found: list[Entity] = []
    open_type, begin, ended = "", 0, True
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        continues = not ended and kind == open_type and prefix in ("I", "E", "L", "M")
        if open_type and not continues:
            found.append((open_type, begin, place))
            open_type = ""
        if prefix != "O" and not continues:
            open_type, begin = kind, place
        ended = prefix in ("E", "L", "S", "U", "O")
    return found


def entity_scores(
    labels: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return precision, recall and F1 of entities, all together and by type; 0 where undefined.

    Args:
        labels: True tags of each sentence.
        predicted: Predicted tags of each sentence.

    Returns:
        `entity_precision`, `entity_recall` and `entity_f1` over all entities (micro average), and by type `precision`,
        `recall`, `f1` and `rows`, the number of true entities.
    """
    true_of, predicted_of, right_of = Counter[str](), Counter[str](), Counter[str]()
    for of_labels, of_predicted in zip(labels, predicted, strict=True):
        true, guessed = set(entities_of(of_labels)), set(entities_of(of_predicted))
        true_of.update(kind for kind, _, _ in true)
        predicted_of.update(kind for kind, _, _ in guessed)
        right_of.update(kind for kind, _, _ in true & guessed)
    by_type = {
        kind: {**_scores(right_of[kind], predicted_of[kind], true_of[kind]), "rows": float(true_of[kind])}
        for kind in sorted({*true_of, *predicted_of})
    }
    together = _scores(right_of.total(), predicted_of.total(), true_of.total())
    return {f"entity_{name}": value for name, value in together.items()}, by_type


def _scores(right: int, predicted: int, true: int) -> dict[str, float]:
    precision = right / predicted if predicted else 0.0
    recall = right / true if true else 0.0
    f1 = 2 * right / (predicted + true) if predicted + true else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
