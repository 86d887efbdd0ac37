"""What a monitor knows of the training that it watches, whoever runs it: Trainer or a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bert_toolkit.processes import world_size

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.training_args import TrainingArguments


@dataclass
class MonitoredRun:
    """One training.

    Args:
        model: The module that is trained.
        optimizer: Its optimizer, None where it is not known yet.
        output_dir: Folder of the run; monitoring writes to `output_dir/monitoring`.
        is_main: Whether this process writes.
        first_step: Optimizer steps that were taken before; not 0 where a run is resumed.
        last_step: The optimizer step at which the run will end, 0 where unknown.
        writer: Gives the TensorBoard writer, None for no TensorBoard.
        wandb: W&B is the tracker.
        reporter: Takes scalars and their step to further reporters; called on every process.
        schedule: Scheduler of the learning rate, where known.
        tokenizer: Processing class of the data, where known.
        arguments: The trainer's arguments, None without Trainer.
        batches_per_epoch: Length of the data loader, None where unknown.
        log_history: What was logged so far, before a run was resumed too, each entry with its `step`.
        watch_forward: Forward passes can be watched by hooks.
        device: Where processes exchange numbers, the model's if None.
    """

    model: nn.Module
    optimizer: Any
    output_dir: Path
    is_main: bool = True
    first_step: int = 0
    last_step: int = 0
    writer: Callable[[], SummaryWriter] | None = None
    wandb: bool = False
    reporter: Callable[[dict[str, float], int], None] | None = None
    schedule: Any = None
    tokenizer: Any = None
    arguments: TrainingArguments | None = None
    batches_per_epoch: int | None = None
    log_history: list[dict[str, Any]] = field(default_factory=list)
    watch_forward: bool = True
    device: torch.device | None = None

    @property
    def folder(self) -> Path:
        """The folder to which files of the monitoring go."""
        return self.output_dir / "monitoring"

    def any_rank(self, flag: bool) -> bool:
        """Return whether a flag is set on any process; every process must call it.

        Args:
            flag: The flag of this process.
        """
        if world_size() == 1:
            return flag
        device = next(self.model.parameters()).device if self.device is None else self.device
        answer = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX)
        return bool(answer.item())


def trained_module(model: Any) -> nn.Module:
    """Return what trains of the model that a trainer hands out: SetFit's is no module, and its body is.

    Args:
        model: As callbacks get it.
    """
    return model if isinstance(model, nn.Module) else getattr(model, "model_body", model)


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a data loader, None where it is a stream.

    Args:
        loader: The data loader, None where there is none.
    """
    try:
        return len(loader) or None
    except TypeError:
        return None


def tokenizer_of(processing_class: Any, loader: Any) -> Any:
    """Return what knows the special tokens of the data: Trainer's processing class, or else its collator's tokenizer.

    Args:
        processing_class: `Trainer.processing_class`.
        loader: The data loader of training, None where there is none.
    """
    if processing_class is not None:
        return processing_class
    collate = getattr(loader, "collate_fn", None)
    collate = getattr(collate, "data_collator", collate)  # Trainer's own wrapper removes columns
    return getattr(collate, "tokenizer", None)
