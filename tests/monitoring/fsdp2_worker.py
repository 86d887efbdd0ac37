"""Trains a model under FSDP2 on two gloo processes and saves what each rank observed; see test_fsdp2.py."""

import gc
import sys
from pathlib import Path

import numpy as np
import torch
from fsdp2_model import LEARNING_RATE, MAX_NORM, STEPS, Net, batches
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor

from bert_toolkit.monitoring import GradientFlowMonitor, UpdateRatioMonitor
from bert_toolkit.monitoring.record_file import save_records


def main(out: Path, layout: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = Net()
    if layout == "shard":
        mesh = init_device_mesh("cpu", (2,))
    else:  # replicas of shards, as in hybrid sharding
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    flow, exact, sampled = (
        GradientFlowMonitor(model),
        UpdateRatioMonitor(model),
        UpdateRatioMonitor(model, mode="sampled"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    collectives = count_collectives()
    gradients, updates, samples, calls = [], [], [], []
    for step, (x, y) in enumerate(batches()[:STEPS], start=1):
        flow.watch_backward()
        half = len(x) // 2
        mine = slice(rank * half, (rank + 1) * half)
        torch.nn.functional.mse_loss(model(x[mine]), y[mine]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        collectives.clear()
        gradients.append(flow.start(max_norm=MAX_NORM).finish(step))
        calls.append(len(collectives))
        exact.before_step()
        sampled.before_step()
        optimizer.step()
        collectives.clear()
        updates.append(exact.after_step(step))
        calls.append(len(collectives))
        samples.append(sampled.after_step(step))
        optimizer.zero_grad()
    folder = out / f"rank{rank}"
    save_records(folder / "gradients.npz", gradients, flow.parameters)
    save_records(folder / "updates.npz", updates, exact.parameters)
    save_records(folder / "samples.npz", samples, sampled.parameters)

    replicated = distribute_tensor(torch.arange(6.0).reshape(2, 3), mesh, [Replicate()] * mesh.ndim)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(replicated)
    module.weight.grad = replicated.detach() - 2
    record = GradientFlowMonitor(module).observe(1)
    np.savez(folder / "replicated.npz", count=record.count, mean=record.mean, calls=np.array(calls))
    del model, flow, exact, sampled, optimizer
    gc.collect()
    dist.destroy_process_group()


def count_collectives() -> list[str]:
    """Names of the gathers that happen from now on."""
    calls: list[str] = []
    original = dist.all_gather

    def counted(*args, **kwargs):
        calls.append("all_gather")
        return original(*args, **kwargs)

    dist.all_gather = counted
    return calls


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
