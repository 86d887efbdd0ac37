"""A plain PyTorch oracle for the monitoring callbacks: it replays each optimizer step in float64.

It shares nothing with the package. A spy callback keeps, for every step, the parameters before the step, the inputs of
every micro-batch, and the parameters after the step; afterwards each step's gradients are computed anew in float64.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments


class Classifier(nn.Module):
    """Embedding, stacked layers with exact zeros in their gradients, a norm and a head; takes no loss arguments."""

    def __init__(self, layers: int = 2, width: int = 12, vocabulary: int = 30, tied: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(vocabulary, width)
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary if tied else 3)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(input_ids).mean(1)
        for layer in self.layers:
            hidden = hidden + torch.relu(layer(hidden))
        logits = self.head(self.norm(hidden))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(count: int = 48) -> list[dict]:
    generator = torch.Generator().manual_seed(7)
    return [
        {"input_ids": torch.randint(0, 20, (5,), generator=generator), "labels": int(i * 7 % 3)} for i in range(count)
    ]


@dataclass
class Step:
    """What happened in one optimizer step."""

    before: dict[str, Tensor]
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


class Spy(TrainerCallback):
    """Keeps everything about every step."""

    def __init__(self) -> None:
        self.steps: dict[int, Step] = {}

    def on_train_begin(self, args, state, control, model, **kwargs):
        self._hook = model.register_forward_pre_hook(self._see_inputs, with_kwargs=True)

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    def on_step_begin(self, args, state, control, model, **kwargs):
        self._step = self.steps[state.global_step + 1] = Step(_values(model))

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self._step.gradients = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self._step.after = _values(model)

    def _see_inputs(self, module, arguments, inputs):
        if module.training:
            self._step.inputs.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()})


def replay(model: nn.Module, step: Step) -> dict[str, Tensor]:
    """Gradients of the step before clipping: mean loss over the micro-batches, all in float64."""
    twin = copy.deepcopy(model).double().train()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(step.before[name])
            parameter.grad = None
    for inputs in step.inputs:
        (twin(**inputs)["loss"] / len(step.inputs)).backward()
    return {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}


def clip_coefficient(gradients: dict[str, Tensor], max_norm: float) -> float:
    if not max_norm:
        return 1.0
    total = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    return min(1.0, max_norm / (total + 1e-6))


def check_gradients(
    record, gradients: dict[str, Tensor], factor: float = 1.0, rtol: float = 1e-5, of_fp32: bool = False
) -> None:
    """Compare a record with statistics of |gradients| * factor in float64.

    Gradients that were computed in fp32 differ by its rounding; the deviation of a few nearly equal ones is then as
    exact as they are.
    """
    assert list(record.names) == list(gradients), "names and their order"
    for i, (name, gradient) in enumerate(gradients.items()):
        magnitude = gradient.double().abs() * factor
        expected = {
            "count": magnitude.numel(),
            "mean": float(magnitude.mean()),
            "max": float(magnitude.max()),
            "std": float(magnitude.std(correction=0)),
            "zero_share": float((magnitude == 0).double().mean()),
        }
        for statistic, value in expected.items():
            found = float(getattr(record, statistic)[i])
            size = float(magnitude.max()) if of_fp32 and statistic == "std" else abs(value)
            tolerance = rtol * size + 1e-12
            assert abs(found - value) <= tolerance, f"{name} {statistic}: {found} instead of {value}"


def check_update(record, step: Step, rtol: float = 1e-5) -> None:
    """Compare a record with the difference of the real parameters in float64."""
    for i, name in enumerate(record.names):
        before, after = step.before[name].double(), step.after[name].double()
        update, size = float((after - before).norm()), float(before.norm())
        changed = float((step.before[name] != step.after[name]).double().mean())
        assert abs(record.update_norm[i] - update) <= rtol * update, name
        assert abs(record.parameter_norm[i] - size) <= rtol * size, name
        assert record.changed_share[i] == changed, name
        if size > 0:
            assert abs(record.ratio[i] - update / size) <= rtol * update / size, name
        else:
            assert math.isnan(record.ratio[i]) or update == 0, name


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def arguments(folder, **changes) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_grad_norm": 0.5,
        "seed": 3,
    }
    return TrainingArguments(**{**settings, **changes})


def train(folder, callbacks, model=None, optimizers=(None, None), **changes) -> tuple[Trainer, Spy]:
    """Train with the callbacks and a spy."""
    spy = Spy()
    trainer = Trainer(
        model=Classifier() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=rows(),
        callbacks=[*callbacks, spy],
        optimizers=optimizers,
    )
    trainer.train()
    return trainer, spy
