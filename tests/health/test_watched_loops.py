"""Faults planted in a plain PyTorch loop are named within a few samples, and healthy loops are silent."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from plain_loop import (
    Loop,
    batches,
    causal_lm,
    classifier,
    masked_lm,
    masked_words,
    sentences_to_continue,
    texts,
)
from torch import nn

HEALTHY: dict[str, Callable[[], Loop]] = {
    "classification": lambda: Loop(),
    "masked_words": lambda: Loop(masked_lm(), batches(masked_words)),
    "causal": lambda: Loop(causal_lm(), batches(sentences_to_continue)),
    "accumulated": lambda: Loop(settings={"accumulation": 4}, loss_of=lambda loop, o, b: o.loss / 4),
    "class_weights": lambda: Loop(loss_of=weighted_loss),
    "sgd": lambda: Loop(optimizer=lambda loop: torch.optim.SGD(loop.model.parameters(), lr=0.1, momentum=0.9)),
    "no_dropout_in_evaluation_mode": lambda: Loop(
        model=classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).eval()
    ),
    "set_to_zero": lambda: Loop(after_step=lambda loop, step: loop.optim.zero_grad(set_to_none=False)),
    "zeroed_before_backward": lambda: Loop(
        before_forward=lambda loop, step: loop.optim.zero_grad(), after_step=lambda loop, step: None
    ),
    "log_probabilities": lambda: Loop(model=with_last(nn.LogSoftmax(-1))),
    "head_of_zeros": lambda: Loop(model=zeroed("classifier.weight")),
    "frozen_body": lambda: Loop(model=frozen_body()),
    "unused_pooler": lambda: Loop(BareBody()),
    "lstm_read_at_the_end": lambda: Loop(LastStep()),
    "rectified_adam": lambda: Loop(optimizer=lambda loop: RectifiedLater(loop.model.parameters(), lr=1e-3)),
    "head_alone_in_the_optimizer": lambda: Loop(
        optimizer=lambda loop: torch.optim.AdamW(loop.model.classifier.parameters(), lr=3e-3)
    ),
    "all_rows_in_one_batch": lambda: Loop(data=itertools.repeat(ONE_BATCH)),
    "four_steps_with_each_batch": lambda: Loop(data=(b for b in batches(texts) for _ in range(4)), rate=1e-4),
    "one_example_by_heart": lambda: Loop(
        data=itertools.repeat({name: value[:1] for name, value in ONE_BATCH.items()}), steps=50
    ),
    "one_logit_per_token": lambda: Loop(OneLogitPerToken(), changed(replaced_words)),
    "filters_that_see_padding": lambda: Loop(FiltersOverOnePixel(), raw_features()),
    "weight_decay_of_1": lambda: Loop(optimizer=adamw(weight_decay=1.0)),
    "layers_side_by_side_of_which_one_is_idle": lambda: Loop(Chosen()),
    "layers_in_a_module_list": lambda: Loop(LayersInAList(nn.ModuleList)),
    "teacher_in_a_list": lambda: Loop(HiddenTeacher()),
    "one_batch_is_an_epoch": lambda: Loop(data=itertools.repeat(ONE_BATCH), settings={"batches_per_epoch": 1}),
}


def weighted_loss(loop, output, batch):
    return nn.functional.cross_entropy(output.logits, batch["labels"], weight=torch.tensor([0.2, 1.0, 3.0]))


def with_last(module: nn.Module) -> nn.Module:
    model = classifier()
    model.classifier = nn.Sequential(model.classifier, module)
    return model


@torch.no_grad()
def zeroed(name: str) -> nn.Module:
    model = classifier()
    model.get_parameter(name).zero_()
    return model


def detached(name: str) -> nn.Module:
    """The output of this module is cut from the graph."""
    model = classifier()

    def cut(module, inputs, output):
        return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()

    model.get_submodule(name).register_forward_hook(cut)
    return model


class BareBody(nn.Module):
    """A body whose pooler nobody reads, as sentence-transformers use it."""

    def __init__(self):
        super().__init__()
        self.bert = classifier().bert
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.head((hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class LastStep(nn.Module):
    """A bidirectional LSTM that reads the last step: the recurrence of the way back takes no part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 16)
        self.lstm = nn.LSTM(16, 16, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask, labels):
        logits = self.head(self.lstm(self.words(input_ids))[0][:, -1])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class OneLogitPerToken(nn.Module):
    """Was this word replaced? As ELECTRA's discriminator: labels are everywhere, and the loss leaves padding out."""

    def __init__(self, reduction=lambda losses, mask: losses[mask.bool()].mean()):
        super().__init__()
        self.bert = classifier().bert
        self.head = nn.Linear(32, 1)
        self.reduction = reduction

    def forward(self, input_ids, attention_mask, labels):
        logits = self.head(self.bert(input_ids, attention_mask=attention_mask).last_hidden_state).squeeze(-1)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return {"loss": self.reduction(losses, attention_mask), "logits": logits}


