"""Policies, adversaries, margins and several tasks in plain loops."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_injection.healthy_programs.plain_loops import endless, mlp, plain_loop
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Loop,
    Ready,
    Score,
    Setup,
    program,
)
from benchmarks.fault_injection.healthy_programs.vision import digits, stack


@program(TUNING)
def policy_gradient(setup: Setup) -> Ready:
    """REINFORCE on a bandit with contexts: the loss is an advantage times a log-probability, of either sign."""
    model = mlp(4, 4, 32, nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    rewards: list[float] = []
    average = [0.0]

    def loss() -> Tensor:
        context = torch.eye(4)[torch.randint(0, 4, (64,), generator=generator)]
        policy = torch.distributions.Categorical(logits=model(context))
        action = policy.sample()
        reward = (action == context.argmax(-1)).float()
        rewards.append(float(reward.mean()))
        average[0] = 0.9 * average[0] + 0.1 * rewards[-1]
        return -(policy.log_prob(action) * (reward - average[0])).mean() - 0.01 * policy.entropy().mean()

    return plain_loop(
        setup,
        model,
        optimizer,
        150,
        loss,
        score=lambda: Score("reward", sum(rewards[-20:]) / 20, 0.9, higher=True, before=rewards[0]),
    )


class ActorCritic(nn.Module):
    """A policy and a value on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.Tanh())
        self.policy = nn.Linear(64, 3)
        self.value = nn.Linear(64, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the actions, and the value."""
        hidden = self.body(state)
        return self.policy(hidden), self.value(hidden).squeeze(-1)


@program(TUNING)
def proximal_policy(setup: Setup) -> Ready:
    """PPO: four clipped steps per batch of experience, value loss and entropy bonus in one sum."""
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-5)
    generator = torch.Generator().manual_seed(0)
    rewards: list[float] = []
    memory: list[tuple[Tensor, ...]] = []

    def loss() -> Tensor:
        if not memory:
            state = torch.randn(128, 6, generator=generator)
            with torch.no_grad():
                logits, value = model(state)
                action = torch.distributions.Categorical(logits=logits).sample()
                log_probability = logits.log_softmax(-1).gather(1, action[:, None]).squeeze(-1)
            reward = (action == state[:, :3].argmax(-1)).float()
            rewards.append(float(reward.mean()))
            memory.extend([(state, action, log_probability, reward, reward - value)] * 4)
        state, action, old, reward, advantage = memory.pop()
        logits, value = model(state)
        policy = torch.distributions.Categorical(logits=logits)
        ratio = (policy.log_prob(action) - old).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        return -surrogate + 0.5 * functional.mse_loss(value, reward) - 0.01 * policy.entropy().mean()

    return plain_loop(
        setup,
        model,
        optimizer,
        240,
        loss,
        clip=0.5,
        score=lambda: Score("reward", sum(rewards[-5:]) / 5, 0.75, higher=True, before=rewards[0]),
    )


@program(TUNING)
def triplets_until_zero(setup: Setup) -> Ready:
    """A margin loss that reaches exactly zero in more and more batches."""
    rows = digits()
    by_label = {label: [row["pixel_values"] for row in rows if row["labels"] == label] for label in range(10)}
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    chance = random.Random(0)

    def loss() -> Tensor:
        parts: list[list[Tensor]] = [[], [], []]
        for _ in range(8):
            same, other = chance.sample(range(10), 2)
            anchor, positive = chance.sample(by_label[same], 2)
            for part, image in zip(parts, (anchor, positive, chance.choice(by_label[other])), strict=True):
                part.append(image)
        anchor, positive, negative = (model(torch.stack(part)) for part in parts)
        return functional.triplet_margin_loss(anchor, positive, negative, margin=0.5)

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=3e-3), 200, loss, to=0.4)


@program(HELD_OUT)
def hinge_loss(setup: Setup) -> Ready:
    """A support-vector machine by subgradients: right examples give no gradient."""
    rows = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    batches = endless(rows[:1400], 16)

    def loss() -> Tensor:
        batch = stack(next(batches))
        return functional.multi_margin_loss(model(batch["pixel_values"]), batch["labels"])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    return plain_loop(setup, model, optimizer, 200, loss, to=0.4)


class Player(nn.Module):
    """One side of an adversarial game."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """What the network gives."""
        return self.net(inputs)


@program(TUNING)
def adversarial_pair(setup: Setup) -> Ready:
    """A GAN on points of a ring, two models with an optimizer and a watch each; no loss falls for long."""
    generator = Player(mlp(8, 2))
    critic = Player(mlp(2, 1, activation=nn.LeakyReLU))
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.9)) for net in (generator, critic)]
    loops = [Loop(setup, net, opt, 250) for net, opt in zip((generator, critic), optimizers, strict=True)]

    def real(count: int) -> Tensor:
        angle = 2 * math.pi * torch.rand(count)
        return torch.stack([2 + angle.cos(), angle.sin()], -1) + 0.3 * torch.randn(count, 2)

    def run() -> None:
        with loops[0], loops[1]:
            for _ in range(loops[0].steps):
                fake = generator(torch.randn(64, 8)).detach()
                loss = functional.softplus(-critic(real(64))).mean() + functional.softplus(critic(fake)).mean()
                loss.backward()
                loops[1].log(loss.detach())
                optimizers[1].step()
                optimizers[1].zero_grad()
                loss = functional.softplus(-critic(generator(torch.randn(64, 8)))).mean()
                loss.backward()
                loops[0].log(loss.detach())
                optimizers[0].step()
                optimizers[0].zero_grad()
                optimizers[1].zero_grad()

    def score() -> Score:
        with torch.no_grad():
            made = generator(torch.randn(1000, 8))
        distance = float((made.mean(0) - torch.tensor([2.0, 0.0])).norm())
        return Score("distance of the means", distance, 0.8, before=2.0)

    return Ready(run, nn.ModuleList([generator, critic]), score)


class TwoTasks(nn.Module):
    """One body and two heads, of which each batch uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU())
        self.digit, self.ink = nn.Linear(96, 10), nn.Linear(96, 1)

    def forward(self, pixel_values: Tensor, labels: Tensor, task: str) -> dict[str, Tensor]:
        """Loss of the task."""
        hidden = self.body(pixel_values)
        if task == "digit":
            return {"loss": functional.cross_entropy(self.digit(hidden), labels)}
        return {"loss": functional.mse_loss(self.ink(hidden).squeeze(-1), pixel_values.mean((1, 2, 3)))}


