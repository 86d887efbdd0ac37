"""Loss, predictions, labels and inputs of watched forward passes, against direct computation."""

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForPreTraining

from bert_toolkit.health.forward_statistics import ForwardWatch


class Classifier(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.linear = nn.Linear(4, classes)

    def forward(self, x, attention_mask=None, labels=None, num_items_in_batch=None):
        logits = self.linear(x)
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = nn.functional.cross_entropy(logits, labels, reduction=reduction)
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch, "logits": logits}


def batch(seed, size=8):
    torch.manual_seed(seed)
    return {"x": torch.randn(size, 4), "labels": torch.randint(0, 3, (size,))}


def watched(model, *batches):
    watch = ForwardWatch(model)
    watch.start()
    outputs = [model(**b) for b in batches]
    return watch.stop().finish(), outputs


def test_loss_predictions_and_labels():
    model, one = Classifier(), batch(0)
    seen, (output,) = watched(model, one)
    assert seen.loss == pytest.approx(output["loss"].item(), rel=1e-6)
    counts = torch.bincount(output["logits"].argmax(-1), minlength=3)
    assert seen.top_share == pytest.approx(counts.max().item() / 8)
    assert seen.label_counts.tolist() == torch.bincount(one["labels"], minlength=3).tolist()
    assert seen.classes == 3
    assert seen.integer_labels and not seen.several_losses
    assert not seen.identical_inputs
    assert not seen.loss_nonfinite


def test_micro_batches_average_their_means():
    seen, outputs = watched(Classifier(), batch(0), batch(1))
    assert seen.loss == pytest.approx(sum(o["loss"].item() for o in outputs) / 2, rel=1e-6)
    assert seen.label_counts.sum() == 16


def test_micro_batches_add_up_parts_of_a_mean():
    parts = [{**batch(s, size), "num_items_in_batch": 20} for s, size in ((0, 8), (1, 12))]
    model = Classifier()
    seen, _ = watched(model, *parts)
    x, labels = (torch.cat([p[key] for p in parts]) for key in ("x", "labels"))
    assert seen.loss == pytest.approx(nn.functional.cross_entropy(model.linear(x), labels).item(), rel=1e-5)


def test_identical_inputs_and_hidden_tokens():
    same = batch(0)
    same["x"] = same["x"][:1].expand(8, -1).clone()
    same["attention_mask"] = torch.ones(8, 5, dtype=torch.long)
    seen, _ = watched(Classifier(), same)
    assert seen.identical_inputs
    assert seen.masked_share == 0.0
    hidden = batch(0)
    hidden["attention_mask"] = torch.ones(8, 5, dtype=torch.long)
    hidden["attention_mask"][:2] = 0
    seen, _ = watched(Classifier(), hidden)
    assert seen.masked_share == 0.25
    assert not seen.identical_inputs


def test_a_single_example_is_not_called_identical():
    seen, _ = watched(Classifier(), batch(0, size=1))
    assert not seen.identical_inputs


def test_nan_loss():
    bad = batch(0)
    bad["x"][0, 0] = math.nan
    seen, _ = watched(Classifier(), bad)
    assert seen.loss_nonfinite
    assert math.isnan(seen.loss)


@pytest.mark.parametrize("form", ["tuple", "loss only", "nothing"])
def test_outputs_of_other_forms(form):
    class Other(Classifier):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            return {"tuple": (output["loss"], output["logits"]), "loss only": output["loss"], "nothing": None}[form]

    seen, _ = watched(Other(), batch(0))
    assert math.isnan(seen.loss) == (form == "nothing")
    assert not seen.loss_nonfinite
    assert seen.classes == (3 if form == "tuple" else 0)


def test_token_labels_and_regression_have_no_class_counts():
    class Tokens(nn.Module):
        def forward(self, input_ids, labels):
            logits = nn.functional.one_hot(input_ids, 7).float()
            return {"loss": logits.sum(), "logits": logits}

    ids = torch.randint(0, 7, (3, 5))
    seen, _ = watched(Tokens(), {"input_ids": ids, "labels": ids})
    assert seen.label_counts.size == 0
    assert math.isnan(seen.top_share)
    assert seen.classes == 7


def test_the_words_head_of_a_model_for_pretraining_is_read():
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ids = torch.randint(0, 11, (3, 5))
    inputs = {"input_ids": ids, "labels": ids, "next_sentence_label": torch.tensor([0, 1, 0])}
    seen, (output,) = watched(BertForPreTraining(config).train(), inputs)
    assert seen.classes == 11
    assert seen.integer_labels and seen.several_losses
    assert seen.loss == pytest.approx(output.loss.item(), rel=1e-6)


def test_evaluation_is_not_watched_and_nothing_stays_behind():
    model = Classifier().eval()
    with torch.no_grad():
        seen, _ = watched(model, batch(0))
    assert math.isnan(seen.loss)
    assert not model._forward_hooks
