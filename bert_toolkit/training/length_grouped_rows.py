"""Rows in batches of nearly equal length, in a new order in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

# Sorted together: enough that batches hold little padding, few enough that a batch's company changes every epoch. At
# least four windows per epoch, as in Trainer's group_by_length: sorted as a whole, a small dataset makes batches of
# one length each, and `recipes/cola.py` on the sample then stayed at chance with one seed of three (42).
_SORTED_GROUPS, _FEWEST_WINDOWS = 50, 4


class LengthGroupedRows(Dataset):
    """A dataset whose rows stand in groups of nearly equal length, the groups in random order.

    Shuffles the rows, sorts them by length within windows of 50 groups (fewer, so that an epoch has at least four
    windows), then shuffles the groups; the last, smaller group stays last. The order is a function of (seed, epoch).
    Use it with `TrainingArguments(train_sampling_strategy="sequential")`; Accelerate's data loaders call `set_epoch`.

    Trainer's own `group_by_length` saves as much padding, but sends each window from its longest batch to its
    shortest, so that lengths drift in waves through an epoch; it draws from the global random state, which
    differs after a resume and between processes; and it groups the rows of evaluation too and returns
    predictions in that order.

    Args:
        rows: Anything with a length and items by number, such as `datasets.Dataset`.
        lengths: Tokens of each row, (n,).
        group_size: Rows of one forward pass on all processes.
        seed: Of the order.

    Raises:
        ValueError: `lengths` is not as long as `rows`, or `group_size` is not positive.
    """

    def __init__(self, rows: Any, lengths: Sequence[int], group_size: int, seed: int = 0) -> None:
        """Make the order of the first epoch."""
        if len(lengths) != len(rows):
            raise ValueError(f"lengths must be given for all {len(rows)} rows, got {len(lengths)}")
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        self.rows = rows
        self.group_size = group_size
        self.seed = seed
        self._lengths = np.asarray(lengths)
        # shared memory, so that persistent workers see a later epoch
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._order, self._order_epoch = self._make_order(0), 0

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """The row that stands at `index` in the present epoch."""
        return self.rows[int(self.order[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Rows of a batch, fetched at once where `rows` can; PyTorch's data loaders call it.

        Args:
            indices: Places in the present epoch.

        Returns:
            The rows.
        """
        places = self.order[list(indices)].tolist()
        fetch = getattr(self.rows, "__getitems__", None)
        return fetch(places) if fetch else [self.rows[place] for place in places]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; workers that are already running follow.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self._epoch[0] = epoch

    @property
    def order(self) -> np.ndarray:
        """The number of the row at each place of the present epoch, (n,)."""
        epoch = int(self._epoch[0])
        if epoch != self._order_epoch:
            self._order, self._order_epoch = self._make_order(epoch), epoch
        return self._order

    def _make_order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch])
        order, size = generator.permutation(len(self.rows)), self.group_size
        rest, order = np.split(order, [len(order) % size])  # rows that fill no group: of all lengths
        length = size * max(1, min(_SORTED_GROUPS, len(order) // size // _FEWEST_WINDOWS))
        for begin in range(0, len(order), length):
            window = order[begin : begin + length]
            window[:] = window[np.argsort(self._lengths[window], kind="stable")]
        return np.concatenate([generator.permutation(order.reshape(-1, size)).ravel(), rest])
