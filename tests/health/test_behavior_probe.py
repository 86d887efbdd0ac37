"""What a model must not see: tried on models written here with one mistake each, and on models that are right."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from healthy_models import HEALTHY_MODELS, healthy_loop, quiet
from plain_loop import (
    LENGTH,
    VOCABULARY,
    Loop,
    Tokenizer,
    batches,
    causal_lm,
    classifier,
    sentences_to_continue,
    texts,
)
from torch import nn
from torch.nn import functional

from bert_toolkit.health.behavior_probe import BehaviorProbe


@pytest.fixture(autouse=True)
def one_thread():
    with quiet():
        yield


class OwnAttention(nn.Module):
    """Attention as people write it, with switches for what they forget."""

    def __init__(self, size: int, causal: bool, masked: bool):
        super().__init__()
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.causal, self.masked = causal, masked

    def forward(self, x, mask):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
        if self.masked:
            scores = scores.masked_fill(mask[:, None, None] == 0, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class OwnModel(nn.Module):
    """One block; classes from the first token, or a word for each."""

    def __init__(self, classes=0, causal=False, masked=True, positions=True, dropout=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.positions = nn.Embedding(VOCABULARY, 32), nn.Embedding(32, 32)
        self.attention = OwnAttention(32, causal, masked)
        self.norm, self.dropout = nn.LayerNorm(32), nn.Dropout(dropout)
        self.head = nn.Linear(32, classes or VOCABULARY)
        self.classes, self.with_positions = classes, positions

    def forward(self, input_ids, attention_mask, labels=None):
        x = self.words(input_ids)
        if self.with_positions:
            x = x + self.positions.weight[: input_ids.shape[1]]
        x = self.norm(x + self.dropout(self.attention(x, attention_mask)))
        logits = self.head(x[:, 0] if self.classes else x)
        result = {"logits": logits}
        if labels is not None and self.classes:
            result["loss"] = functional.cross_entropy(logits, labels)
        elif labels is not None:
            result["loss"] = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return result


def always_dropping(model):
    model.dropout.forward = lambda x: functional.dropout(x, 0.1, training=True)
    return model


def continuing(model):
    return Loop(model, batches(sentences_to_continue), steps=6)


def sorting(model):
    return Loop(model, batches(texts), steps=6)


@pytest.mark.parametrize("name", HEALTHY_MODELS)
def test_models_of_transformers_are_right(name):
    loop = healthy_loop(name)
    loop.steps = 5
    probed = {"future_visible", "padding_matters", "order_not_seen", "padding_not_hidden", "rows_mixed"}
    assert not loop.rules() & probed


@pytest.mark.parametrize(
    ("loop", "found"),
    [
        (lambda: continuing(OwnModel(causal=True)), set()),
        (lambda: sorting(OwnModel(3)), set()),
        (lambda: continuing(OwnModel(causal=False)), {"future_visible"}),
        (lambda: sorting(OwnModel(3, masked=False)), {"padding_matters"}),
        (lambda: sorting(OwnModel(3, positions=False)), {"order_not_seen"}),
        (lambda: sorting(always_dropping(OwnModel(3))), {"noise_in_evaluation"}),
        # without positions a causal mask still tells the order
        (lambda: continuing(OwnModel(causal=True, positions=False)), set()),
    ],
    ids=["right-causal", "right-encoder", "future", "padding", "no-positions", "noise", "no-positions-causal"],
)
def test_own_attention_with_one_mistake(loop, found):
    assert loop().rules() == found


class OfTorch(nn.Module):
    """A torch encoder as people call it, with the first two axes in either order."""

    def __init__(self, batch_first=True, viewed=False):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.positions = nn.Embedding(VOCABULARY, 32), nn.Embedding(32, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.viewed = nn.Linear(32, 3), viewed

    def forward(self, tokens, targets):
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]]
        if self.viewed:
            x = x.view(tokens.shape[1], tokens.shape[0], -1)
        x = self.encoder(x)
        if self.viewed:
            x = x.view(*tokens.shape, -1)
        logits = self.head(x.mean(1))
        return functional.cross_entropy(logits, targets), logits


class Recurrent(nn.Module):
    """A recurrence of which the axis of time is the first one, so that rows of its inputs are steps of time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.recurrence, self.head = nn.GRU(6, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.recurrence(x)[0])


def row_effect(model, **inputs):
    return float(BehaviorProbe(model).facts(inputs)["row_effect"])


def test_rows_that_look_into_one_another():
    batch = next(iter(batches(texts)))
    tokens, targets = batch["input_ids"], batch["labels"]
    assert row_effect(OfTorch(), tokens=tokens, targets=targets) < 1e-5
    assert row_effect(OfTorch(batch_first=False), tokens=tokens, targets=targets) > 0.05
    assert row_effect(OfTorch(batch_first=False, viewed=True), tokens=tokens, targets=targets) > 0.05


def test_first_axis_that_is_not_that_of_rows_is_not_judged():
    assert np.isnan(row_effect(Recurrent(), x=torch.randn(7, 5, 6)))
    graph = nn.Module()
    graph.layer = nn.Linear(6, 3)
    graph.forward = lambda nodes, neighbors: neighbors @ graph.layer(nodes)
    assert np.isnan(row_effect(graph, nodes=torch.randn(8, 6), neighbors=torch.rand(8, 8)))
    pairs = nn.Module()
    pairs.layer = nn.Linear(6, 3)
    pairs.forward = lambda input_features: torch.cdist(*[pairs.layer(input_features).flatten(1)] * 2)
    assert np.isnan(row_effect(pairs, input_features=torch.randn(4, 5, 6)))


