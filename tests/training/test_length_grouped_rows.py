"""Every row once an epoch, little padding, no drift of lengths, and the same order wherever it is asked for."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from bert_toolkit.training.length_grouped_rows import LengthGroupedRows


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_every_row_once(count, group_size, seed, epoch):
    lengths = np.random.default_rng(0).integers(1, 50, count)
    rows = LengthGroupedRows(range(count), lengths, group_size, seed)
    rows.set_epoch(epoch)
    seen = [rows[i] for i in range(len(rows))]
    assert sorted(seen) == list(range(count))
    again = LengthGroupedRows(range(count), lengths, group_size, seed)
    again.set_epoch(epoch)
    assert again.__getitems__(range(count)) == seen


def test_little_padding_and_no_drift_through_the_epoch():
    generator = np.random.default_rng(1)
    lengths = generator.lognormal(2.3, 0.4, 8551).astype(int) + 3
    rows = LengthGroupedRows(range(8551), lengths, 32, 7)
    correlations = []
    for epoch in range(20):
        rows.set_epoch(epoch)
        batches = [lengths[rows.order[i : i + 32]] for i in range(0, 8551, 32)]
        padded = sum(len(batch) * batch.max() for batch in batches)
        assert lengths.sum() / padded > 0.93
        means = np.array([batch.mean() for batch in batches])
        correlations.append(np.corrcoef(means[:-1], means[1:])[0, 1])
    # 267 batches an epoch, 20 epochs: neighbors of a random order correlate by 0 ± 0.014
    assert abs(np.mean(correlations)) < 0.06


def test_batches_of_a_small_dataset_mix_lengths():
    lengths = np.random.default_rng(2).integers(5, 13, 1440)
    order = LengthGroupedRows(range(1440), lengths, 32, 7).order
    mixed = sum(len(set(lengths[order[i : i + 32]])) > 1 for i in range(0, 1440, 32))
    assert mixed >= 20  # of 45; sorted as a whole, one where each of the 8 lengths ends


def test_epochs_and_seeds_differ():
    lengths = np.arange(100) % 9
    orders = {tuple(LengthGroupedRows(range(100), lengths, 4, seed).order) for seed in range(5)}
    rows = LengthGroupedRows(range(100), lengths, 4, 0)
    for epoch in range(1, 5):
        rows.set_epoch(epoch)
        orders.add(tuple(rows.order))
    assert len(orders) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_the_epoch(workers):
    rows = LengthGroupedRows(torch.arange(64), np.arange(64) % 7, 8, 3)
    loader = DataLoader(rows, batch_size=8, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 4):
        rows.set_epoch(epoch)
        assert torch.cat(list(loader)).tolist() == rows.order.tolist()


def test_trainer_tells_the_epoch(tmp_path):
    """What reaches the model in each epoch of a real Trainer is this dataset's order of that epoch."""
    rows = LengthGroupedRows(
        datasets.Dataset.from_dict({"x": [[float(i)] for i in range(24)], "unused": ["a"] * 24}), [1] * 24, 4, 5
    )

    class Keeper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = []

        def forward(self, x):
            self.seen += x[:, 0].int().tolist()
            return {"loss": (self.weight * x).sum()}

    model = Keeper()
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=3, train_sampling_strategy="sequential",
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    expected = []
    for epoch in range(3):
        rows.set_epoch(epoch)
        expected += rows.order.tolist()
    assert model.seen == expected


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="all 3 rows, got 2"):
        LengthGroupedRows(range(3), [1, 2], 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LengthGroupedRows(range(3), [1, 2, 3], 0)
