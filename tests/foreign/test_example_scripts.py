"""transformers' example scripts train bit-equally when they are watched, with exact values and without an error."""

import pytest
from example_scripts import SCRIPTS
from watched_program import check_bit_equal, run


@pytest.mark.foreign
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["callbacks", "watch"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name, how, tmp_path):
    alone = run(SCRIPTS[name], tmp_path / "alone", None)
    outcome = run(SCRIPTS[name], tmp_path / "watched", how)
    check_bit_equal(alone, outcome)
    assert not outcome.complaints
    (watched,) = outcome.watched
    watched.check()
    watched.check_clipping(1.0)
    watched.check_silence()
    assert len(watched.health.history.evaluations) >= 2
    saved = tmp_path / "watched" / "output"
    assert {"model.safetensors", "trainer_state.json", "all_results.json"} <= {path.name for path in saved.iterdir()}


@pytest.mark.foreign
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_in_full(name, tmp_path):
    """At its own length the script learns, and training health finds no error."""
    outcome = run(SCRIPTS[name], tmp_path, "callbacks", steps=None)
    assert outcome.ready.score().healthy
    outcome.watched[0].check_silence()
