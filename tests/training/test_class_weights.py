"""The loss of --class_weights balanced, against scikit-learn's weights and PyTorch's weighted cross-entropy."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.errors import InputError
from bert_toolkit.training.class_weights import class_weighted_loss


def corpus_of(labels, names=("a", "b", "c"), **more):
    rows = Dataset.from_dict({"text": ["x"] * len(labels), "label": labels})
    return CorpusSplits(rows, rows, rows, list(names), "text", "made here", **more)


LABELS = [0] * 50 + [1] * 10 + [2] * 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_class_weighs_the_same(smoothing):
    loss = class_weighted_loss(corpus_of(LABELS), "balanced", smoothing)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=np.array(LABELS))).double()
    torch.manual_seed(0)
    logits, labels = torch.randn(64, 3), torch.tensor(LABELS)
    expected = F.cross_entropy(logits.double(), labels, weights, label_smoothing=smoothing, reduction="sum") / 64
    assert float(loss({"logits": logits}, labels)) == pytest.approx(float(expected), rel=1e-6)
    # accumulated over batches of different sizes it is the loss of all rows
    parts = [loss({"logits": logits[rows]}, labels[rows], torch.tensor(64)) for rows in (slice(0, 40), slice(40, 64))]
    assert float(sum(parts)) == pytest.approx(float(expected), rel=1e-6)


def test_none_is_the_models_own_loss():
    assert class_weighted_loss(corpus_of(LABELS), "none") is None


@pytest.mark.parametrize(
    ("corpus", "word", "message"),
    [
        (corpus_of(LABELS), "inverse", "`class_weights` must be none or balanced, got inverse"),
        (corpus_of(LABELS, names=("a", "b", "c", "d")), "balanced", "rows of every class; 'd' has none"),
        (corpus_of([0.5, 1.5], problem_type="regression"), "balanced", "must be none for regression"),
    ],
)
def test_what_cannot_be_weighed_is_refused(corpus, word, message):
    with pytest.raises(InputError, match=message):
        class_weighted_loss(corpus, word)
