"""Ways to break one of the trainings, each with the rules that would name its cause."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.fault_injection.trainings import Run, digits, scratch
from bert_toolkit import ToolkitBertForPreTraining


@dataclass
class Fault:
    """One way to break a training.

    Args:
        inject: changes the run.
        rules: rules whose finding would name the right cause.
        models: where it applies.
        unseen: why statistics cannot show it on some models (model -> reason); reported apart.
    """

    inject: Callable[[Run], None]
    rules: frozenset[str]
    models: tuple[str, ...]
    unseen: dict[str, str]


FAULTS: dict[str, Fault] = {}
EVERYWHERE = ("minilm", "scratch", "gpt2", "digits")
TRANSFORMERS = ("minilm", "scratch", "gpt2")


def fault(*rules: str, models: tuple[str, ...] = EVERYWHERE, unseen: dict[str, str] | None = None) -> Callable:
    """Register the function below as a fault of its name; see `Fault` for the arguments."""

    def register(inject: Callable[[Run], None]) -> Callable[[Run], None]:
        FAULTS[inject.__name__] = Fault(inject, frozenset(rules), models, unseen or {})
        return inject

    return register


def name_of(run: Run, part: nn.Module) -> str:
    """Name of a module within the model."""
    return next(name for name, module in run.model.named_modules() if module is part)


def matrices(run: Run) -> list[nn.Parameter]:
    """All matrices of the model."""
    return [p for p in run.model.parameters() if p.ndim == 2]


def with_rate_of_a_layer(model: nn.Module, rate: float, layer: nn.Module, own: float) -> torch.optim.AdamW:
    """AdamW in which one layer has a learning rate of its own."""
    members = {id(p) for p in layer.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) not in members]},
        {"params": [p for p in model.parameters() if id(p) in members], "lr": own},
    ]
    return torch.optim.AdamW(groups, lr=rate)


@fault("update_ratio_high", "loss_diverging", "implausible_setting")
def learning_rate_x100(run: Run) -> None:
    """A learning rate a hundred times too high."""
    run.settings["learning_rate"] *= 100


@fault("update_ratio_low")
def learning_rate_div1000(run: Run) -> None:
    """A learning rate a thousand times too low."""
    run.settings["learning_rate"] /= 1000


@fault("frozen_layer")
def layer_frozen_by_mistake(run: Run) -> None:
    """A layer in the middle of the stack has requires_grad=False."""
    layer = run.layers[len(run.layers) // 2]
    layer.requires_grad_(False)
    run.place = (name_of(run, layer),)


@fault("not_updated")
def missing_from_optimizer(run: Run) -> None:
    """The optimizer was built without the parameters of a layer."""
    layer = run.layers[1]
    left_out = {id(p) for p in layer.parameters()}
    run.optimizer = lambda model, rate: torch.optim.AdamW(
        [p for p in model.parameters() if id(p) not in left_out], lr=rate, weight_decay=0.01
    )
    run.place = (name_of(run, layer),)


@fault("not_updated", "implausible_setting")
def learning_rate_zero_for_a_layer(run: Run) -> None:
    """The last layer's parameter group has learning rate 0."""
    layer = run.layers[-1]
    run.optimizer = lambda model, rate: with_rate_of_a_layer(model, rate, layer, 0.0)
    run.place = (name_of(run, layer),)


@fault("no_gradient")
def detached_branch(run: Run) -> None:
    """The feed-forward part of a layer (the whole layer of the plain network) is cut from the graph."""
    layer = run.layers[1]
    parts = [m for n, m in layer.named_modules() if n in ("output.dense", "mlp.c_proj")] or [layer]
    parts[0].register_forward_hook(lambda module, args, output: output.detach())
    run.place = (
        (name_of(run, layer),) if len(parts[0]._modules) == 0 else tuple(name_of(run, m) for m in run.layers[:2])
    )


@fault("dead_units", "not_as_in_checkpoint")
def dead_units(run: Run) -> None:
    """Biases before the activation are so low that no unit ever fires."""
    layer = run.layers[2]
    linear: Any = next(m for n, m in layer.named_modules() if n in ("intermediate.dense", "mlp.c_fc", "0"))
    with torch.no_grad():
        linear.bias.fill_(-30.0)
    run.place = (name_of(run, layer),)


