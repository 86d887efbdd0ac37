"""Every program of the catalogue trains bit-equally when it is watched, with exact values and without an error."""

import pytest
from watched_program import check_bit_equal, run

from benchmarks.fault_injection.healthy_programs.catalogue import PROGRAMS
from benchmarks.fault_injection.healthy_programs.program import MissingError

QUICK = {
    "accelerated_loop",
    "adversarial_pair",
    "alternating_tasks",
    "bf16_autocast",
    "bidirectional_lstm_last_step",
    "closure_of_lbfgs",
    "convnet_with_batch_norm",
    "gpt2_accumulated",
    "mixtral",
    "normalized_weights",
    "reward_model",
    "t5",
    "vit",
}
HOW = {name: ("watch", "callbacks")[number % 2] for number, name in enumerate(PROGRAMS)}
HOW["setfit"] = "callbacks"  # its trainer is none of transformers'
# Its gradients arise inside the optimizer's step, after the oracle has looked; test_loops.py compares such values.
INSIDE_THE_STEP = {"closure_of_lbfgs"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.foreign) for name in PROGRAMS]
)
@pytest.mark.filterwarnings("ignore")
def test_program(name, tmp_path):
    program = PROGRAMS[name]
    try:
        alone = run(program, tmp_path / "alone", None)
    except MissingError as error:
        pytest.skip(str(error))
    outcome = run(program, tmp_path / "watched", HOW[name])
    check_bit_equal(alone, outcome)
    assert outcome.watched, "nothing was watched"
    assert not outcome.complaints
    for watched in outcome.watched:
        if name not in INSIDE_THE_STEP:
            watched.check()
        watched.check_silence()


def test_there_are_enough():
    assert len(PROGRAMS) >= 63
