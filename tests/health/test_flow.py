"""What flows through a model: changed outputs are named, and models of every kind are silent."""

from collections.abc import Callable

import pytest
import torch
from healthy_models import HEALTHY_MODELS, gpt2, healthy_loop, llama, quiet
from plain_loop import Loop, batches, classifier, masked_lm, masked_words, sentences_to_continue
from torch import nn

from bert_toolkit.health.module_identity import MOST_MODULES, ModuleIdentity


@pytest.fixture(autouse=True)
def one_thread():
    with quiet():
        yield


@pytest.mark.parametrize("name", HEALTHY_MODELS)
def test_healthy_models_are_silent(name):
    assert healthy_loop(name).rules() == set()


def hooked(model: nn.Module, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A model in which a hook changes what the modules named `part` return."""
    for name, module in model.named_modules():
        if name.endswith(part):
            module.register_forward_hook(lambda module, args, output: change(output))
    return model


def replaced(model: nn.Module, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A model in which a function stands in the place of `forward`."""
    for name, module in model.named_modules():
        if name.endswith(part):
            module.forward = lambda *args, forward=module.forward: change(forward(*args))
    return model


def noised(output: torch.Tensor) -> torch.Tensor:
    return output + 0.02 * torch.randn_like(output)


def words(model: nn.Module) -> Loop:
    return Loop(model, batches(masked_words))


def sentences(model: nn.Module) -> Loop:
    return Loop(model, batches(sentences_to_continue))


def dropped_again(output: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(output, 0.3)


CHANGED = "module_output_changed"
FAULTS: dict[str, tuple[str, int, Callable[[], Loop]]] = {
    # what is wrong: (rule, latest sample at which it must be named, loop)
    "query_doubled": (CHANGED, 1, lambda: Loop(hooked(classifier(), "query", lambda x: 2 * x))),
    "dense_zeroed": (CHANGED, 1, lambda: Loop(replaced(classifier(), "output.dense", torch.zeros_like))),
    "head_rolled": (CHANGED, 1, lambda: Loop(replaced(classifier(), "classifier", lambda x: x.roll(1, -1)))),
    "norm_halved": (CHANGED, 1, lambda: Loop(replaced(classifier(), "LayerNorm", lambda x: x / 2))),
    "norm_noised": (CHANGED, 1, lambda: Loop(hooked(classifier(), "LayerNorm", noised))),
    "dropout_twice": (CHANGED, 1, lambda: Loop(hooked(classifier(), "dropout", dropped_again))),
    "no_positions": (CHANGED, 1, lambda: words(replaced(masked_lm(), "position_embeddings", torch.zeros_like))),
    "conv1d_doubled": (CHANGED, 1, lambda: sentences(hooked(gpt2(), "c_fc", lambda x: 2 * x))),
    "rms_norm_shifted": (CHANGED, 1, lambda: sentences(hooked(llama(), "input_layernorm", lambda x: x + 0.5))),
    "zeroed_later": (CHANGED, 8, lambda: Loop(before_forward=zeroes_at_step_5)),
}


def zeroes_at_step_5(loop: Loop, step: int) -> None:
    if step == 5:
        hooked(loop.model, "layer.1.intermediate.dense", torch.zeros_like)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_named(name):
    rule, latest, make = FAULTS[name]
    loop = make()
    loop.steps = max(latest, 2)
    judge = loop.run().judge
    found = {finding.rule: judge.cases[finding.rule].samples for finding in judge.findings}
    assert set(found) == {rule}
    assert found[rule] <= latest


def test_changed_output_says_where_and_how():
    loop = FAULTS["query_doubled"][2]()
    loop.steps = 1
    (finding,) = loop.run().judge.findings
    assert finding.parameters[0] == "bert.encoder.layer.0.attention.self.query.weight"
    assert all(".query." in name for name in finding.parameters)
    assert "2 times the right value" in finding.seen


def test_tied_head_is_named_by_the_weight_that_it_shares():
    (finding,) = (
        Loop(replaced(gpt2(), "lm_head", lambda x: x / 2), batches(sentences_to_continue), 2).run().judge.findings
    )
    assert finding.parameters == ("transformer.wte.weight",)
    assert "first lm_head: 0.5 times" in finding.seen


def test_noise_on_embeddings_alone_is_a_note():
    loop = Loop(hooked(gpt2(), "wte", lambda x: x + 0.01 * torch.rand_like(x)), batches(sentences_to_continue), 2)
    judge = loop.run().judge
    assert judge.cases[CHANGED].finding.severity == "note"
    assert judge.findings == []


def test_watched_modules_cover_every_kind_of_a_layer():
    model = classifier(num_hidden_layers=12)
    identity = ModuleIdentity(model)
    assert len(identity.places["identity_error"]) <= MOST_MODULES
    for layer in (0, 5, 11):
        kinds = {n.split(f"layer.{layer}.")[1] for n in identity.places["identity_error"] if f"layer.{layer}." in n}
        assert {"attention.self.query", "intermediate.dense", "output.dense", "output.LayerNorm"} <= kinds


def test_nothing_of_the_watch_stays():
    loop = Loop(steps=2)
    loop.run()
    assert all(not module._forward_hooks for module in loop.model.modules())