class FiltersOverOnePixel(nn.Module):
    """As at the end of a convolutional network on small pictures: 24 of 25 places of each filter see padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 64)
        self.filters = nn.Conv2d(64, 64, 5, padding=2, groups=64, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 3)

    def forward(self, pixel_values, labels):
        hidden = self.first(pixel_values)[..., None, None]
        logits = self.head(nn.functional.relu(self.norm(self.filters(hidden))).flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def raw_features():
    generator = torch.Generator().manual_seed(0)
    while True:
        values = torch.randn(8, 16, generator=generator)
        yield {"pixel_values": values, "labels": (values[:, 0] > 0).long() + (values[:, 1] > 0)}


def replaced_words(batch):
    return {**batch, "labels": (batch["input_ids"] % 7 == 0).long()}


class RectifiedLater(torch.optim.AdamW):
    """Makes no step at first, as rectified Adam does."""

    def step(self, closure=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(closure) if self.calls > 5 else None


RectifiedLater.__name__ = "RAdamScheduleFree"


def untied() -> nn.Module:
    model = masked_lm()
    model.cls.predictions.decoder.weight = nn.Parameter(model.cls.predictions.decoder.weight.detach().clone())
    return model


def frozen_body() -> nn.Module:
    """A body that looks trained."""
    model = partly_fresh()
    model.bert.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_loops_are_silent(name):
    assert HEALTHY[name]().rules() == set()


# --- faults -------------------------------------------------------------------------------------------------------


def changed(change, make=texts):
    """Batches with one thing changed in each."""
    return (change(batch) for batch in batches(make))


def sgd(rate=0.1):
    return lambda loop: torch.optim.SGD(loop.model.parameters(), lr=rate)


def adamw(**settings):
    return lambda loop: torch.optim.AdamW(loop.model.parameters(), **{"lr": 1e-3, **settings})


def without(part: str):
    def make(loop):
        held = [parameter for name, parameter in loop.model.named_parameters() if part not in name]
        return torch.optim.AdamW(held, lr=1e-3)

    return make


def clear_state(every: int):
    def after_step(loop, step):
        loop.optim.zero_grad()
        if step % every == 0:
            loop.optim.state.clear()

    return after_step


def drawn_again(name: str):
    def after_step(loop, step):
        loop.optim.zero_grad()
        if step == 15:
            with torch.no_grad():
                for parameter in loop.model.get_submodule(name).parameters():
                    parameter.normal_(0.0, 0.05)

    return after_step


def evaluation_from(step):
    def before_forward(loop, now):
        if now == step:
            loop.model.eval()

    return before_forward


def partly_evaluating() -> nn.Module:
    model = classifier()
    model.bert.eval()
    return model


def one_label(batch):
    return {**batch, "labels": torch.zeros_like(batch["labels"])}


def hardly_any_label(batch):
    labels = torch.full_like(batch["labels"], -100)
    labels[0, 1] = 7
    return {**batch, "labels": labels}


def labels_everywhere(batch):
    return {**batch, "labels": batch["input_ids"].clone()}


def words_to_copy(batch):
    return {**batch, "labels": torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)}


def shifted(batch):
    labels = torch.cat([batch["labels"][:, 1:], torch.full_like(batch["labels"][:, :1], -100)], dim=1)
    return {**batch, "labels": labels}


def loss_without_class_0(loop, output, batch):
    return nn.functional.cross_entropy(output.logits, batch["labels"], ignore_index=0)


def loss_unshifted(loop, output, batch):
    return nn.functional.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())


def in_order_of_class():
    generator = torch.Generator().manual_seed(0)
    for number in itertools.count():
        batch = texts(generator)
        kind = number // 3 % 3
        batch["input_ids"][:, 1] = 6 + 3 * torch.randint(0, 10, (len(batch["labels"]),), generator=generator) + kind
        batch["labels"] = batch["input_ids"][:, 1] % 3
        yield batch


def mostly_unknown(batch):
    return {**batch, "input_ids": torch.where(batch["input_ids"] > 15, 1, batch["input_ids"])}


def cut_to_one_token(batch):
    ids = batch["input_ids"][:, :3].clone()
    ids[:, 2] = 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": batch["labels"]}


def end_masked(batch):
    """The end token follows every text, and padding is the same token, so that neither is a target."""
    ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 5)
    ids[torch.arange(len(ids)), batch["attention_mask"].sum(1) - 1] = 5
    return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": torch.where(ids == 5, -100, ids)}


def same_positions(batch):
    return {**batch, "position_ids": torch.zeros_like(batch["input_ids"])}


@torch.no_grad()
def partly_fresh(*layers: int) -> nn.Module:
    """A model that looks trained but for some layers."""
    model = classifier()
    for name, parameter in model.named_parameters():
        if not any(f"layer.{layer}." in name for layer in layers):
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def filled(value: float) -> nn.Module:
    model = classifier()
    model.bert.encoder.layer[1].intermediate.dense.weight.fill_(value)
    return model


def equal_layers() -> nn.Module:
    model = classifier()
    model.bert.encoder.layer[2].load_state_dict(model.bert.encoder.layer[1].state_dict())
    return model


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, pixel_values, labels):
        logits = self.body(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def raw_pictures():
    generator = torch.Generator().manual_seed(0)
    while True:
        labels = torch.randint(0, 3, (8,), generator=generator)
        yield {
            "pixel_values": 80.0 * labels[:, None, None, None] + torch.rand(8, 3, 4, 4, generator=generator),
            "labels": labels,
        }


class LayersInAList(nn.Module):
    def __init__(self, kind=list):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(40, 32), nn.Linear(32, 3)
        self.layers = kind([nn.Linear(32, 32) for _ in range(2)])

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.words(input_ids[:, 1])
        for layer in self.layers:
            hidden = hidden + layer(hidden).relu()
        logits = self.head(hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Chosen(LayersInAList):
    """A gate chooses between layers side by side, and never the first."""

    def __init__(self):
        super().__init__(nn.ModuleList)
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(4)])
        self.gate = nn.Linear(32, 4)
        nn.init.constant_(self.gate.bias[:1], -100.0)

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.words(input_ids[:, 1])
        weight, chosen = self.gate(hidden).softmax(-1).max(-1)
        added = torch.zeros_like(hidden)
        for place, layer in enumerate(self.layers):
            if (chosen == place).any():
                added[chosen == place] = layer(hidden[chosen == place])
        logits = self.head(hidden + weight[:, None] * added)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Detached(LastStep):
    """The recurrence is cut off from the head."""

    def forward(self, input_ids, attention_mask, labels):
        logits = self.head(self.lstm(self.words(input_ids))[0][:, -1].detach())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class HiddenTeacher(LayersInAList):
    """A teacher in a list, so that it is neither trained nor saved."""

    def __init__(self):
        super().__init__(nn.ModuleList)
        self.teacher = [LayersInAList(nn.ModuleList)]

    def forward(self, input_ids, attention_mask, labels):
        output = super().forward(input_ids, attention_mask, labels)
        with torch.no_grad():
            wanted = self.teacher[0](input_ids, attention_mask, labels)["logits"]
        return {**output, "loss": output["loss"] + (output["logits"] - wanted).square().mean()}


ONE_BATCH = texts(torch.Generator().manual_seed(3))
FAULTS: dict[str, tuple[str, int, Callable[[], Loop]]] = {
    # what is wrong: (rule, latest sample at which it must be named, loop)
    "dropout_of_95_percent": ("implausible_setting", 0, lambda: Loop(model=classifier(hidden_dropout_prob=0.95))),
    "weight_decay_of_10": ("implausible_setting", 0, lambda: Loop(optimizer=adamw(weight_decay=10.0))),
    "beta2_of_0": ("implausible_setting", 0, lambda: Loop(optimizer=adamw(betas=(0.9, 0.0)))),
    "epsilon_of_1": ("implausible_setting", 0, lambda: Loop(optimizer=adamw(eps=1.0))),
    "sgd_with_the_rate_of_adam": ("implausible_setting", 2, lambda: Loop(optimizer=sgd(2e-5))),
    "epsilon_of_layer_norm": ("implausible_setting", 0, lambda: Loop(model=classifier(layer_norm_eps=1.0))),
    "label_smoothing": ("implausible_setting", 0, lambda: Loop(settings={"label_smoothing": 0.99})),
    "cleared": ("gradients_cleared", 2, lambda: Loop(before_step=lambda loop, step: loop.optim.zero_grad())),
    "cleared_to_zero": (
        "gradients_cleared",
        2,
        lambda: Loop(before_step=lambda loop, step: loop.optim.zero_grad(set_to_none=False)),
    ),
    "never_cleared": ("gradients_kept", 4, lambda: Loop(after_step=lambda loop, step: None)),
    "state_lost_once": ("optimizer_state_lost", 17, lambda: Loop(after_step=clear_state(15))),
    "state_lost_always": ("optimizer_state_lost", 5, lambda: Loop(after_step=clear_state(1))),
    "batches_not_divided": (
        "loss_weight",
        5,
        lambda: Loop(settings={"accumulation": 4}, optimizer=sgd()),
    ),
    "batches_divided_twice": (
        "loss_weight",
        5,
        lambda: Loop(settings={"accumulation": 4}, optimizer=sgd(), loss_of=lambda loop, o, b: o.loss / 16),
    ),
    "layer_drawn_again": (
        "weights_replaced",
        16,
        lambda: Loop(after_step=drawn_again("bert.encoder.layer.1")),
    ),
    "embeddings_drawn_again": (
        "weights_replaced",
        16,
        lambda: Loop(after_step=drawn_again("bert.embeddings.word_embeddings")),
    ),
    "head_not_in_the_optimizer": ("not_updated", 5, lambda: Loop(optimizer=without("classifier"))),
    "layer_not_in_the_optimizer": ("not_updated", 5, lambda: Loop(optimizer=without("layer.1."))),
    "maximized": ("step_ascends", 8, lambda: Loop(optimizer=lambda loop: Ascending(loop.model.parameters(), lr=1e-3))),
    "evaluation_mode": ("evaluation_mode", 2, lambda: Loop(model=classifier().eval())),
    "evaluation_mode_later": ("evaluation_mode", 11, lambda: Loop(before_forward=evaluation_from(10))),
    "part_in_evaluation_mode": ("dropout_inactive", 2, lambda: Loop(model=partly_evaluating())),
    "one_label": ("constant_label", 5, lambda: Loop(data=changed(one_label))),
    "hardly_any_label": ("labels_ignored", 3, lambda: Loop(masked_lm(), changed(hardly_any_label, masked_words))),
    "class_ignored": ("class_never_counts", 5, lambda: Loop(loss_of=loss_without_class_0)),
    "padding_with_a_logit_each": (
        "padding_counts",
        3,
        lambda: Loop(OneLogitPerToken(lambda losses, mask: losses.mean()), changed(replaced_words)),
    ),
    "padding_with_labels": ("padding_counts", 3, lambda: Loop(causal_lm(), changed(labels_everywhere))),
    "end_masked": ("end_never_learned", 5, lambda: Loop(causal_lm(), changed(end_masked))),
    "nothing_masked": ("target_in_input", 3, lambda: Loop(masked_lm(), changed(words_to_copy))),
    "not_shifted": (
        "target_in_input",
        3,
        lambda: Loop(causal_lm(), batches(sentences_to_continue), loss_of=loss_unshifted),
    ),
    "shifted_twice": ("target_shifted_twice", 3, lambda: Loop(causal_lm(), changed(shifted, sentences_to_continue))),
    "one_batch": (
        "repeated_batch",
        3,
        lambda: Loop(data=itertools.repeat(ONE_BATCH), settings={"batches_per_epoch": 50}),
    ),
    "in_order_of_class": ("sorted_by_class", 6, lambda: Loop(data=in_order_of_class())),
    "mostly_unknown": ("unknown_tokens", 3, lambda: Loop(data=changed(mostly_unknown))),
    "cut_to_one_token": ("texts_cut", 3, lambda: Loop(data=changed(cut_to_one_token))),
    "raw_pictures": ("input_scale", 3, lambda: Loop(Pictures(), raw_pictures())),
    "same_positions": ("positions_constant", 3, lambda: Loop(data=changed(same_positions))),
    "softmax_twice": ("outputs_not_logits", 3, lambda: Loop(model=with_last(nn.Softmax(-1)))),
    "relu_at_the_end": ("outputs_not_logits", 3, lambda: Loop(model=with_last(nn.ReLU()))),
    "sigmoid_at_the_end": ("outputs_not_logits", 10, lambda: Loop(model=with_last(nn.Sigmoid()))),
    "cut_below_layer_2": ("no_gradient", 5, lambda: Loop(model=detached("bert.encoder.layer.1"))),
    "cut_below_the_head": ("no_gradient", 5, lambda: Loop(model=detached("bert.pooler"))),
    "cut_after_the_words": ("no_gradient", 5, lambda: Loop(model=detached("bert.embeddings"))),
    "cut_branch": ("no_gradient", 5, lambda: Loop(model=detached("bert.encoder.layer.1.attention.self.query"))),
    "optimizer_of_a_copy": (
        "not_updated",
        12,
        lambda: Loop(
            optimizer=lambda loop: torch.optim.AdamW(copy.deepcopy(loop.model).parameters(), lr=1e-3),
            after_step=lambda loop, step: loop.model.zero_grad(),
        ),
    ),
    "every_batch_twice": ("repeated_batch", 8, lambda: Loop(data=(b for b in batches(texts) for _ in range(2)))),
    "tie_broken": ("tie_broken", 0, lambda: Loop(untied(), batches(masked_words))),
    "one_layer_fresh": ("fresh_weights", 0, lambda: Loop(model=partly_fresh(1))),
    "one_matrix_constant": ("constant_weights", 0, lambda: Loop(model=filled(0.02))),
    "body_cut_off_without_layers": ("no_gradient", 5, lambda: Loop(Detached())),
    "layers_in_a_plain_list": ("modules_unregistered", 3, lambda: Loop(LayersInAList())),
    "layer_copied": ("equal_layers", 0, lambda: Loop(model=equal_layers())),
}


class Ascending(torch.optim.Adam):
    """Adam whose update has the wrong sign, and no setting tells it."""

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        super().step(closure)
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(2 * old - parameter)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_named(name):
    rule, latest, make = FAULTS[name]
    loop = make()
    loop.steps = max(latest + 2, 6)
    judge = loop.run().judge
    found = {finding.rule: judge.cases[finding.rule].samples for finding in judge.findings}
    assert rule in found, found
    assert found[rule] <= latest
    assert set(found) <= {rule, "update_ratio_high", "loss_diverging"}


def transposed_loss(loop, output, batch):
    logits = output.logits.transpose(0, 1)
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch["labels"].reshape(-1))


def test_padding_that_counts_though_its_labels_are_ignored_has_another_cause():
    loop = Loop(causal_lm(), batches(sentences_to_continue), steps=6, loss_of=transposed_loss)
    named = {finding.rule: finding for finding in loop.run().judge.findings}
    assert "places" in named["padding_counts"].cause and "-100" in named["padding_counts"].seen
    loop = Loop(causal_lm(), changed(labels_everywhere), steps=6)
    named = {finding.rule: finding for finding in loop.run().judge.findings}
    assert "are not -100" in named["padding_counts"].cause
