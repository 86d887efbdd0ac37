"""Recurrent networks, embeddings, graphs and small algorithms in plain loops."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_injection.healthy_programs.plain_loops import endless, plain_loop
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Setup,
    program,
)
from benchmarks.fault_injection.healthy_programs.texts import source_rows, spoken, word_tokenizer
from benchmarks.fault_injection.healthy_programs.vision import digits


class LastStep(nn.Module):
    """A bidirectional LSTM of which only the last step is read."""

    def __init__(self, words: int, cell: type[nn.RNNBase] = nn.LSTM):
        super().__init__()
        self.embed = nn.Embedding(words, 48, padding_idx=0)
        self.lstm = cell(48, 48, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        hidden, _ = self.lstm(self.embed(input_ids))
        logits = self.head(hidden[:, -1])
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def left_padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Token ids, padded on the left so that the last step is a word, and labels."""
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row["input_ids"])) + row["input_ids"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


@program(TUNING)
def bidirectional_lstm_last_step(setup: Setup) -> Ready:
    """The reverse direction sees one word before it is read: its recurrent weights get no gradient."""
    model = LastStep(len(word_tokenizer()))
    batches = endless(source_rows(word_tokenizer()), 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return plain_loop(setup, model, optimizer, 120, lambda: model(**left_padded(next(batches)))["loss"], to=0.5)


@program(HELD_OUT)
def gru_tagger(setup: Setup) -> Ready:
    """A GRU that says for each word whether the next one is frequent."""
    tokenizer = word_tokenizer()

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(len(tokenizer), 32)
            self.gru = nn.GRU(32, 64, num_layers=2, batch_first=True, dropout=0.2)
            self.head = nn.Linear(64, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.gru(self.embed(ids))[0])

    model = Tagger()
    rows = [tokenizer(text, truncation=True, max_length=12, padding="max_length")["input_ids"] for _, text in spoken()]
    batches = endless(rows[:3000], 16)

    def loss() -> Tensor:
        ids = torch.tensor(next(batches))
        logits = model(ids[:, :-1])
        wanted = (ids[:, 1:] < 40).long().masked_fill(ids[:, 1:] == 0, -100)
        return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=3e-3), 1000, loss, clip=1.0, to=0.85)


@program(TUNING)
def lstm_with_ctc(setup: Setup) -> Ready:
    """Connectionist temporal classification of rows of digits."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 64, batch_first=True, bidirectional=True)
            self.head = nn.Linear(128, 11)

        def forward(self, columns: Tensor) -> Tensor:
            return self.head(self.lstm(columns)[0]).log_softmax(-1)

    rows = digits()
    model = Reader()
    chance = random.Random(0)

    def loss() -> Tensor:
        lines = [chance.sample(rows[:600], 3) for _ in range(16)]
        columns = torch.stack([torch.cat([row["pixel_values"][0].T for row in line]) for line in lines])
        labels = torch.tensor([[row["labels"] + 1 for row in line] for line in lines])
        found = model(columns).transpose(0, 1)
        return functional.ctc_loss(found, labels, torch.full((16,), 24), torch.full((16,), 3))

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=1e-2), 200, loss, clip=5.0, to=0.6)


@program(TUNING)
def parity(setup: Setup) -> Ready:
    """Parity of five bits among twenty: the loss stays at ln 2 for long before it falls."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(1)

    def loss() -> Tensor:
        bits = torch.randint(0, 2, (256, 20), generator=generator).float()
        wanted = bits[:, :3].sum(-1) % 2
        return functional.binary_cross_entropy_with_logits(model(2 * bits - 1).squeeze(-1), wanted)

    return plain_loop(setup, model, optimizer, 250, loss, to=0.5)


@program(TUNING, every_n_steps=4)
def modular_addition(setup: Setup) -> Ready:
    """Sums modulo 29 from half of the table, as in papers on grokking: learned by heart, the rest later or never."""
    pairs = torch.cartesian_prod(torch.arange(29), torch.arange(29))
    chosen = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:420]]

    class Adder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(29, 64)
            self.layers = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 29))

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.layers(self.embed(input_ids).flatten(1))
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    model = Adder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1.0, betas=(0.9, 0.98))
    return plain_loop(
        setup, model, optimizer, 250, lambda: model(input_ids=chosen, labels=chosen.sum(-1) % 29)["loss"], to=0.5
    )


@program(HELD_OUT)
def word_vectors(setup: Setup) -> Ready:
    """Skip-gram with negative samples, sparse gradients and plain SGD."""
    tokenizer = word_tokenizer()

    class SkipGram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Embedding(len(tokenizer), 32, sparse=True)
            self.outer = nn.Embedding(len(tokenizer), 32, sparse=True)
            nn.init.zeros_(self.outer.weight)

        def forward(self, center: Tensor, around: Tensor, noise: Tensor) -> Tensor:
            vectors = self.inner(center)[:, :, None]
            near = (self.outer(around) @ vectors).squeeze(-1)
            far = (self.outer(noise) @ vectors).squeeze(-1)
            return functional.softplus(-near).mean() + functional.softplus(far).mean()

    pairs = [
        (ids[i], ids[i + 1])
        for _, text in spoken()[:2000]
        for ids in [tokenizer(text, add_special_tokens=False)["input_ids"]]
        for i in range(len(ids) - 1)
    ]
    model = SkipGram()
    batches = endless(pairs, 256)

    def loss() -> Tensor:
        pair = torch.tensor(next(batches))
        return model(pair[:, 0], pair[:, 1:], torch.randint(0, len(tokenizer), (256, 5)))

    return plain_loop(setup, model, torch.optim.SGD(model.parameters(), lr=20.0), 250, loss, to=0.85)


@program(TUNING)
def matrix_factorization(setup: Setup) -> Ready:
    """Nothing but embeddings: who spoke which word."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users = nn.Embedding(200, 16)
            self.items = nn.Embedding(300, 16)
            for table in (self.users, self.items):
                nn.init.normal_(table.weight, std=0.1)

        def forward(self, users: Tensor, items: Tensor) -> Tensor:
            return (self.users(users) * self.items(items)).sum(-1)

    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, 3, generator=generator) @ torch.randn(3, 300, generator=generator)
    model = Factors()

    def loss() -> Tensor:
        users = torch.randint(0, 200, (512,), generator=generator)
        items = torch.randint(0, 300, (512,), generator=generator)
        return functional.mse_loss(model(users, items), truth[users, items])

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=2e-2), 250, loss, to=0.4)


@program(TUNING)
def graph_network(setup: Setup) -> Ready:
    """A graph convolution over the whole graph in every step: the same batch again and again, as it must be."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(120) % 3
    near = torch.rand(120, 120, generator=generator) < torch.where(group[:, None] == group, 0.15, 0.02)
    edges = (near | near.T | torch.eye(120, dtype=torch.bool)).float()
    edges = edges / edges.sum(-1, keepdim=True)

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 3)

        def forward(self, features: Tensor) -> Tensor:
            return self.second(edges @ functional.relu(self.first(edges @ features)))

    features = torch.randn(120, 32, generator=generator) + 0.5 * functional.one_hot(group, 32)
    seen = torch.rand(120, generator=generator) < 0.3
    model = Convolution()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
    return plain_loop(
        setup, model, optimizer, 150, lambda: functional.cross_entropy(model(features)[seen], group[seen]), to=0.3
    )
