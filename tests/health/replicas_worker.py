"""One rank of a data-parallel training with a fault; prints the rules that fired."""

import json
import os
import sys

import torch
from plain_loop import ROWS, batches, classifier, texts

from bert_toolkit.health.watch import HealthWatch
from bert_toolkit.monitoring.gradient_flow import GradientFlowMonitor
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor


def main(fault: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = classifier()
    wrapped = model if fault == "not_wrapped" else torch.nn.parallel.DistributedDataParallel(model)
    if fault == "moved_on_one_rank" and rank == 1:
        with torch.no_grad():
            model.classifier.bias.add_(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = HealthWatch(wrapped, optimizer, last_step=8)
    watch.begin()
    flow, ratios = GradientFlowMonitor(model), UpdateRatioMonitor(model)
    data = batches(texts, seed=0 if fault == "same_rows" else rank)
    for step, batch in zip(range(1, 9), data, strict=False):
        watch.start()
        assert len(batch["labels"]) == ROWS
        wrapped(**batch).loss.backward()
        watch.before_step(optimizer)
        gradients = flow.observe(step)
        ratios.before_step()
        optimizer.step()
        updates = ratios.after_step(step)
        watch.after_step()
        optimizer.zero_grad()
        watch.finish(gradients, updates)
    found = sorted(finding.rule for finding in watch.judge.findings)
    everybody: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, found)
    if rank == 0:
        print(json.dumps(everybody), flush=True)
    os._exit(0)  # destroying a group of gloo while DistributedDataParallel lives can abort or hang


if __name__ == "__main__":
    main(sys.argv[1])
