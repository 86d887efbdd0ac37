"""Trains under DDP and FSDP2 in two gloo processes and compares every step with float64; see test_engines.py."""

import json
import logging
import os
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
from float64_oracle import (
    Classifier,
    Spy,
    Step,
    arguments,
    check_gradients,
    check_update,
    clip_coefficient,
    replay,
    rows,
)
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, Trainer
from transformers.distributed import DistributedConfig

import bert_toolkit

MAX_NORM = 0.1


class Halved(Classifier):
    """One parameter is used by nobody, one by the first process only."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 2)
        self.first_only = nn.Parameter(torch.ones(3))
        self.follow_rank = True

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = super().forward(input_ids, labels)
        if not self.follow_rank:  # the oracle's twin sees the rows of both processes, half of them the first one's
            output["loss"] = output["loss"] + self.first_only.square().sum() / 2
        elif dist.get_rank() == 0:
            output["loss"] = output["loss"] + self.first_only.square().sum()
        return output


def check(out: Path, model: Classifier, **changes) -> None:
    spy = Spy()
    args = arguments(out, per_device_train_batch_size=2, max_grad_norm=MAX_NORM, max_steps=3, **changes)
    trainer = Trainer(model, args, train_dataset=rows(), callbacks=[spy])
    watching = bert_toolkit.watch(trainer, every_n_steps=1, figures=False)
    trainer.train()
    flow, update = watching.gradient_flow.records, watching.update_ratios.records
    assert [r.step for r in flow] == [r.step for r in update] == [1, 2, 3]
    assert "no fault" in watching.health.verdict, watching.health.verdict
    if isinstance(model, Halved):
        model.follow_rank = False
    for gradients, change in zip(flow, update, strict=True):
        step = spy.steps[gradients.step]
        everybody: list = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, step.inputs)
        step.inputs = [
            {key: torch.cat([inputs[batch][key] for inputs in everybody]) for key in ("input_ids", "labels")}
            for batch in range(args.gradient_accumulation_steps)
        ]
        assert len(everybody[0]) == args.gradient_accumulation_steps
        replayed = replay(model, step)
        coefficient = clip_coefficient(replayed, MAX_NORM)
        assert coefficient < 0.9, "this run must clip"
        assert abs(gradients.clip_coefficient - coefficient) < 1e-5 * coefficient
        check_gradients(gradients, replayed, coefficient, of_fp32=True)
        check_update(change, step)
        missing = {name for name, p in model.named_parameters() if name.startswith("unused")}
        assert set(gradients.missing) == missing and gradients.nonfinite == ()


class WholeSpy(Spy):
    """Keeps sharded tensors whole."""

    def on_step_begin(self, args, state, control, model, **kwargs):
        self._step = self.steps[state.global_step + 1] = Step(whole(model, "data"))

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self._step.gradients = whole(model, "grad")

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self._step.after = whole(model, "data")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in logs:
            self.steps[state.global_step].norm = float(logs["grad_norm"])


def whole(model: nn.Module, what: str) -> dict[str, Tensor]:
    values = {name: parameter if what == "data" else parameter.grad for name, parameter in model.named_parameters()}
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for n, v in values.items()}


def check_used(out: Path, way: str, bf16: bool, accumulation: int) -> None:
    """Against the gradients that the optimizer uses, in float64; precision of the training does not matter then."""
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if way == "compiled ddp" else {}
    if way != "fsdp2":
        model = Classifier()
    else:
        checkpoint, shards = out.parent / "checkpoint", DistributedConfig(fsdp_size=2)
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, distributed_config=shards)
    spy = WholeSpy()
    args = arguments(
        out,
        per_device_train_batch_size=2,
        max_grad_norm=MAX_NORM,
        max_steps=3,
        bf16=bf16,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        **compiled,
    )
    trainer = Trainer(model, args, train_dataset=rows(), callbacks=[spy])
    watching = bert_toolkit.watch(trainer, every_n_steps=1, figures=False)
    trainer.train()
    flow, update = watching.gradient_flow.records, watching.update_ratios.records
    assert [r.step for r in flow] == [r.step for r in update] == [1, 2, 3]
    for gradients, change in zip(flow, update, strict=True):
        step = spy.steps[gradients.step]
        assert compiled or len(step.inputs) == accumulation
        check_gradients(gradients, step.gradients, rtol=1e-6)
        check_update(change, step, rtol=1e-6)
        coefficient = MAX_NORM / (step.norm + 1e-6)
        assert coefficient < 0.9, "this run must clip"
        assert abs(gradients.clip_coefficient - coefficient) < 1e-5 * coefficient
    assert any(isinstance(p, DTensor) for p in model.parameters()) == (way == "fsdp2")


def check_fsdp1(out: Path) -> None:
    """Flattened parameters: one notice from each monitor, in one of the processes, and the loop goes on."""
    model = FullyShardedDataParallel(Classifier(), device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    notices: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notices.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bert_toolkit").addHandler(handler)
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows(4)]) for key in ("input_ids", "labels")}
    with bert_toolkit.watch_loop(model, optimizer, output_dir=out) as watching:
        for _ in range(2):
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    logging.getLogger("bert_toolkit").removeHandler(handler)
    assert watching.gradient_flow.records == watching.update_ratios.records == []
    told = [notice for notice in notices if "FSDP1 flattens parameters; use FSDP2" in notice]
    assert len(told) == len(notices) == (3 if torch.distributed.get_rank() == 0 else 0), notices


class AveragedInsideBackward(torch.optim.Optimizer):
    """SGD that averages a gradient over the processes and moves its parameter as soon as it is there."""

    def __init__(self, model: nn.Module, rate: float = 0.05) -> None:
        super().__init__(list(model.parameters()), {"lr": rate})
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.move)

    @torch.no_grad()
    def move(self, parameter: Tensor) -> None:
        gradient = parameter.grad.clone()
        dist.all_reduce(gradient)
        parameter.sub_(gradient / dist.get_world_size(), alpha=self.param_groups[0]["lr"])
        parameter.grad = None

    def step(self, closure=None) -> None:
        """The work is done."""


def check_inside_backward(out: Path) -> None:
    """In a loop of two processes without DDP: updates are exact, gradients are those of the process or left out."""
    model = Classifier()
    optimizer = AveragedInsideBackward(model)
    batches = [
        {key: torch.stack([torch.as_tensor(row[key]) for row in part]) for key in ("input_ids", "labels")}
        for part in (rows(4), rows(8)[4:], rows(12)[8:])
    ]
    states = []
    with bert_toolkit.watch_loop(model, optimizer, every_n_steps=1, output_dir=out, figures=False) as watching:
        for batch in batches:
            states.append(whole(model, "data"))
            own = {key: value[dist.get_rank() :: 2] for key, value in batch.items()}
            model(**own)["loss"].backward()
            optimizer.step()
        states.append(whole(model, "data"))
    update = watching.update_ratios.records
    assert update, "the first sampled step shows that the optimizer steps inside backward, later ones are recorded"
    for change in update:
        check_update(change, Step(states[change.step - 1], after=states[change.step]), rtol=1e-6)
        assert (change.update_norm > 0).all()
    assert watching.health.findings == []


CHECKS = {
    "accumulation": lambda out: check(out, Classifier(), gradient_accumulation_steps=3),
    "unused": lambda out: check(out, Halved(), ddp_find_unused_parameters=True),
    "unused and accumulation": lambda out: check(
        out, Halved(), ddp_find_unused_parameters=True, gradient_accumulation_steps=3
    ),
    "compiled": lambda out: check(out, Classifier(), torch_compile=True, torch_compile_backend="aot_eager"),
    "compiled and accumulation": lambda out: check(
        out, Classifier(), torch_compile=True, torch_compile_backend="aot_eager", gradient_accumulation_steps=3
    ),
    "fsdp1": check_fsdp1,
    "inside backward": check_inside_backward,  # the trainers before it have made the group of processes
}
CHECKS |= {
    f"{way} {'bf16' if bf16 else 'fp32'} accumulation {accumulation}": partial(
        check_used, way=way, bf16=bf16, accumulation=accumulation
    )
    for way in ("ddp", "fsdp2", "compiled ddp")
    for bf16 in (False, True)
    for accumulation in (1, 3)
}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    outcome = {}
    for name, run in CHECKS.items():
        try:
            run(out / name)
            outcome[name] = "right"
        except Exception:
            outcome[name] = traceback.format_exc()
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(outcome))
    dist.barrier()
    os._exit(0)  # gloo may abort while a live DDP object is torn down


if __name__ == "__main__":
    main(Path(sys.argv[1]))