@fault("vanishing_gradients", models=("digits",))
def deep_sigmoid_stack(run: Run) -> None:
    """Ten sigmoid layers."""
    deep = digits(0, nn.Sigmoid, 10)
    run.model, run.layers = deep.model, deep.layers
    run.place = tuple(f"layers.{i}" for i in range(7))


@fault("vanishing_gradients", models=("digits",))
def deep_tanh_stack_small_weights(run: Run) -> None:
    """Ten tanh layers with weights that are too small."""
    deep = digits(0, nn.Tanh, 10)
    run.model, run.layers = deep.model, deep.layers
    with torch.no_grad():
        for layer in run.layers:
            layer[0].weight.mul_(0.4)
    run.place = tuple(f"layers.{i}" for i in range(7))


# "Not as in the checkpoint" is as true where the weights come from one.
@fault("initial_scale", "not_as_in_checkpoint")
def initial_scale_x10(run: Run) -> None:
    """All matrices start ten times too large."""
    with torch.no_grad():
        for parameter in matrices(run):
            parameter.mul_(10)


@fault("initial_scale", "not_as_in_checkpoint")
def initial_scale_div10(run: Run) -> None:
    """All matrices start ten times too small."""
    with torch.no_grad():
        for parameter in matrices(run):
            parameter.div_(10)


@fault("initial_scale", "not_as_in_checkpoint")
def initial_scale_of_one_layer(run: Run) -> None:
    """The matrices of one layer start ten times too large."""
    layer = run.layers[1]
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    run.place = (name_of(run, layer),)


