"""Entities and their scores, against seqeval where it is installed, and against cases counted by hand."""

import random

import pytest

from bert_toolkit.metrics.entity_scores import entities_of, entity_scores

RANDOM = random.Random(0)


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-PER B-PER", [("PER", 0, 2), ("PER", 2, 3)]),  # IOB1
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # an I of another type begins one
        ("B-PER E-PER S-PER S-LOC", [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4)]),
        ("B-PER I-PER L-PER U-LOC U-LOC", [("PER", 0, 3), ("LOC", 3, 4), ("LOC", 4, 5)]),
        ("B-sub-type I-sub-type", [("sub-type", 0, 2)]),
        ("", []),
    ],
)
def test_entities_counted_by_hand(tags, entities):
    assert entities_of(tags.split()) == entities


def random_tags(prefixes, sentences=300):
    tags = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC", "ORG"))]
    return [[RANDOM.choice(tags) for _ in range(RANDOM.randint(1, 12))] for _ in range(sentences)]


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_scores_equal_those_of_seqeval(prefixes):
    seqeval = pytest.importorskip("seqeval.metrics")
    labels, predicted = random_tags(prefixes), []
    for sentence in labels:
        predicted.append(
            [tag if RANDOM.random() < 0.7 else RANDOM.choice(["O", "B-PER", "I-LOC"]) for tag in sentence]
        )
    together, by_type = entity_scores(labels, predicted)
    assert together == pytest.approx(
        {
            "entity_precision": seqeval.precision_score(labels, predicted),
            "entity_recall": seqeval.recall_score(labels, predicted),
            "entity_f1": seqeval.f1_score(labels, predicted),
        }
    )
    expected = seqeval.classification_report(labels, predicted, output_dict=True)
    for kind, scores in by_type.items():
        assert scores["f1"] == pytest.approx(expected[kind]["f1-score"])
        assert scores["rows"] == expected[kind]["support"]


def test_nothing_found_and_nothing_there_is_zero():
    assert entity_scores([["O"]], [["O"]]) == (
        {"entity_precision": 0.0, "entity_recall": 0.0, "entity_f1": 0.0},
        {},
    )
    together, by_type = entity_scores([["B-A", "O"]], [["O", "B-B"]])
    assert together["entity_f1"] == 0.0 and set(by_type) == {"A", "B"}
