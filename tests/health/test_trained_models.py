"""Models that were trained before: parts that are fresh again, and tokens that mean something else to them."""

import copy
import re
from collections.abc import Callable, Iterator
from functools import cache

import peft
import pytest
import torch
from plain_loop import Loop, changed
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from bert_toolkit.health.watch import HealthWatch
from bert_toolkit.training.pretrained import offline_weights

TOKENS, LENGTH, ROWS = 120, 12, 16
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def counting(seed: int, numbers: Callable[[torch.Tensor], torch.Tensor] = lambda ids: ids) -> Iterator[dict]:
    """Rows that count upwards from anywhere; `numbers` is what a tokenizer makes of them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        start = torch.randint(10, TOKENS - LENGTH, (ROWS, 1), generator=generator)
        ids = numbers(start + torch.arange(LENGTH))
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def masked(rows: Iterator[dict], seed: int = 0) -> Iterator[dict]:
    generator = torch.Generator().manual_seed(seed)
    for batch in rows:
        chosen = torch.rand(batch["input_ids"].shape, generator=generator) < 0.2
        labels = batch["labels"].masked_fill(~chosen, -100)
        yield {**batch, "input_ids": batch["input_ids"].masked_fill(chosen, 4), "labels": labels}


def other_tokenizer(ids: torch.Tensor) -> torch.Tensor:
    words = torch.randperm(TOKENS - 10, generator=torch.Generator().manual_seed(5)) + 10
    return torch.cat([torch.arange(10), words])[ids]


def learned(model: nn.Module, data: Iterator[dict], steps: int, rate: float) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        model(**next(data)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


@cache
def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "bert":
        config = BertConfig(vocab_size=TOKENS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZES)
        return learned(BertForMaskedLM(config), masked(counting(1)), 350, 5e-3)
    if name == "llama":
        return learned(LlamaForCausalLM(LlamaConfig(vocab_size=TOKENS, **SIZES)), counting(1), 120, 1e-2)
    return learned(
        GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=2)), counting(1), 120, 1e-2
    )


def found(model: nn.Module, data: Iterator[dict]) -> dict[str, str]:
    loop = Loop(model, data, steps=3)
    return {finding.rule: finding.severity for finding in loop.run().judge.findings}


def data_of(name: str, **kwargs) -> Iterator[dict]:
    return masked(counting(2, **kwargs)) if name == "bert" else counting(2, **kwargs)


EMBEDDINGS = r"wte|word_embeddings|embed_tokens"
FIRST_OF_FEED_FORWARD = r"c_fc\.weight|intermediate\.dense\.weight|(up|gate)_proj\.weight"
ALL = ("gpt2", "bert", "llama")


@pytest.mark.parametrize("name", ALL)
def test_a_trained_model_with_its_own_tokens_is_silent(name):
    model = copy.deepcopy(trained(name))
    with torch.no_grad():
        assert model(**next(data_of(name))).loss < 3.0  # it has learned, or silence would say nothing
    assert found(model, data_of(name)) == {}


@pytest.mark.parametrize("name", ALL)
def test_another_tokenizer_is_named(name):
    assert found(copy.deepcopy(trained(name)), data_of(name, numbers=other_tokenizer)) == {
        "worse_than_guessing": "warning"
    }


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exchanged_embeddings_are_named(name):
    model = changed(
        copy.deepcopy(trained(name)), EMBEDDINGS, lambda p: p.copy_(p[other_tokenizer(torch.arange(TOKENS))])
    )
    judge = Loop(model, data_of(name), steps=3).run().judge
    assert [finding.rule for finding in judge.findings] == ["worse_than_guessing"]
    assert any(re.search(EMBEDDINGS, parameter) for parameter in judge.findings[0].parameters)


def new_head(model: PreTrainedModel) -> nn.Module:
    head = nn.Linear(32, TOKENS, bias=False)
    nn.init.normal_(head.weight, std=3 * model.config.initializer_range)
    head.weight._is_hf_initialized = False
    for name, parameter in model.named_parameters():
        parameter._is_hf_initialized = "lm_head" not in name
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    return model


SILENT = {
    # A new head guesses at first, and worse than that where what it reads is large.
    "new_head": lambda model: new_head(model),
    "new_words": lambda model: changed(model, EMBEDDINGS, lambda p: p.normal_(0, 0.02)),
}


@pytest.mark.parametrize("what", SILENT)
def test_new_parts_may_guess(what):
    model = SILENT[what](copy.deepcopy(trained("gpt2")))
    changed(model, "ln_f.weight", lambda p: p.mul_(30))
    with torch.no_grad():
        assert model(**next(counting(2))).loss > 5.0
    assert "worse_than_guessing" not in found(model, counting(2))


@pytest.mark.parametrize("name", ALL)
def test_one_kind_that_is_fresh_again_is_named(name):
    torch.manual_seed(1)
    model = changed(copy.deepcopy(trained(name)), FIRST_OF_FEED_FORWARD, lambda p: p.uniform_(-0.04, 0.04))
    judge = Loop(model, data_of(name), steps=3).run().judge
    assert [finding.rule for finding in judge.findings] == ["fresh_kind"]
    finding = judge.cases["fresh_kind"].finding
    assert finding.step == 0
    assert all(re.search(FIRST_OF_FEED_FORWARD, parameter) for parameter in finding.parameters)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_scaled_normalizations_of_a_trained_model_are_named(name, factor):
    model = changed(copy.deepcopy(trained(name)), r"(ln_\w+|norm)\.weight", lambda p: p.mul_(factor))
    assert "norms_out_of_scale" in found(model, data_of(name))


def zero_tokens(model: nn.Module, tokens: slice) -> nn.Module:
    return changed(model, r"lm_head\.weight", lambda p: p[tokens].zero_())


@pytest.mark.parametrize("tokens", [slice(None), slice(0, 12)], ids=["all", "a tenth"])
def test_a_head_of_zeros_above_a_trained_body_is_named(tokens):
    judge = Loop(zero_tokens(copy.deepcopy(trained("llama")), tokens), counting(2), steps=3).run().judge
    assert [finding.rule for finding in judge.findings] == ["zero_head"]
    assert judge.findings[0].parameters == ("lm_head.weight",) and judge.findings[0].step == 0


def test_heads_that_begin_with_zeros_are_silent():
    torch.manual_seed(0)
    fresh = LlamaForCausalLM(LlamaConfig(vocab_size=TOKENS, **SIZES))
    assert "zero_head" not in found(zero_tokens(fresh, slice(None)), counting(2))
    classifier = BertForSequenceClassification(trained("bert").config)
    classifier.bert.load_state_dict(trained("bert").bert.state_dict(), strict=False)
    nn.init.zeros_(classifier.classifier.weight)
    rows = ({**batch, "labels": batch["input_ids"][:, 0] % 2} for batch in counting(2))
    assert "zero_head" not in found(classifier, rows)


@pytest.mark.parametrize(("rate", "named"), [(1e-3, False), (0.1, True)])
def test_a_body_that_the_first_steps_destroy_is_named(rate, named):
    """A fine-tuning that then predicts no better than a guess."""
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(trained("bert").config)
    classifier.bert.load_state_dict(trained("bert").bert.state_dict(), strict=False)
    rows = ({**batch, "labels": torch.randint(0, 2, (ROWS,))} for batch in counting(2))
    judge = Loop(classifier, rows, steps=14, rate=rate).run().judge
    assert ("update_ratio_high" in {finding.rule for finding in judge.findings}) == named


def without_task(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"]))


def with_task(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS"))


def head_off(model: nn.Module) -> nn.Module:
    model.classifier.requires_grad_(False)
    return model


def body_off(model: nn.Module) -> nn.Module:
    model.bert.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("prepare", "again", "named"),
    [
        (head_off, False, True),
        (without_task, False, True),
        (with_task, False, False),
        (body_off, False, False),
        (head_off, True, False),  # it was saved with its head: that was trained, as far as anybody can tell
    ],
)
def test_a_fresh_head_that_is_frozen_is_named(tmp_path, prepare, again, named):
    trained("bert").save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    if again:
        model.save_pretrained(tmp_path / "again")
        model = BertForSequenceClassification.from_pretrained(tmp_path / "again")
    rows = ({**batch, "labels": batch["input_ids"][:, 0] % 2} for batch in counting(2))
    findings = Loop(prepare(model), rows, steps=3).run().judge.findings
    assert ("fresh_head_frozen" in {finding.rule for finding in findings}) == named
    assert all("classifier" in finding.parameters[0] for finding in findings if finding.rule == "fresh_head_frozen")


def test_a_fresh_pooler_that_nobody_reads_may_be_frozen(tmp_path):
    trained("bert").save_pretrained(tmp_path)
    torch.manual_seed(0)
    body = BertModel.from_pretrained(tmp_path)
    body.pooler.requires_grad_(False)

    class MeanOfWords(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(32, 2)
            self.body = body

        def forward(self, input_ids, attention_mask, labels):
            logits = self.head(self.body(input_ids, attention_mask).last_hidden_state.mean(1))
            return SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

    rows = ({**batch, "labels": batch["input_ids"][:, 0] % 2} for batch in counting(2))
    assert "fresh_head_frozen" not in found(MeanOfWords(), rows)


class Sized:
    """A tokenizer, as far as its size and its padding go."""

    def __init__(self, tokens: int, padding: int):
        self.tokens, self.pad_token_id = tokens, padding

    def __len__(self) -> int:
        return self.tokens


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (Sized(30522, 0), {}),
        (Sized(30400, 0), {}),  # a vocabulary that was rounded up
        (Sized(28996, 0), {"tokenizer_of_another_model": "warning"}),  # the cased vocabulary of BERT
        (Sized(30522, 1), {"tokenizer_of_another_model": "warning"}),
    ],
    ids=["its own", "rounded up", "another size", "another padding"],
)
def test_tokenizer_of_another_model(tokenizer, expected):
    model = AutoModel.from_pretrained(offline_weights())
    watch = HealthWatch(model, tokenizer=tokenizer)
    watch.begin()
    assert {finding.rule: finding.severity for finding in watch.judge.findings} == expected


def classified(model: nn.Module, steps: int = 7) -> dict[str, str]:
    rows = ({**batch, "labels": batch["input_ids"][:, 0] % 2} for batch in counting(2))
    findings = Loop(model, rows, steps=steps).run().judge.findings
    return {finding.rule: finding.severity for finding in findings}


def test_adapters_that_do_not_train_are_named():
    def adapted(**settings):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(vocab_size=TOKENS, **SIZES))
        targets = peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", **settings)
        return peft.get_peft_model(model, targets).train()

    assert classified(adapted()) == {}
    fixed = adapted(inference_mode=True)
    fixed.base_model.model.classifier.requires_grad_(True)
    assert classified(fixed) == {"adapters_frozen": "warning"}
    reentrant = adapted()
    for inner in (reentrant, reentrant.base_model.model):
        inner.enable_input_require_grads = lambda: None  # as in libraries that do not do it themselves
    reentrant.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    assert classified(reentrant) == {"no_gradient": "error"}