class AtStep(TrainerCallback):
    """Do something before the forward pass of one optimizer step, or from that step on."""

    def __init__(self, action: Callable[[], None], step: int, always: bool = False) -> None:
        self.action, self.step, self.always = action, step, always

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act where it is time."""
        if state.global_step + 1 == self.step or (self.always and state.global_step + 1 > self.step):
            self.action()


@fault("nonfinite")
def nan_batch(run: Run) -> None:
    """One batch brings a NaN into the first layer."""
    poisoned: list[bool] = []
    first = next(m for m in run.model.modules() if isinstance(m, nn.Embedding | nn.Linear))

    def poison(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if poisoned and poisoned.pop():
            output = output.clone()
            output[0, 0] = math.nan
            return output
        return None

    first.register_forward_hook(poison)
    run.callbacks.append(AtStep(lambda: poisoned.append(True), run.settings["max_steps"] // 3))


@fault("gradient_spike")
def outlier_batch(run: Run) -> None:
    """One batch has a loss ten thousand times too large."""
    outlier: list[bool] = []

    def enlarge(module: nn.Module, args: tuple, output: Any) -> Any:
        if outlier and outlier.pop():
            output["loss"] = output["loss"] * 1e4
        return output

    run.model.register_forward_hook(enlarge)
    run.callbacks.append(AtStep(lambda: outlier.append(True), 30 * run.every_n_steps))


@fault(
    "loss_flat",
    models=("minilm", "scratch", "digits"),
    unseen={"scratch": "looks like the plateau of word frequencies, through which every healthy pre-training goes"},
)
def shuffled_labels(run: Run) -> None:
    """Labels are shuffled within each batch."""
    if run.every_n_steps == 1:  # 50 steps say nothing about labels; as many samples of 200 steps do
        run.settings["max_steps"], run.every_n_steps = 200, 4
    generator = torch.Generator().manual_seed(0)
    inner = run.collator

    def collate(rows: list) -> dict:
        batch = inner(rows)
        labels = batch["labels"]
        chosen = labels != -100
        values = labels[chosen]
        labels[chosen] = values[torch.randperm(len(values), generator=generator)]
        return batch

    run.collator = collate


@fault("identical_inputs")
def constant_input(run: Run) -> None:
    """Every example is the same."""
    inner = run.collator

    def collate(rows: list) -> dict:
        batch = inner(rows)
        for name in ("input_ids", "pixels"):
            if name in batch:
                batch[name] = torch.full_like(batch[name], 5)
        if "attention_mask" in batch:
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
            if "token_type_ids" in batch:
                batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
        return batch

    run.collator = collate


@fault("fully_masked_inputs", models=TRANSFORMERS)
def all_masked_attention(run: Run) -> None:
    """The attention mask hides every token."""
    inner = run.collator

    def collate(rows: list) -> dict:
        batch = inner(rows)
        batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
        return batch

    run.collator = collate


@fault("update_ratio_high", "loss_diverging", "vanishing_gradients", models=("scratch",))
def no_warmup_post_ln(run: Run) -> None:
    """Twelve post-LN layers at a high learning rate without warm-up."""
    deep = scratch(0, num_hidden_layers=12)
    run.model, run.layers = deep.model, deep.layers
    run.settings.update(warmup_steps=0, learning_rate=5e-3)


@fault(
    "update_ratio_high",
    "loss_diverging",
    models=("gpt2", "scratch"),
    unseen={"gpt2": "pre-LN needs no warm-up: the loss falls as with it", "scratch": "as for GPT-2"},
)
def no_warmup_pre_ln(run: Run) -> None:
    """No warm-up with pre-LN."""
    if isinstance(run.model, ToolkitBertForPreTraining):
        pre = scratch(0, layer_norm_placement="pre")
        run.model, run.layers = pre.model, pre.layers
    run.settings.update(warmup_steps=0)


# Steps that large may also kill every ReLU before a norm can grow; the finding then names the step as the cause.
@fault("exploding_gradients", "update_ratio_high", "loss_diverging", "gradient_spike", "nonfinite", "dead_units")
def exploding_without_clipping(run: Run) -> None:
    """SGD with a rate that is far too high and no clipping."""
    run.settings.update(max_grad_norm=0.0, warmup_steps=0)
    rate = {"minilm": 0.5, "scratch": 3.0, "gpt2": 3.0, "digits": 3.0}[run.settings["model"]]
    run.optimizer = lambda model, _: torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


@fault("rounded_away")
def bf16_stall(run: Run) -> None:
    """Weights in bfloat16 with a learning rate below their resolution."""
    run.model.to(torch.bfloat16)
    run.settings["learning_rate"] = 5e-6
    inner = run.collator

    def collate(rows: list) -> dict:
        batch = inner(rows)
        return {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in batch.items()}

    run.collator = collate


@fault("loss_scale_overflow", models=TRANSFORMERS)
def fp16_overflow(run: Run) -> None:
    """Autocast to fp16 with a loss scale that grows at once after every step that was not skipped."""
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_factor=2.0**8, growth_interval=1)


@fault("layer_out_of_line", "initial_scale")
def diverging_layer(run: Run) -> None:
    """One layer has a hundred times the learning rate of the others."""
    layer = run.layers[2]
    run.optimizer = lambda model, rate: with_rate_of_a_layer(model, rate, layer, rate * 100)
    run.place = (name_of(run, layer),)


@fault("layer_out_of_line")
def layer_gradient_x1000(run: Run) -> None:
    """The gradients of one layer are multiplied by a thousand."""
    layer = run.layers[1]
    for parameter in layer.parameters():
        parameter.register_hook(lambda gradient: gradient * 1000)
    run.place = (name_of(run, layer),)


@fault("wrong_loss_sign", "loss_diverging")
def wrong_loss_sign(run: Run) -> None:
    """The loss has the wrong sign."""
    run.model.register_forward_hook(negate_loss)


def negate_loss(module: nn.Module, args: tuple, output: Any) -> Any:
    """Forward hook that flips the sign of the loss."""
    output["loss"] = -output["loss"]
    return output


@fault("loss_diverging", "step_ascends", "implausible_setting")
def gradient_ascent(run: Run) -> None:
    """The optimizer maximizes."""
    run.optimizer = lambda model, rate: torch.optim.AdamW(model.parameters(), lr=rate, maximize=True)


@fault("clipped_every_step", "implausible_setting")
def clipping_limit_too_low(run: Run) -> None:
    """Gradients are clipped to a norm of 1e-4."""
    run.settings["max_grad_norm"] = 1e-4
