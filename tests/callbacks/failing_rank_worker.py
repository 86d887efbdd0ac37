"""One rank of a two-process training in which rank 1 has no memory for its third copy, or refuses from the start."""

import json
import os
import sys
from pathlib import Path

import torch
from float64_oracle import Classifier, arguments, rows
from transformers import Trainer

from bert_toolkit import GradientFlowCallback, UpdateRatioCallback
from bert_toolkit.callbacks import monitoring_callback
from bert_toolkit.monitoring.update_ratios import UpdateRatioMonitor


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    if rank == 1 and sys.argv[2] == "refuses":
        monitoring_callback.unsupported_reason = lambda *arguments, **keywords: "values are out of sight here."
    elif rank == 1:
        original, calls = UpdateRatioMonitor.before_step, []

        def before_step(self, *arguments):
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError("no room for a copy")
            return original(self, *arguments)

        UpdateRatioMonitor.before_step = before_step
    # Each reads for itself: the reading of gradients is shared, but only one of the two wants updates.
    flow = GradientFlowCallback(every_n_steps=2, figures=False)
    ratios = UpdateRatioCallback(every_n_steps=2, figures=False)
    trainer = Trainer(Classifier(), arguments(folder, max_steps=6), train_dataset=rows(), callbacks=[flow, ratios])
    trainer.train()
    answer = {
        "steps": trainer.state.global_step,
        "gradients": [record.step for record in flow.records],
        "updates": [record.step for record in ratios.records],
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(answer))
    torch.distributed.barrier()
    os._exit(0)  # gloo may abort while a live DDP object is torn down


if __name__ == "__main__":
    main()
