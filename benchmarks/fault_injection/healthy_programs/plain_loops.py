"""The training loop that everyone writes, with callbacks told about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.fault_injection.healthy_programs.program import (
    Loop,
    Ready,
    Score,
    Setup,
)


def endless(rows: list[Any], batch: int, seed: int = 0) -> Iterator[list[Any]]:
    """Shuffled batches without end."""
    chance = random.Random(seed)
    while True:
        order = chance.sample(rows, len(rows))
        yield from (order[i : i + batch] for i in range(0, len(order) - batch + 1, batch))


def plain_loop(
    setup: Setup,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss_of: Callable[[], Tensor],
    *,
    to: float = 0.7,
    clip: float = 0.0,
    score: Callable[[], Score] | None = None,
    before_step: Callable[[], None] | None = None,
) -> Ready:
    """The loop that everyone writes: loss, backward, step.

    Args:
        setup: The circumstances.
        model: What is trained.
        optimizer: Its optimizer.
        steps: Number of steps.
        loss_of: Draws a batch and gives its loss.
        to: The part of its first level to which the loss must fall.
        clip: Norm to which gradients are clipped, 0 for none.
        score: Measures instead.
        before_step: Called between the backward pass and the optimizer's step.
    """
    loop = Loop(setup, model, optimizer, steps)

    def run() -> None:
        model.train()
        with loop:
            for _ in range(loop.steps):
                loss = loss_of()
                loss.backward()
                if clip:
                    clip_grad_norm_(model.parameters(), clip)
                if before_step is not None:
                    before_step()
                loop.log(loss.detach())
                optimizer.step()
                optimizer.zero_grad()

    return Ready(run, model, score or (lambda: loop.loss_fell(to)))


def mlp(inputs: int, outputs: int, width: int = 64, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, outputs)
    )


def diabetes() -> tuple[Tensor, Tensor]:
    """442 patients, ten measurements, and a number between 25 and 346."""
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True)
    return torch.tensor(inputs * 21, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)