def test_rows_that_look_into_one_another_are_named_in_a_loop():
    """With arguments by position, as loops without transformers pass them."""

    class ByPosition(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens, targets):
            return self.model(tokens, targets)

    for batch_first, found in ((True, set()), (False, {"rows_mixed"})):
        loop = Loop(ByPosition(OfTorch(batch_first)), batches(texts), steps=6)
        loop.model.train()
        loop.loss_of = lambda loop, output, batch: output[0]
        loop.call = lambda model, batch: model(batch["input_ids"], batch["labels"])
        assert loop.rules() == found


def test_a_mask_that_fails_later_or_now_and_then_is_found():
    """Ever rarer samples are probed: of 33 those after 0, 4, 8, 16 and 32 others."""
    model = OwnModel(causal=True)
    later = Loop(model, batches(sentences_to_continue), steps=17)
    later.before_forward = lambda loop, step: setattr(model.attention, "causal", step < 12)
    watch = later.run()
    assert [finding.rule for finding in watch.judge.findings] == ["future_visible"]
    assert watch.judge.findings[0].step == 17
    assert np.flatnonzero(np.isfinite(watch.history.fact("future_effect"))).tolist() == [0, 4, 8, 16]


def test_causal_classifier_that_looks_for_padding_is_not_judged():
    """GPT-2's classifier takes the last token that is not padding, so an id under the mask counts by design."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=32, num_labels=3)
    config.pad_token_id = 0
    assert sorting(GPT2ForSequenceClassification(config).train()).rules() == set()


def test_one_logit_per_token_is_not_taken_for_classes():
    """ELECTRA's discriminator: the logits of padding tokens are among those of a row."""
    from transformers import ElectraConfig, ElectraForPreTraining

    torch.manual_seed(0)
    sizes = {"embedding_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ElectraForPreTraining(ElectraConfig(vocab_size=VOCABULARY, intermediate_size=64, **sizes)).train()
    batch = next(iter(batches(texts)))
    facts = BehaviorProbe(model).facts(batch)
    assert facts.pop("evaluation_noise") < 1e-5 and facts.pop("row_effect") < 1e-5
    assert all(np.isnan(float(v)) for v in facts.values())


def test_zero_head_and_dropout_that_never_ends_tell_nothing():
    model = OwnModel(3, positions=False)
    nn.init.zeros_(model.head.weight)
    batch = next(iter(batches(texts)))
    facts = BehaviorProbe(model).facts(batch)
    assert facts.pop("evaluation_noise") == facts.pop("row_effect") == 0
    assert all(np.isnan(float(v)) for v in facts.values())
    facts = BehaviorProbe(always_dropping(OwnModel(masked=False))).facts(batch)
    assert facts.pop("evaluation_noise") > 0.01 and facts.pop("row_effect") == 0
    assert all(np.isnan(float(v)) for v in facts.values())


def test_hooks_on_parts_and_other_inputs_leave_the_model_alone():
    calls = []
    model = classifier()
    model.bert.encoder.register_forward_hook(lambda *_: calls.append(1))
    batch = next(iter(batches(texts)))
    assert all(np.isnan(float(v)) for v in BehaviorProbe(model).facts(batch).values())
    floats = {"inputs_embeds": torch.randn(2, LENGTH, 32)}
    facts = BehaviorProbe(classifier()).facts(floats)
    assert facts.pop("row_effect") < 1e-5 and all(np.isnan(float(v)) for v in facts.values())
    assert not calls


def test_training_is_the_same_to_the_last_bit():
    """Weights, buffers, modes and every random number after six steps with and without the probe."""

    class Counting(OwnModel):
        def __init__(self):
            super().__init__(3)
            self.register_buffer("rows", torch.zeros(()))
            self.frozen = nn.BatchNorm1d(32)
            self.frozen.eval()

        def forward(self, input_ids, attention_mask, labels=None):
            self.rows += len(input_ids)
            random.random(), np.random.random()
            return super().forward(input_ids, attention_mask, labels)

    def train(probe: bool):
        model = Counting().train()
        model.frozen.eval()
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = iter(batches(texts))
        for _ in range(6):
            batch = next(data)
            model(**batch)["loss"].backward()
            if probe:
                assert np.isfinite(float(BehaviorProbe(model).facts(batch)["padding_effect"]))
            optimizer.step()
            optimizer.zero_grad()
        modes = [module.training for module in model.modules()]
        return copy.deepcopy(model.state_dict()), modes, torch.rand(3), random.random(), np.random.random()

    (state, *rest), (expected, *others) = train(True), train(False)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert rest[0] == others[0] and torch.equal(rest[1], others[1]) and rest[2:] == others[2:]


@pytest.mark.parametrize(
    ("model", "make", "found"),
    [(classifier, texts, {"padding_not_hidden"}), (causal_lm, sentences_to_continue, set())],
    ids=["encoder", "causal"],
)
def test_batches_without_a_mask(model, make, found):
    """Without a mask an encoder attends to padding; a causal model does not."""

    def unmasked(generator):
        batch = make(generator)
        del batch["attention_mask"]
        return batch

    assert Tokenizer.pad_token_id == 0
    assert Loop(model(), batches(unmasked), steps=6).rules() == found


def without_mask(batch):
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def words_of_id_0(batch):
    """The same id inside of texts: then it is a word, whatever the config has for padding by default."""
    batch["input_ids"][:, 2] = 0
    batch["input_ids"][:, 3] = 7
    return without_mask(batch)


@pytest.mark.parametrize(
    ("change", "found"), [(without_mask, {"padding_not_hidden"}), (words_of_id_0, set())], ids=["padding", "a word"]
)
def test_without_a_tokenizer_the_model_knows_its_padding(change, found):
    data = (change(batch) for batch in batches(texts))
    assert Loop(data=data, steps=6, settings={"tokenizer": None}).rules() == found
