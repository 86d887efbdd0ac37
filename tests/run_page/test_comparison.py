"""Where the numbers of two runs part."""

import math

import pytest

from bert_toolkit.run_page.comparison import parting

SAME = [(1, 2.0), (2, 1.5), (3, 1.0)]


@pytest.mark.parametrize(
    ("other", "first", "clearly"),
    [
        (SAME, None, None),
        ([(1, 2.0), (2, 1.5), (3, 1.0000001)], 3, None),
        ([(1, 2.0), (2, 1.501), (3, 1.02)], 2, 3),
        ([(1, 2.0), (2, math.nan), (3, 1.0)], 2, 2),
        ([(1, 2.0), (3, 1.0)], None, None),
        ([(4, 1.0)], None, None),
    ],
    ids=["same", "hardly", "first hardly, then clearly", "NaN", "a step that one lacks", "no step in common"],
)
def test_parting(other, first, clearly):
    found = parting("loss", SAME, other)
    assert (found.first, found.clearly) == (first, clearly)
    assert found.compared == len({step for step, _ in SAME} & {step for step, _ in other})
    assert (found.values is None) == (first is None)


def test_nan_equals_nan():
    assert parting("loss", [(1, math.nan)], [(1, math.nan)]).first is None
