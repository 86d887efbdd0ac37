"""Where the numbers of two runs part."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from bert_toolkit.health.settings import GroupSettings, RunSettings
from bert_toolkit.run_page.comparison import NAMES, differing_settings, parting
from bert_toolkit.run_page.run_files import RunFiles

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


def test_what_was_seen_of_optimizer_and_model_has_names_for_people():
    groups = (GroupSettings({"lr": 0.1}, 20), GroupSettings({"lr": 0.2}, 4))
    seen = RunSettings("AdamW", groups, norm_eps={"norm": 1e-5}, config={"hidden_size": 8}, label_smoothing=0.1)
    run = RunFiles(Path("a"), seen=json.loads(json.dumps(seen.as_json())))
    shown = {name: value for name, (value, _) in differing_settings(run, RunFiles(Path("b"))).items()}
    assert shown["parameter group 1: lr"] == "0.1" and shown["parameter group 2: parameters"] == "4"
    assert shown["epsilon of norm"] == "1e-05" and shown["model config: hidden_size"] == "8"
    assert shown["optimizer"] == "AdamW" and shown["label_smoothing"] == "0.1", "named as Trainer's arguments are"
    assert set(NAMES) <= {field.name for field in dataclasses.fields(RunSettings)}