@program(HELD_OUT, every_n_steps=3)
def alternating_tasks(setup: Setup) -> Ready:
    """Two tasks in turn: in each step one head has no gradient."""
    model = TwoTasks()
    batches = endless(digits()[:1400], 32)
    turn = [0]

    def loss() -> Tensor:
        turn[0] += 1
        return model(**stack(next(batches)), task=("digit", "ink")[turn[0] % 2])["loss"]

    def score() -> Score:
        batch = stack(digits()[1400:])
        with torch.no_grad():
            found = model.digit(model.body(batch["pixel_values"])).argmax(-1)
        return Score("held-out accuracy", float((found == batch["labels"]).float().mean()), 0.85, higher=True)

    return plain_loop(setup, model, torch.optim.Adam(model.parameters(), lr=3e-3), 200, loss, score=score)


@program(TUNING)
def accelerated_loop(setup: Setup) -> Ready:
    """A loop with Accelerate: accumulation of two, clipping, a schedule."""
    from accelerate import Accelerator

    from benchmarks.fault_injection.healthy_programs.vision import ConvNet

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    steps = setup.steps or 100
    net = ConvNet()
    adam = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.1, 2 * steps)
    loader = torch.utils.data.DataLoader(digits()[:1400], batch_size=16, shuffle=True, collate_fn=stack)
    model, optimizer, loader, scheduler = accelerator.prepare(net, adam, loader, schedule)
    loop = Loop(setup, net, optimizer, steps, schedule=scheduler)

    def run() -> None:
        model.train()
        with loop:
            taken = 0
            while taken < loop.steps:
                for batch in loader:
                    with accelerator.accumulate(model):
                        loss = model(**batch)["loss"]
                        loop.log(loss.detach())
                        accelerator.backward(loss)
                        if accelerator.sync_gradients:
                            accelerator.clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        scheduler.step()
                        optimizer.zero_grad()
                    taken += accelerator.sync_gradients
                    if taken == loop.steps:
                        break

    return Ready(run, net, lambda: loop.loss_fell(0.3))
