"""Set-ups in which gradients or parameters cannot be read, each with the reason to tell."""

from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from bert_toolkit.monitoring.deepspeed_shards import deepspeed_refusal, is_deepspeed


def unsupported_reason(model: nn.Module, optimizer: Any = None, by_trainer: bool = False) -> str | None:
    """Return why the values of a model's parameters cannot be observed, or None where they can.

    Args:
        model: The module that is trained.
        optimizer: The optimizer or its wrapper, where known.
        by_trainer: Trainer says when a step begins, also where the optimizer is not asked to step.

    Returns:
        One sentence that names the cause and what to do, or None.
    """
    if is_deepspeed(optimizer) and not by_trainer:
        return "DeepSpeed steps inside backward(), and a loop does not tell when; train with Trainer to see its steps."
    if is_deepspeed(optimizer):
        return deepspeed_refusal(model, optimizer)
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP1 flattens parameters; use FSDP2 (fsdp_version: 2 in the accelerate config)."
    if any(parameter.device.type == "xla" for parameter in model.parameters()):
        return "XLA tensors have no values until the graph runs; observe on CPU or a GPU."
    return None
