"""Weights that cannot be meant are named before the first step; those of real models are silent."""

import re
from collections.abc import Callable

import pytest
import torch
from healthy_models import HEALTHY_MODELS, gpt2, llama
from plain_loop import Loop, Tokenizer, batches, changed, classifier, masked_lm, masked_words, sentences_to_continue
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertModel,
    GemmaConfig,
    GemmaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from bert_toolkit.health.watch import HealthWatch
from bert_toolkit.health.weight_census import weight_census
from bert_toolkit.monitoring.parameter_roles import named_unique_parameters
from bert_toolkit.training.pretrained import offline_weights


def found_before_training(model: nn.Module) -> dict[str, str]:
    """Rule -> severity of what is found without a single step."""
    watch = HealthWatch(model, tokenizer=Tokenizer())
    watch.begin()
    return {case.finding.rule: case.finding.severity for case in watch.judge.cases.values() if not case.symptom_of}


def first_rows_zero(fraction: float) -> Callable[[torch.Tensor], object]:
    return lambda p: p[: round(fraction * len(p))].zero_()


def rows_like_the_first(parameter: torch.Tensor) -> None:
    parameter[1:] = parameter[0]


def relu_everywhere(model: nn.Module) -> nn.Module:
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.ReLU()
    return model


def words(model: nn.Module) -> Loop:
    return Loop(model, batches(masked_words))


def frozen(model: nn.Module, pattern: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(pattern, name) is None)
    return model


FAULTS: dict[str, tuple[str, int, Callable[[], Loop]]] = {
    # what is wrong: (rule, latest sample at which it must be named, loop)
    "values_zero": ("constant_weights", 0, lambda: Loop(changed(classifier(), r"value\.weight", nn.init.zeros_))),
    "keys_zero": ("constant_weights", 0, lambda: Loop(changed(classifier(), r"key\.weight", nn.init.zeros_))),
    "words_zero": (
        "constant_weights",
        0,
        lambda: words(changed(masked_lm(), "word_embeddings", nn.init.zeros_)),
    ),
    "feed_forward_zero": (
        "constant_weights",
        0,
        lambda: words(changed(masked_lm(), r"(intermediate|\d\.output)\.dense\.weight", nn.init.zeros_)),
    ),
    "units_alike": (
        "identical_units",
        0,
        lambda: Loop(changed(classifier(), r"(query|key|value)\.weight", rows_like_the_first)),
    ),
    "tokens_zero": ("zero_rows", 0, lambda: words(changed(masked_lm(), "word_embeddings", first_rows_zero(0.1)))),
    "units_zero": (
        "zero_rows",
        0,
        lambda: Loop(changed(classifier(), r"intermediate\.dense\.weight", first_rows_zero(0.1))),
    ),
    "inputs_zero": (
        "zero_rows",
        0,
        lambda: Loop(changed(gpt2(), r"mlp\.c_proj\.weight", first_rows_zero(0.1)), batches(sentences_to_continue)),
    ),
    "norms_doubled": (
        "norms_out_of_scale",
        0,
        lambda: Loop(changed(classifier(), r"LayerNorm\.weight", lambda p: p.mul_(2))),
    ),
    "norms_zero": ("norms_out_of_scale", 0, lambda: Loop(changed(classifier(), r"LayerNorm\.weight", nn.init.zeros_))),
    "norms_shifted": (
        "norms_out_of_scale",
        0,
        lambda: Loop(changed(classifier(), r"LayerNorm\.bias", lambda p: p.add_(0.5))),
    ),
    "feed_forward_scaled": (
        "kind_out_of_scale",
        0,
        lambda: Loop(changed(classifier(), r"output\.dense\.weight", lambda p: p.mul_(5))),
    ),
    "trained_norms_scaled": (
        "norms_out_of_scale",
        0,
        lambda: Loop(
            changed(
                changed(classifier(), r"LayerNorm\.weight", lambda p: p.add_(0.02 * torch.randn(len(p)))),
                r"LayerNorm\.weight",
                lambda p: p.mul_(2),
            )
        ),
    ),
    "segments_scaled": (
        "table_out_of_scale",
        0,
        lambda: Loop(changed(classifier(), "token_type_embeddings", lambda p: p.mul_(5))),
    ),
    "other_activation": ("activation_not_as_configured", 0, lambda: Loop(relu_everywhere(classifier()))),
    "queries_frozen": ("frozen_kind", 2, lambda: Loop(frozen(classifier(), r"\.(query|key|value)\."))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_named(name):
    rule, latest, make = FAULTS[name]
    loop = make()
    loop.steps = 3
    judge = loop.run().judge
    found = {finding.rule: judge.cases[finding.rule].samples for finding in judge.findings}
    assert set(found) == {rule}
    assert found[rule] <= latest


SILENT = {
    "queries_zero": lambda: changed(classifier(), r"query\.weight", nn.init.zeros_),  # as for maximal updates
    "branches_zero": lambda: changed(gpt2(), r"c_proj\.weight", nn.init.zeros_),
    "norms_of_branches_zero": lambda: changed(classifier(), r"\d\.output\.LayerNorm\.weight", nn.init.zeros_),
    "norm_of_one_branch_zero": lambda: changed(classifier(), r"layer\.1\.output\.LayerNorm\.weight", nn.init.zeros_),
    "one_bias_filled": lambda: changed(classifier(), r"layer\.0\.intermediate\.dense\.bias", lambda p: p.fill_(-5.0)),
    "word_vectors": lambda: changed(classifier(), "word_embeddings", lambda p: p.mul_(20)),
    "padding_zero": lambda: changed(masked_lm(), "word_embeddings", lambda p: p[0].zero_()),
    "norms_learned": lambda: changed(classifier(), "LayerNorm", lambda p: p.add_(0.3 * torch.randn(len(p)))),
    "gemma": lambda: GemmaForCausalLM(
        GemmaConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=64,
        )
    ),
    "minilm": lambda: AutoModelForSequenceClassification.from_pretrained(offline_weights()),
    "minilm_body": lambda: BertModel.from_pretrained(offline_weights()),
}


@pytest.mark.parametrize("name", SILENT)
def test_usual_weights_are_silent(name):
    assert found_before_training(SILENT[name]()) == {}


@pytest.mark.parametrize("name", HEALTHY_MODELS)
def test_healthy_models_are_silent_before_training(name):
    assert found_before_training(HEALTHY_MODELS[name][0]()) == {}


@pytest.mark.parametrize(
    "pattern", [r"\.bias$", "LayerNorm|embeddings", r"(query|key|value|attention\.output\.dense)\."]
)
def test_training_few_parts_on_purpose_is_silent(pattern):
    """Everything else is frozen: biases (BitFit), normalizations, attention."""
    loop = Loop(frozen(classifier(), f"^(?!classifier)(?!.*({pattern}))"), steps=4)
    assert loop.rules() == set()


def test_head_above_a_frozen_body_that_was_never_trained():
    found = Loop(frozen(classifier(), "^bert"), steps=4).rules()
    assert found == {"frozen_fresh_body"}
    loaded = AutoModelForSequenceClassification.from_pretrained(offline_weights(), num_labels=3)
    assert Loop(frozen(loaded.train(), "^bert"), steps=4).rules() == set()


def test_vectors_of_words_with_gaps_are_a_note():
    model = nn.ModuleDict({"words": nn.Embedding(40, 8), "head": nn.Linear(8, 2)})
    changed(model, "words", first_rows_zero(0.3))
    assert found_before_training(model) == {"zero_rows": "note"}


def test_words_without_weights_are_a_warning_whatever_a_config_calls_its_spread():
    """OPT's `init_std` is what others call `initializer_range`."""
    sizes = {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 32}
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(vocab_size=40, num_hidden_layers=2, num_attention_heads=2, **sizes))
    changed(model, "embed_tokens", first_rows_zero(0.3))
    assert found_before_training(model) == {"zero_rows": "warning"}


