"""The pictures of the page on training health are of rules that there are."""

from benchmarks.fault_injection.pictures import PICTURES
from bert_toolkit.health.rules import RULES


def test_every_picture_is_of_a_rule():
    assert set(PICTURES) <= {rule.name for rule in RULES}
