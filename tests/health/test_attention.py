"""Queries and keys: their numbers against plain formulas, faults that are named, and models that are silent."""

import math
from collections.abc import Callable

import pytest
import torch
from healthy_models import HEALTHY_MODELS, gpt2, healthy_loop, llama, quiet
from plain_loop import VOCABULARY, Loop, batches, changed, masked_words, sentences_to_continue, small_bert, texts
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertForMaskedLM,
    BertForSequenceClassification,
    Gemma2Config,
    GPTBigCodeConfig,
    Qwen3Config,
)

from bert_toolkit.health.attention_probe import AttentionProbe
from bert_toolkit.training.pretrained import offline_weights

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    with quiet():
        yield


def four_heads(**settings) -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(small_bert(num_labels=3, num_attention_heads=4, **settings)).train()


def probed(model: nn.Module, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    probe = AttentionProbe(model)
    probe.start()
    model(**inputs)
    return probe.stop(CPU)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_numbers_are_those_of_the_attention_itself(implementation):
    model = BertForMaskedLM(small_bert(num_attention_heads=4)).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight.mul_(20)
    ids = torch.randint(6, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("eager")
    # The weights that transformers' own eager attention gives, softmax included.
    weights = model(input_ids=ids, output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    facts = probed(model, input_ids=ids)
    for place, attention in enumerate(weights):
        own = attention[0].double()  # (heads, n, n)
        assert facts["attention_peak"][place] == pytest.approx(own.amax(-1).mean(-1).min().item(), rel=1e-4)
        logarithms = own.log()  # products but for a constant of each query
        contrast = logarithms.std(-1, correction=0).mean(-1).max().item()
        assert facts["attention_contrast"][place] == pytest.approx(contrast, rel=1e-3)
    hidden = model.bert.embeddings(input_ids=ids)[0].detach().double()
    attention = model.bert.encoder.layer[0].attention.self.double()
    query, key = (part(hidden).view(12, 4, 8).norm(dim=-1).mean(0) for part in (attention.query, attention.key))
    assert facts["attention_size"][0] == pytest.approx((query * key).max().item() / math.sqrt(8), rel=1e-4)


def test_one_projection_for_all_is_cut():
    model = gpt2()
    ids = torch.randint(6, VOCABULARY, (2, 12))
    attention = model.transformer.h[0].attn
    hidden = model.transformer.h[0].ln_1(model.transformer.wte(ids) + model.transformer.wpe(torch.arange(12)))
    query, key, _ = attention.c_attn(hidden[0]).detach().split(32, dim=-1)
    expected = query.view(12, 2, 16).norm(dim=-1).mean(0) * key.view(12, 2, 16).norm(dim=-1).mean(0) / 4
    model.eval()
    assert probed(model, input_ids=ids)["attention_size"][0] == pytest.approx(expected.max().item(), rel=1e-4)


def test_heads_may_share_keys():
    facts = probed(llama(), input_ids=torch.randint(6, VOCABULARY, (2, 12)))
    assert len(facts["attention_contrast"]) == 3
    assert torch.isfinite(facts["attention_contrast"]).all()
    assert torch.isnan(facts["attention_peak"]).all()  # a rotation comes after the projections


SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
UNKNOWN = {
    # Products are normalized, capped, or made by a projection whose parts have other widths.
    "qwen3": lambda: Qwen3Config(**SIZES, intermediate_size=64, num_key_value_heads=2, head_dim=8),
    "gemma2": lambda: Gemma2Config(**SIZES, intermediate_size=64, num_key_value_heads=2, head_dim=8),
    "gpt_big_code": lambda: GPTBigCodeConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, multi_query=True),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_is_told_of_other_attention(name):
    model = AutoModelForCausalLM.from_config(UNKNOWN[name]())
    assert probed(model, input_ids=torch.randint(6, VOCABULARY, (2, 12))) == {}


def test_pretrained_encoder_is_far_from_every_limit():
    model = AutoModel.from_pretrained(offline_weights())
    facts = probed(model, input_ids=torch.randint(1000, 20000, (2, 32)))
    assert facts["attention_peak"].max() < 0.6
    assert facts["attention_contrast"].max() < 30
    assert facts["heads_differ"].min() > 0.1


@pytest.mark.parametrize("name", HEALTHY_MODELS)
def test_nothing_is_left_behind(name):
    model = healthy_loop(name).model
    before = [dict(module._forward_hooks) for module in model.modules()]
    probe = AttentionProbe(model)
    probe.start()
    probe.forget()
    assert [dict(module._forward_hooks) for module in model.modules()] == before


def first_head_everywhere(weight: torch.Tensor) -> None:
    weight.copy_(weight[:8].repeat(4, 1))


def frozen_zero(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "query" in name:
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)
    return model


def words(model: nn.Module) -> Loop:
    return Loop(model, batches(masked_words))


FAULTS: dict[str, tuple[str, int, Callable[[], Loop]]] = {
    # what is wrong: (rule, latest sample at which it must be named, loop)
    "queries_and_keys_scaled": (
        "attention_saturated",
        2,
        lambda: Loop(changed(four_heads(), r"(query|key)\.weight", lambda p: p.mul_(100))),
    ),
    "heads_copied": (
        "heads_alike",
        2,
        lambda: Loop(changed(four_heads(), r"(query|key)\.weight", first_head_everywhere)),
    ),
    "rate_far_too_high": (
        "attention_logits_grow",
        25,
        lambda: Loop(llama(), batches(sentences_to_continue), steps=25, rate=0.2),
    ),
    "queries_zero_and_frozen": ("attention_uniform", 10, lambda: Loop(frozen_zero(four_heads()), batches(texts))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_named(name):
    rule, latest, make = FAULTS[name]
    judge = make().run().judge
    assert rule in judge.cases
    assert judge.cases[rule].samples <= latest
    assert judge.cases[rule].finding.parameters


def test_queries_that_begin_as_zeros_are_silent():
    loop = Loop(changed(four_heads(), r"query\.weight", nn.init.zeros_), steps=15)
    assert not {rule for rule in loop.rules() if "attention" in rule or "heads" in rule}
