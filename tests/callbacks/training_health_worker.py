"""One rank of a two-process training whose loss diverges on rank 1 alone; writes what this rank saw."""

import json
import os
import sys
from pathlib import Path

import torch
from test_training_health import Net, make_trainer

from bert_toolkit import TrainingHealthCallback


class LossOfRank(Net):
    """Reports a rising loss on rank 1 only; gradients stay those of the true loss."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        self.calls += 1
        if int(os.environ["RANK"]) == 1 and self.calls > 8:
            output["loss"] = output["loss"] + 8.0 * self.calls
        return output


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    health = TrainingHealthCallback(every_n_steps=1, on_finding="stop")
    trainer = make_trainer(folder, health, LossOfRank())
    assert trainer.args.world_size == 2
    trainer.train()
    answer = {
        "rules": [finding.rule for finding in health.findings],
        "values": [finding.value for finding in health.findings],
        "step": trainer.state.global_step,
        "planned": trainer.state.max_steps,
    }
    (folder / f"rank{trainer.args.process_index}.json").write_text(json.dumps(answer))
    torch.distributed.barrier()
    os._exit(0)  # gloo may abort while a live DDP object is torn down


if __name__ == "__main__":
    main()
