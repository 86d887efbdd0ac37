"""What the gradient at the outputs, and the batch itself, give away of a wrong loss, wrong targets or wrong masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from plain_loop import (
    VOCABULARY,
    Loop,
    Tokenizer,
    batches,
    causal_lm,
    changed,
    classifier,
    masked_lm,
    masked_words,
    sentences_to_continue,
    texts,
)
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForTokenClassification, T5Config, T5ForConditionalGeneration


class Body(nn.Module):
    """The encoder of the classifier with a head of its own; the loss is the caller's."""

    def __init__(self, outputs: int, last: Callable[[torch.Tensor], torch.Tensor] = lambda x: x, loss=None):
        super().__init__()
        body, self.loss = classifier(), loss
        self.body, self.head, self.last = body.bert, nn.Linear(body.config.hidden_size, outputs), last

    def forward(self, input_ids, attention_mask, labels=None, target=None):
        hidden = self.body(input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.last(self.head(hidden[:, 0]))
        return {"logits": logits} if self.loss is None else {"logits": logits, "loss": self.loss(logits, labels)}


def data(change: Callable[[dict], dict], make=texts):
    return (change(batch) for batch in batches(make))


def lengths(batch: dict) -> dict:
    return {**batch, "labels": batch["input_ids"][:, 1].float() / VOCABULARY + 0.1 * batch["attention_mask"].sum(1)}


def tags(batch: dict) -> dict:
    return {**batch, "labels": (batch["input_ids"] % 3).masked_fill(batch["attention_mask"] == 0, -100)}


def several(batch: dict) -> dict:
    ids = batch["input_ids"][:, 1]
    return {**batch, "labels": torch.stack([ids % 2, ids % 3 == 0, ids % 5 == 0], dim=1).float()}


def without_labels(batch: dict) -> dict:
    return {**{k: v for k, v in batch.items() if k != "labels"}, "target": batch["labels"]}


def own(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
    def loss_of(loop, output, batch):
        return loss(output["logits"], batch["labels"] if "labels" in batch else batch["target"])

    return loss_of


def squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.squeeze(-1) - targets).square().mean()


def tagger() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForTokenClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes)).train()


def translator() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)).train()


def put_back(loop: Loop, step: int) -> None:
    """An average of the weights, copied into the model after every step."""
    loop.optim.zero_grad()
    if not hasattr(loop, "average"):
        loop.average = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    with torch.no_grad():
        for name, parameter in loop.model.named_parameters():
            parameter.copy_(loop.average[name].lerp_(parameter, 0.001))


def halved(loop: Loop, step: int) -> None:
    loop.optim.zero_grad()
    for group in loop.optim.param_groups:
        group["lr"] *= 0.4


def flipped_mask(batch: dict) -> dict:
    return {**batch, "attention_mask": batch["attention_mask"].flip(1)}


def end_alone(batch: dict) -> dict:
    return {**batch, "labels": batch["input_ids"].where(batch["input_ids"] == Tokenizer.sep_token_id, -100)}


def mostly_masked(batch: dict) -> dict:
    ids, words = batch["input_ids"], batch["input_ids"] > 5
    chosen = words & (torch.rand(ids.shape, generator=torch.Generator().manual_seed(int(ids.sum()))) < 0.95)
    return {**batch, "input_ids": ids.masked_fill(chosen, Tokenizer.mask_token_id), "labels": ids.where(chosen, -100)}


def hidden_otherwise(batch: dict) -> dict:
    ids = batch["input_ids"]
    return {**batch, "input_ids": torch.where(ids == Tokenizer.mask_token_id, VOCABULARY - 1, ids)}


def all_asked(batch: dict) -> dict:
    whole = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
    return {**batch, "labels": whole.masked_fill(batch["attention_mask"] == 0, -100)}


