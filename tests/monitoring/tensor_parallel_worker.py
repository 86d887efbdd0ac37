"""Steps models under tensor parallelism on two gloo processes and saves what each rank observed.

See test_tensor_parallel.py.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from tensor_parallel_model import LEARNING_RATE, MAX_NORM, OWN, PLAN, PLANNED, Net, batches, token_batches
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM

from bert_toolkit.monitoring import GradientFlowMonitor, UpdateRatioMonitor
from bert_toolkit.monitoring.record_file import save_records


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder = out / f"rank{dist.get_rank()}"
    mesh = init_device_mesh("cpu", (2,))
    styles = {"column": ColwiseParallel, "row": RowwiseParallel}
    for name in OWN:
        model = parallelize_module(Net(), mesh, {name: styles[style]() for name, style in PLAN.items()})
        losses = [partial(loss, model, "bf16" in name, *batch) for batch in batches()]
        watch(model, losses, folder / name, accumulation=3 if "accumulation 3" in name else 1)

    llama = AutoModelForCausalLM.from_pretrained(out / "llama", tp_plan="auto")
    losses = [partial(token_loss, llama, False, ids) for ids in token_batches()]
    watch(llama, losses, folder / "transformers")
    for name in PLANNED:
        llama = AutoModelForCausalLM.from_pretrained(out / "llama", tp_plan="auto")
        accumulation = 3 if "accumulation 3" in name else 1
        losses = [partial(token_loss, llama, "bf16" in name, ids) for ids in token_batches() * accumulation]
        watch(llama, losses, folder / name, accumulation=accumulation)

    # A replicated parameter whose gradient is a sum that nobody has taken yet.
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(distribute_tensor(torch.ones(2, 3), mesh, [Replicate()]))
    part = torch.arange(6.0).reshape(2, 3) - (5.0 if dist.get_rank() else 0.0)
    module.weight.grad = DTensor.from_local(part, mesh, [Partial()])
    monitor = GradientFlowMonitor(module)
    save_records(folder / "partial.npz", [monitor.observe(1)], monitor.parameters)
    dist.barrier()
    os._exit(0)


def loss(model: torch.nn.Module, bf16: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return torch.nn.functional.mse_loss(model(x).float(), y)


def token_loss(model: torch.nn.Module, bf16: bool, ids: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model(input_ids=ids, labels=ids).loss


def watch(model: torch.nn.Module, losses: list, folder: Path, accumulation: int = 1) -> None:
    """Train by hand: torch's own clipping refuses models with plain and distributed parameters."""
    flow, exact, sampled = (
        GradientFlowMonitor(model),
        UpdateRatioMonitor(model),
        UpdateRatioMonitor(model, mode="sampled"),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, foreach=False)
    gradients, updates, samples, whole = [], [], [], {}
    for step, first in enumerate(range(0, len(losses), accumulation), start=1):
        flow.watch_backward()
        for loss in losses[first : first + accumulation]:
            (loss() / accumulation).backward()
        raw = {name: joined(p.grad) for name, p in model.named_parameters()}
        total = torch.stack([g.norm() for g in raw.values()]).norm()
        for parameter in model.parameters():
            parameter.grad.mul_(MAX_NORM / (float(total) + 1e-6))
        whole |= {f"{step}/gradient/{name}": joined(p.grad) for name, p in model.named_parameters()}
        gradients.append(flow.start(max_norm=MAX_NORM).finish(step))
        exact.before_step()
        sampled.before_step()
        whole |= {f"{step}/before/{name}": joined(p) for name, p in model.named_parameters()}
        optimizer.step()
        updates.append(exact.after_step(step))
        samples.append(sampled.after_step(step))
        whole |= {f"{step}/after/{name}": joined(p) for name, p in model.named_parameters()}
        optimizer.zero_grad()
    save_records(folder / "gradients.npz", gradients, flow.parameters)
    save_records(folder / "updates.npz", updates, exact.parameters)
    save_records(folder / "samples.npz", samples, sampled.parameters)
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, folder / "whole.safetensors")


def joined(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
