"""One small training with many optimizers: the rates and schedules that each of them is used with."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.fault_injection.healthy_programs.language_models import causal, gpt2, llama
from benchmarks.fault_injection.healthy_programs.plain_loops import endless, plain_loop
from benchmarks.fault_injection.healthy_programs.program import HELD_OUT, TUNING, Ready, Setup, arguments, program
from benchmarks.fault_injection.healthy_programs.vision import ConvNet, classify, digits, stack


def named(setup: Setup, optim: str, rate: float, steps: int = 100, to: float = 0.9, **settings: Any) -> Ready:
    """GPT-2 with an optimizer that `TrainingArguments` knows by name."""
    return causal(setup, gpt2(n_layer=2), arguments(setup, steps, rate, optim=optim, **settings), to)


@program(TUNING, packages=("schedulefree",))
def schedule_free_adamw(setup: Setup) -> Ready:
    """Schedule-free AdamW at a constant rate."""
    return named(setup, "schedule_free_adamw", 5e-3, lr_scheduler_type="constant", warmup_steps=0)


@program(TUNING, packages=("schedulefree",))
def schedule_free_radam(setup: Setup) -> Ready:
    """Schedule-free RAdam, whose first steps change nothing by design."""
    return named(setup, "schedule_free_radam", 5e-3, 120, lr_scheduler_type="constant", warmup_steps=0)


@program(HELD_OUT, packages=("schedulefree",))
def schedule_free_sgd(setup: Setup) -> Ready:
    """Schedule-free SGD on a ConvNet."""
    settings = arguments(
        setup, 120, 1.0, 32, optim="schedule_free_sgd", lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=0.0
    )
    return classify(setup, ConvNet(), settings, digits())


@program(TUNING)
def adafactor(setup: Setup) -> Ready:
    """Adafactor with a rate of its own."""
    return named(setup, "adafactor", 3e-3)


@program(HELD_OUT, packages=("lion_pytorch",))
def lion(setup: Setup) -> Ready:
    """Lion: signs of momentum at a third of Adam's rate, with more weight decay."""
    from lion_pytorch import Lion

    model = llama()
    optimizer = Lion(model.parameters(), lr=5e-4, weight_decay=0.1)
    return causal(setup, model, arguments(setup, 100, 5e-4), 0.9, optimizers=(optimizer, None))


class TwoOptimizers(torch.optim.Optimizer):
    """Steps two optimizers as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        # The groups are shared, so that a scheduler reaches both
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> Any:
        """Step both."""
        for optimizer in self.optimizers:
            optimizer.step()


@program(HELD_OUT)
def muon(setup: Setup) -> Ready:
    """Muon for the matrices of the layers, AdamW for the rest."""
    model = llama()
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    members = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in members]
    optimizer = TwoOptimizers(
        torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1), torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95))
    )
    return causal(setup, model, arguments(setup, 100, 3e-3), 0.88, optimizers=(optimizer, None))


@program(HELD_OUT)
def rmsprop(setup: Setup) -> Ready:
    """RMSprop, as TensorFlow's ConvNets had it."""
    model = ConvNet()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, eps=1e-3)
    return classify(setup, model, arguments(setup, 120, 1e-3, 32), digits(), optimizers=(optimizer, None))


@program(TUNING)
def adagrad(setup: Setup) -> Ready:
    """Adagrad with the large rate that it needs."""
    return named(setup, "adagrad", 3e-2, steps=150)


@program(TUNING, packages=("optimi",))
def stable_adamw(setup: Setup) -> Ready:
    """Stable AdamW, which limits its updates itself, without clipping of gradients."""
    return named(setup, "stable_adamw", 3e-3, max_grad_norm=0.0)


@program(TUNING, packages=("pytorch_optimizer",))
def prodigy(setup: Setup) -> Ready:
    """Prodigy: the rate is 1 and finds itself, from a step of 1e-6 on."""
    from pytorch_optimizer import Prodigy

    model = llama()
    optimizer = Prodigy(model.parameters(), lr=1.0, weight_decay=0.01)
    settings = arguments(setup, 200, 1.0, lr_scheduler_type="constant", warmup_steps=0)
    return causal(setup, model, settings, 0.9, optimizers=(optimizer, None))


@program(HELD_OUT, packages=("pytorch_optimizer",))
def soap(setup: Setup) -> Ready:
    """SOAP: Adam in the eigenbasis of Shampoo."""
    from pytorch_optimizer import SOAP

    model = llama()
    optimizer = SOAP(model.parameters(), lr=3e-3, precondition_frequency=10)
    return causal(setup, model, arguments(setup, 100, 3e-3), 0.9, optimizers=(optimizer, None))


@program(HELD_OUT)
def sharpness_aware(setup: Setup) -> Ready:
    """SAM by hand: up the slope first, then down from where the gradient of the worse place leads."""
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = endless(digits()[:1400], 32)
    moves: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def climb() -> torch.Tensor:
        batch = stack(next(batches))
        model(**batch)["loss"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        moves[:] = [(p, 0.05 * p.grad / norm) for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            for parameter, move in moves:
                parameter.add_(move)
                parameter.grad = None
        return model(**batch)["loss"]

    def climb_back() -> None:
        with torch.no_grad():
            for parameter, move in moves:
                parameter.sub_(move)

    return plain_loop(setup, model, optimizer, 100, climb, to=0.3, before_step=climb_back)
