"""Every optimizer that `TrainingArguments(optim=...)` knows and that runs on a CPU here."""

import pytest
from transformers.training_args import OptimizerNames
from watched_program import check_bit_equal, run

from benchmarks.fault_injection.healthy_programs.language_models import causal, llama
from benchmarks.fault_injection.healthy_programs.program import Ready, Setup, arguments

QUICK = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd"}
# These step inside the backward pass, where tests/callbacks/test_steps_inside_backward.py compares them with float64.
INSIDE_BACKWARD = {"lomo", "adalomo", "galore_adamw_layerwise", "galore_adafactor_layerwise", "apollo_adamw_layerwise"}
RATES = {"sgd": 0.1, "lomo": 1e-2, "adalomo": 1e-3, "schedule_free_sgd": 0.1, "adagrad": 1e-2}
TARGETS = {
    "optim_target_modules": ["attn", "mlp"],
    "optim_args": "rank=4, update_proj_gap=2, scale=0.1",
}
APOLLO = {"optim_target_modules": ["attn", "mlp"], "optim_args": "proj=random,rank=4,scale=1.0,scale_type=channel"}


def build(optim: str):
    def training(setup: Setup) -> Ready:
        settings = arguments(setup, 4, RATES.get(optim, 1e-3), optim=optim)
        if "galore" in optim:
            settings |= TARGETS
        if "apollo" in optim:
            settings |= APOLLO
        if "lomo" in optim or "layerwise" in optim:
            settings |= {"max_grad_norm": 0.0}
        return causal(setup, llama(num_hidden_layers=2), settings)

    return training


@pytest.mark.parametrize(
    "optim",
    [pytest.param(name.value, marks=() if name.value in QUICK else pytest.mark.foreign) for name in OptimizerNames],
)
@pytest.mark.filterwarnings("ignore")
def test_optimizer(optim, tmp_path):
    try:
        alone = run(build(optim), tmp_path / "alone", None)
    except Exception as error:  # not here: another package or another device
        pytest.skip(f"does not train without monitoring either: {type(error).__name__}: {str(error)[:200]}")
    outcome = run(build(optim), tmp_path / "watched", "callbacks")
    check_bit_equal(alone, outcome)
    (watched,) = outcome.watched
    watched.check_silence()
    assert not outcome.complaints
    if optim in INSIDE_BACKWARD:
        assert all(record.max.any() for record in watched.flow.records)
        assert any(record.update_norm.any() for record in watched.updates.records)  # LOMO warms up from a rate of 0
    else:
        watched.check()


def test_thirty_of_them_are_tried():
    assert len(OptimizerNames) >= 30
