"""Pre-training scores against transformers' own loss and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from transformers import EvalPrediction

from bert_toolkit.metrics.pretraining_scores import losses_and_predictions, pretraining_metrics

B, T, V = 6, 7, 11


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(B, T, V, generator=generator) * 3
    labels = torch.where(
        torch.rand(B, T, generator=generator) < 0.4, torch.randint(0, V, (B, T), generator=generator), -100
    )
    return words, labels, torch.randn(B, 2, generator=generator), torch.randint(0, 2, (B,), generator=generator)


@pytest.mark.parametrize("next_sentence", [True, False])
def test_scores(outputs, next_sentence):
    words, labels, pairs, following = outputs
    logits, targets = ((words, pairs), (labels, following)) if next_sentence else (words, labels)
    reduced = losses_and_predictions(logits, targets)
    assert reduced[0].shape == reduced[1].shape == (B, T)
    label_ids = tuple(t.numpy() for t in targets) if next_sentence else labels.numpy()
    found = pretraining_metrics(EvalPrediction(tuple(part.numpy() for part in reduced), label_ids))
    masked = labels != -100
    wanted = labels[masked].numpy()
    probabilities = words[masked].double().softmax(-1).numpy()
    assert found["mlm_loss"] == pytest.approx(log_loss(wanted, probabilities, labels=range(V)), rel=1e-6)
    assert found["mlm_accuracy"] == accuracy_score(wanted, probabilities.argmax(-1))
    assert found["perplexity"] == pytest.approx(np.exp(found["mlm_loss"]))
    assert found["unigram_accuracy"] == np.unique(wanted, return_counts=True)[1].max() / len(wanted)
    assert ("nsp_loss" in found) == next_sentence
    if next_sentence:
        probabilities = pairs.double().softmax(-1).numpy()
        assert found["nsp_loss"] == pytest.approx(log_loss(following, probabilities, labels=[0, 1]), rel=1e-6)
        assert found["nsp_accuracy"] == accuracy_score(following, probabilities.argmax(-1))