def masked_words_of(batch: dict) -> dict:
    chosen = (batch["input_ids"] > 5) & (torch.arange(batch["input_ids"].shape[1]) % 4 == 2)
    return {
        **batch,
        "input_ids": batch["input_ids"].masked_fill(chosen, Tokenizer.mask_token_id),
        "labels": batch["input_ids"].where(chosen, -100),
    }


def moved_tags(batch: dict) -> dict:
    labels = tags(batch)["labels"]
    last = batch["attention_mask"].sum(1) - 1
    labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    labels[torch.arange(len(last)), last] = -100
    return {**batch, "labels": labels}


def next_words(batch):
    """Labels that are shifted already, as many as there are inputs."""
    return {**sentences(batch), "labels": sentences(batch)["labels"].roll(-1, 1)}


def sentences(batch):
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def viewed(loop, output, batch):
    rows, places, classes = output.logits.shape
    return functional.cross_entropy(output.logits.view(rows, classes, places), batch["labels"])


def mostly_tag_0(batch):
    ids = torch.where(batch["input_ids"] % 4 > 0, batch["input_ids"] // 3 * 3, batch["input_ids"])
    return tags({**batch, "input_ids": ids})


def of_tags(*weights: float):
    def loss_of(loop, output, batch):
        return weighted(*weights)(output.logits.flatten(0, 1), batch["labels"].flatten())

    return loss_of


def mostly_class_0(batch):
    ids = batch["input_ids"].clone()
    ids[: len(ids) * 3 // 4, 1] = ids[: len(ids) * 3 // 4, 1] // 3 * 3
    return {**batch, "input_ids": ids, "labels": ids[:, 1] % 3}


def weighted(*weights: float):
    return lambda logits, labels: functional.cross_entropy(logits, labels, weight=torch.tensor(weights))


def labels_of_row_0(batch):
    """Labels of the first row for all; the rows are of one length, so that no padding counts."""
    ids = batch["input_ids"][:, :6].clone()
    return {"input_ids": ids, "labels": ids[:1].expand_as(ids).clone()}


def without_class_1(batch):
    ids = batch["input_ids"].clone()
    ids[:, 1] += (ids[:, 1] % 3 == 1).long()
    return {**batch, "input_ids": ids, "labels": ids[:, 1] % 3}


def beginnings(batch):
    length = batch["attention_mask"].sum(1, keepdim=True)
    answer = torch.arange(batch["labels"].shape[1]) >= length // 2
    return {**batch, "labels": batch["labels"].masked_fill(answer, -100)}


def answers(batch):
    """Prompts without labels, as is usual."""
    return {**batch, "labels": batch["labels"].masked_fill(torch.arange(batch["labels"].shape[1]) < 3, -100)}


FAULTS: dict[str, tuple[str, int, Callable[[], Loop]]] = {
    # what is wrong: (rule, latest sample at which it must be named, loop)
    "softmax_before_the_loss": (
        "outputs_not_logits",
        30,
        lambda: Loop(rate=3e-3, loss_of=own(lambda z, y: functional.cross_entropy(z.softmax(-1), y))),
    ),
    "sigmoid_before_the_loss": (
        "outputs_not_logits",
        30,
        lambda: Loop(
            Body(3),
            data(several),
            rate=3e-3,
            loss_of=own(lambda z, y: functional.binary_cross_entropy_with_logits(z.sigmoid(), y)),
        ),
    ),
    "likelihood_of_logits": ("log_probabilities_expected", 4, lambda: Loop(loss_of=own(functional.nll_loss))),
    "softmax_over_the_batch": (
        "softmax_over_batch",
        8,
        lambda: Loop(loss_of=own(lambda z, y: functional.nll_loss(z.log_softmax(0), y))),
    ),
    "class_of_no_weight": (
        "class_never_counts",
        5,
        lambda: Loop(
            Body(2),
            data(lambda batch: without_labels({**batch, "labels": batch["input_ids"][:, 1] % 2})),
            loss_of=own(lambda z, y: functional.cross_entropy(z, y, weight=torch.tensor([0.0, 1.0]))),
        ),
    ),
    "targets_of_all_rows": (
        "targets_broadcast",
        6,
        lambda: Loop(Body(1), data(lengths), loss_of=own(lambda z, y: (z - y).square().mean())),
    ),
    "means_compared": (
        "targets_broadcast",
        6,
        lambda: Loop(Body(1), data(lengths), loss_of=own(lambda z, y: (z.mean() - y.mean()).square())),
    ),
    "targets_beyond_the_sigmoid": (
        "targets_out_of_reach",
        30,
        lambda: Loop(
            Body(1, torch.sigmoid, squares),
            data(lambda batch: {**batch, "labels": 500 + 10 * lengths(batch)["labels"]}),
        ),
    ),
    "inverted_mask": (
        "mask_inverted",
        3,
        lambda: Loop(data=data(lambda batch: {**batch, "attention_mask": 1 - batch["attention_mask"]})),
    ),
    "mask_of_the_other_side": ("mask_inverted", 3, lambda: Loop(data=data(flipped_mask))),
    "weights_put_back": ("steps_undone", 6, lambda: Loop(after_step=put_back)),
    "labels_of_another_row": (
        "labels_of_other_text",
        3,
        lambda: Loop(
            causal_lm(), data(lambda b: {**b, "labels": b["labels"].roll(1, 0)}, sentences_to_continue), settings={}
        ),
    ),
    "masked_words_for_a_causal_model": (
        "labels_of_other_text",
        5,
        lambda: Loop(causal_lm(), data(masked_words_of, sentences_to_continue)),
    ),
    "the_end_alone": ("one_token_asked", 9, lambda: Loop(causal_lm(), data(end_alone, sentences_to_continue))),
    "one_class_of_tokens": (
        "one_token_asked",
        9,
        lambda: Loop(tagger(), data(lambda batch: {**tags(batch), "labels": tags(batch)["labels"].clamp(max=0)})),
    ),
    "mostly_masked": ("nearly_all_masked", 5, lambda: Loop(masked_lm(), data(mostly_masked))),
    "hidden_by_another_token": (
        "mask_token_unused",
        5,
        lambda: Loop(masked_lm(), data(hidden_otherwise, masked_words)),
    ),
    "unmasked_words_asked": ("target_in_input", 5, lambda: Loop(masked_lm(), data(all_asked, masked_words))),
    "tags_one_place_early": ("labels_one_place_off", 5, lambda: Loop(tagger(), data(moved_tags))),
    "one_number_for_all": (
        "constant_label",
        6,
        lambda: Loop(
            Body(1), data(lambda batch: {**batch, "labels": torch.zeros(len(batch["labels"]))}), loss_of=own(squares)
        ),
    ),
    "no_label_is_set": (
        "constant_label",
        6,
        lambda: Loop(
            Body(3),
            data(lambda batch: {**batch, "labels": torch.zeros(len(batch["labels"]), 3)}),
            loss_of=own(functional.binary_cross_entropy_with_logits),
        ),
    ),
    "decoder_reads_padding": (
        "decoder_inputs_constant",
        3,
        lambda: Loop(
            translator(),
            data(lambda b: {**b, "decoder_input_ids": torch.zeros_like(b["input_ids"])}, sentences_to_continue),
        ),
    ),
    "decoder_reads_the_target": (
        "target_in_input",
        3,
        lambda: Loop(translator(), data(lambda b: {**b, "decoder_input_ids": b["input_ids"]}, sentences_to_continue)),
    ),
    "rows_many_times": (
        "rows_repeated",
        5,
        lambda: Loop(data=data(lambda batch: {k: v[torch.arange(len(v)) % 3] for k, v in batch.items()})),
    ),
    "pooled_over_the_batch": (
        "outputs_ignore_inputs",
        6,
        lambda: Loop(Body(3, lambda z: z.mean(0, keepdim=True).expand_as(z)), loss_of=own(functional.cross_entropy)),
    ),
    "outputs_times_zero": (
        "all_gradients_zero",
        4,
        lambda: Loop(loss_of=own(lambda z, y: functional.cross_entropy(z * 0, y))),
    ),
    "outputs_cut_from_the_graph": (
        "all_gradients_zero",
        4,
        lambda: Loop(loss_of=own(lambda z, y: functional.cross_entropy(z.detach().requires_grad_(), y))),
    ),
    "rate_for_epochs": ("rate_gone_early", 40, lambda: Loop(after_step=halved)),
    "wrong_sign_without_labels": (
        "wrong_loss_sign",
        3,
        lambda: Loop(Body(3), data(without_labels), loss_of=own(lambda z, y: -functional.cross_entropy(z, y))),
    ),
    "logits_viewed": ("logits_viewed_not_transposed", 3, lambda: Loop(causal_lm(), data(next_words), loss_of=viewed)),
    "tags_viewed": ("logits_viewed_not_transposed", 3, lambda: Loop(tagger(), data(tags), loss_of=viewed)),
    "sigmoid_under_a_sigmoid_of_several_labels": (
        "outputs_not_logits",
        6,
        lambda: Loop(Body(3, torch.sigmoid), data(several), loss_of=own(functional.binary_cross_entropy_with_logits)),
    ),
    "tags_weighted_by_frequency": (
        "class_weights_reversed",
        12,
        lambda: Loop(tagger(), data(mostly_tag_0), loss_of=of_tags(3.0, 0.3, 0.3)),
    ),
    "regression_below_a_relu": (
        "targets_out_of_reach",
        8,
        lambda: Loop(
            Body(1, torch.relu), data(lambda b: {**b, "labels": lengths(b)["labels"] - 1.5}), loss_of=own(squares)
        ),
    ),
    "several_labels_under_one_softmax": (
        "one_softmax_for_several_labels",
        4,
        lambda: Loop(Body(3), data(several), loss_of=own(functional.cross_entropy)),
    ),
    "weights_of_frequent_classes": (
        "class_weights_reversed",
        12,
        lambda: Loop(data=data(mostly_class_0), loss_of=own(weighted(3.0, 0.3, 0.3))),
    ),
    "labels_of_one_row": ("labels_equal_in_rows", 5, lambda: Loop(causal_lm(), data(labels_of_row_0))),
    "class_lost": ("class_without_examples", 50, lambda: Loop(data=data(without_class_1), rate=1e-4)),
    "prompts_learned": ("answers_ignored", 3, lambda: Loop(causal_lm(), data(beginnings, sentences_to_continue))),
    "table_of_deviation_1": (
        "initial_loss_high",
        1,
        lambda: Loop(
            changed(causal_lm(), r"wte\.weight", lambda p: p.mul_(100)), batches(sentences_to_continue), rate=1e-5
        ),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_named(name):
    rule, latest, make = FAULTS[name]
    loop = make()
    loop.steps = max(latest + 2, 6) if name != "rate_for_epochs" else 40
    judge = loop.run().judge
    found = {finding.rule: judge.cases[finding.rule].samples for finding in judge.findings}
    assert rule in found, found
    assert found[rule] <= latest
    assert set(found) <= {rule, "update_ratio_high", "loss_diverging", "order_not_seen", "padding_counts"}, found


def restarting(loop: Loop, step: int) -> None:
    loop.optim.zero_grad()
    for group in loop.optim.param_groups:
        group["lr"] = 1e-3 * 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * (step % 10) / 10)).item())


HEALTHY: dict[str, Callable[[], Loop]] = {
    "several_labels": lambda: Loop(
        Body(3), data(several), loss_of=own(functional.binary_cross_entropy_with_logits), rate=3e-3
    ),
    "regression": lambda: Loop(Body(1), data(lengths), loss_of=own(squares)),
    "own_cross_entropy": lambda: Loop(loss_of=own(functional.cross_entropy), rate=3e-3),
    "smoothed_labels": lambda: Loop(
        loss_of=own(lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.1)), rate=3e-3
    ),
    "hinge": lambda: Loop(Body(3), data(without_labels), loss_of=own(functional.multi_margin_loss)),
    "one_value_for_a_discriminator": lambda: Loop(
        Body(1), data(without_labels), loss_of=own(lambda z, y: (z - 1.0).square().mean())
    ),
    "mean_of_outputs": lambda: Loop(Body(1), data(without_labels), loss_of=own(lambda z, y: -z.mean())),
    "every_row_twice": lambda: Loop(data=data(lambda b: {k: v.repeat_interleave(2, 0) for k, v in b.items()})),
    "tags": lambda: Loop(tagger(), data(tags)),
    "translation": lambda: Loop(
        translator(), data(lambda b: {**b, "labels": b["labels"].flip(1)}, sentences_to_continue)
    ),
    "copying": lambda: Loop(translator(), batches(sentences_to_continue)),
    "restarts": lambda: Loop(after_step=restarting),
    "temperature_4": lambda: Loop(loss_of=own(lambda z, y: functional.cross_entropy(z / 4, y)), rate=3e-3),
    "one_minus_the_probability": lambda: Loop(
        loss_of=own(lambda z, y: (1 - z.softmax(-1).gather(1, y[:, None])).mean()), rate=3e-3
    ),
    "squared_error_of_probabilities": lambda: Loop(
        Body(3, lambda z: z.softmax(-1)),
        data(without_labels),
        loss_of=own(lambda p, y: (p - functional.one_hot(y, 3)).square().sum(1).mean()),
        rate=3e-3,
    ),
    "correlations_over_the_batch": lambda: Loop(Body(6), data(without_labels), loss_of=own(decorrelation)),
    "counts_above_a_relu": lambda: Loop(Body(1, torch.relu), data(lengths), loss_of=own(squares)),
    "logits_transposed": lambda: Loop(
        tagger(),
        data(tags),
        loss_of=lambda loop, o, b: functional.cross_entropy(o.logits.transpose(1, 2), b["labels"]),
    ),
    "tags_weighted_by_rarity": lambda: Loop(tagger(), data(mostly_tag_0), loss_of=of_tags(0.3, 3.0, 3.0)),
    "weights_of_rare_classes": lambda: Loop(data=data(mostly_class_0), loss_of=own(weighted(0.3, 3.0, 3.0))),
    "weights_of_classes_as_frequent": lambda: Loop(loss_of=own(weighted(3.0, 0.3, 1.0))),
    "shares_of_several_labels": lambda: Loop(
        Body(3),
        data(lambda b: {**several(b), "labels": several(b)["labels"].clamp(min=0.01).softmax(-1)}),
        loss_of=own(functional.cross_entropy),
    ),
    "answers_alone": lambda: Loop(causal_lm(), data(answers, sentences_to_continue)),
    "another_loss_before": lambda: Loop(loss_of=attacked),
}


def decorrelation(outputs: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    centered = (outputs - outputs.mean(0)) / outputs.std(0)
    return (centered.T @ centered / len(outputs) - torch.eye(outputs.shape[1])).square().sum()


def attacked(loop: Loop, output: dict, batch: dict) -> torch.Tensor:
    """An attack on the embeddings, whose gradients of the weights are cleared before those of the loss."""
    loop.model(**batch)["loss"].backward()
    loop.optim.zero_grad()
    return loop.model(**batch)["loss"]


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_loop_is_silent(name):
    loop = HEALTHY[name]()
    loop.steps = 40
    ours = {"gradients_kept", *(rule for rule, _, _ in FAULTS.values())}
    assert not loop.rules() & ours
