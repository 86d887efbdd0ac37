"""Trains with both callbacks, in one or two processes, and saves each rank's records; see test_two_processes.py."""

import gc
import os
import sys
from pathlib import Path

import torch
from float64_oracle import Classifier, arguments, rows
from torch import distributed as dist
from transformers import AutoModelForSequenceClassification, Trainer

from bert_toolkit import GradientFlowCallback, UpdateRatioCallback
from bert_toolkit.monitoring.record_file import save_records


def main(out: Path, way: str) -> None:
    torch.set_num_threads(1)
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    args = arguments(
        out / "run",
        per_device_train_batch_size=8 // ranks,
        max_grad_norm=0.1,
        report_to="tensorboard",
        max_steps=3,
        optim="sgd",
    )
    assert args.world_size == ranks
    if way == "ddp":
        model = Classifier()
    else:
        settings = {}
        if ranks > 1:
            from transformers.distributed import DistributedConfig

            settings["distributed_config"] = DistributedConfig(fsdp_size=ranks)
        model = AutoModelForSequenceClassification.from_pretrained(out.parent / "checkpoint", **settings)
        type(model).accepts_loss_kwargs = False  # its loss is a plain mean, so gradients must not be multiplied
    flow, update = GradientFlowCallback(every_n_steps=1), UpdateRatioCallback(every_n_steps=1)
    trainer = Trainer(model, args, train_dataset=rows(), callbacks=[flow, update])
    trainer.train()
    save_records(out / f"rank{rank}" / "gradients.npz", flow.records, flow.parameters)
    save_records(out / f"rank{rank}" / "updates.npz", update.records, update.parameters)
    # A live DDP object at exit aborts the process now and then.
    del trainer, model, flow, update
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # and so, seldom, do threads of the process group, which end with the interpreter