@pytest.mark.parametrize(
    ("pattern", "change", "severity"),
    [
        pytest.param(r"LayerNorm\.weight", lambda p: p.mul_(0.7), "warning", id="norms_reduced"),
        pytest.param(r"(query|key)\.weight", lambda p: p.copy_(p.roll(1, 1)), None, id="elements_rearranged"),
        pytest.param(r"intermediate\.dense", lambda p: p.normal_(0, 0.02), "warning", id="feed_forward_drawn_anew"),
        pytest.param("word_embeddings", lambda p: p.copy_(p.roll(5, 0)), "warning", id="words_moved"),
        pytest.param("pooler", lambda p: p.normal_(0, 0.02), "note", id="pooler_drawn_anew"),
        pytest.param("", lambda p: p.add_(0.1), None, id="all_weights_are_others"),
        pytest.param("", lambda p: p.copy_(p.bfloat16()), None, id="rounded"),
    ],
)
def test_weights_are_compared_with_their_checkpoint(tmp_path, pattern, change, severity):
    learned = changed(classifier(), "", lambda p: p.add_(0.02 * torch.randn_like(p)))
    learned.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert found_before_training(loaded) == {}
    expected = {} if severity is None else {"not_as_in_checkpoint": severity}
    assert found_before_training(changed(loaded, pattern, change)) == expected


def test_body_is_compared_with_the_checkpoint_of_a_whole_model(tmp_path):
    changed(classifier(), "", lambda p: p.add_(0.02 * torch.randn_like(p))).save_pretrained(tmp_path)
    body = BertModel.from_pretrained(tmp_path)
    assert found_before_training(body) == {}
    assert found_before_training(changed(body, "query", lambda p: p.mul_(2))) == {"not_as_in_checkpoint": "warning"}


def test_census_asks_what_normalizations_do():
    model = llama()
    changed(model, r"layers\.1\.input_layernorm", lambda p: p.fill_(0.25))
    names = tuple(name for name, _ in named_unique_parameters(model))
    census = weight_census(model, names)
    place = names.index("model.layers.1.input_layernorm.weight")
    assert census["norm_gain"][place] == pytest.approx(0.25, rel=1e-3)
    assert census["norm_gain_std"][place] == pytest.approx(0.0, abs=1e-6)
    assert census["fan_in"][names.index("model.layers.0.mlp.down_proj.weight")] == 64
