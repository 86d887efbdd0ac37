"""Regressions and densities with losses of every size, and networks whose weights are odd on purpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks.fault_injection.healthy_programs.plain_loops import diabetes, endless, mlp, plain_loop
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Loop,
    Ready,
    Setup,
    program,
)
from benchmarks.fault_injection.healthy_programs.vision import digits, stack


@program(TUNING)
def regression_with_large_targets(setup: Setup) -> Ready:
    """Targets about 150, not standardized: squared errors in the tens of thousands."""
    inputs, targets = diabetes()
    model = mlp(10, 1)
    batches = endless(list(range(442)), 32)

    def loss() -> Tensor:
        rows = next(batches)
        return functional.mse_loss(model(inputs[rows]).squeeze(-1), targets[rows])

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=1e-2), 250, loss, to=0.25)


@program(TUNING)
def house_prices(setup: Setup) -> Ready:
    """Targets in the hundreds of thousands and losses in the ten-billions, with a large rate."""
    inputs, targets = diabetes()
    model = mlp(10, 1)
    batches = endless(list(range(442)), 32)

    def loss() -> Tensor:
        rows = next(batches)
        return functional.mse_loss(model(inputs[rows]).squeeze(-1), targets[rows] * 2000)

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=0.1), 250, loss, to=0.3)


@program(TUNING)
def tiny_loss(setup: Setup) -> Ready:
    """Targets of about 1e-4: losses of about 1e-8."""
    inputs, targets = diabetes()
    model = mlp(10, 1)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    batches = endless(list(range(442)), 32)

    def loss() -> Tensor:
        rows = next(batches)
        return functional.mse_loss(model(inputs[rows]).squeeze(-1), (targets[rows] - 152) * 1e-6)

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=1e-6), 400, loss, to=0.75)


@program(HELD_OUT)
def summed_loss(setup: Setup) -> Ready:
    """Losses are summed over the batch, and the rate is small to match."""
    inputs, targets = diabetes()
    model = mlp(10, 1)
    batches = endless(list(range(442)), 64)

    def loss() -> Tensor:
        rows = next(batches)
        error = model(inputs[rows]).squeeze(-1) - (targets[rows] - 152) / 77
        return error.square().sum()

    return plain_loop(setup, model, torch.optim.SGD(model.parameters(), lr=3e-4, momentum=0.9), 200, loss, to=0.7)


@program(TUNING)
def table_with_dropout(setup: Setup) -> Ready:
    """Rows of a table, BatchNorm and a dropout of one half."""
    inputs, targets = diabetes()
    wanted = (targets > 140).long()
    model = nn.Sequential(
        nn.Linear(10, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 2),
    )
    batches = endless(list(range(442)), 32)

    def loss() -> Tensor:
        rows = next(batches)
        return functional.cross_entropy(model(inputs[rows]), wanted[rows])

    return plain_loop(setup, model, torch.optim.AdamW(model.parameters(), lr=5e-3), 150, loss, to=0.8)


@program(HELD_OUT)
def differential_equation(setup: Setup) -> Ready:
    """A network that solves u'' = -u, by derivatives of its own output."""
    model = mlp(1, 1, 32, nn.Tanh)

    def loss() -> Tensor:
        time = (6.28 * torch.rand(64, 1)).requires_grad_()
        value = model(time)
        (speed,) = torch.autograd.grad(value.sum(), time, create_graph=True)
        (acceleration,) = torch.autograd.grad(speed.sum(), time, create_graph=True)
        start = torch.zeros(1, 1, requires_grad=True)
        (first,) = torch.autograd.grad(model(start).sum(), start, create_graph=True)
        return (acceleration + value).square().mean() + model(start).square().sum() + (first - 1).square().sum()

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=5e-3), 250, loss, to=0.5)


@program(HELD_OUT)
def mixture_density(setup: Setup) -> Ready:
    """Five Gaussians whose weights depend on the input: a log-density that may have either sign."""
    model = mlp(1, 15, 64, nn.Tanh)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        wanted = 2 * torch.rand(128, 1, generator=generator) - 1
        inputs = wanted + 0.3 * torch.sin(6 * wanted) + 0.02 * torch.randn(128, 1, generator=generator)
        weight, mean, log_scale = model(inputs).chunk(3, -1)
        density = torch.distributions.Normal(mean, log_scale.clamp(-5, 3).exp()).log_prob(wanted)
        return -(density + weight.log_softmax(-1)).logsumexp(-1).mean()

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=5e-3), 250, loss, to=0.3)


@program(TUNING)
def sinusoidal_network(setup: Setup) -> Ready:
    """SIREN: sines instead of ReLUs, and weights that are far larger in the first layer, as the paper asks."""

    class Sine(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.sin(30 * inputs)

    model = mlp(2, 1, 64, Sine)
    with torch.no_grad():
        model[0].weight.uniform_(-1 / 2, 1 / 2)
        for layer in (model[2], model[4]):
            bound = math.sqrt(6 / 64) / 30
            layer.weight.uniform_(-bound, bound)
    image = digits()[0]["pixel_values"][0].flatten()
    points = torch.cartesian_prod(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return plain_loop(
        setup, model, optimizer, 200, lambda: functional.mse_loss(model(points).squeeze(-1), image), to=0.3
    )


@program(TUNING, every_n_steps=1)
def closure_of_lbfgs(setup: Setup) -> Ready:
    """L-BFGS, which computes loss and gradient several times in each of its steps."""
    inputs, targets = diabetes()
    wanted = (targets - 152) / 77
    model = mlp(10, 1, 16, nn.Tanh)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=10, line_search_fn="strong_wolfe")
    loop = Loop(setup, model, optimizer, 60)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(inputs).squeeze(-1), wanted)
        loss.backward()
        return loss

    def run() -> None:
        with loop:
            for _ in range(loop.steps):
                loop.log(optimizer.step(closure).detach())

    return Ready(run, model, lambda: loop.loss_fell(0.5))


@program(HELD_OUT)
def pruned_network(setup: Setup) -> Ready:
    """Seven tenths of the weights are cut away and stay zero."""
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Flatten(), *mlp(64, 10, 96))
    for layer in model:
        if isinstance(layer, nn.Linear):
            prune.random_unstructured(layer, "weight", amount=0.7)
    batches = endless(digits()[:1400], 32)

    def loss() -> Tensor:
        batch = stack(next(batches))
        return functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=3e-3), 150, loss, to=0.4)


@program(TUNING)
def normalized_weights(setup: Setup) -> Ready:
    """Weight normalization and spectral normalization by PyTorch's parametrizations."""
    model = nn.Sequential(
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(64, 96)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(96, 96)),
        nn.ReLU(),
        nn.Linear(96, 10),
    )
    batches = endless(digits()[:1400], 32)

    def loss() -> Tensor:
        batch = stack(next(batches))
        return functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=3e-3), 150, loss, to=0.4)
