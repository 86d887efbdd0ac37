"""Set-ups in which gradients or parameters cannot be read, each with the reason to tell."""

from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


def unsupported_reason(model: nn.Module, optimizer: Any = None) -> str | None:
    """Return why the values of a model's parameters cannot be observed, or None where they can.

    Args:
        model: the module that is trained.
        optimizer: the optimizer or its wrapper, where known.

    Returns:
        One sentence that names the cause and what to do, or None.
    """
    if type(optimizer).__name__ == "DeepSpeedOptimizerWrapper":
        return "DeepSpeed keeps gradients and takes its step inside backward(); train with DDP or FSDP2 to see them."
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP1 flattens parameters; use FSDP2 (fsdp_version: 2 in the accelerate config)."
    if any(parameter.device.type == "xla" for parameter in model.parameters()):
        return "XLA tensors have no values until the graph runs; observe on CPU or a GPU."
    return None
