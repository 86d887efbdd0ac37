"""How many processes train together, and which of them this is; one alone where there is no process group."""

import torch


def is_distributed() -> bool:
    """Return whether there is a process group, even one of a single process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    """Return the number of processes."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the number of this process, 0 for the first."""
    return torch.distributed.get_rank() if is_distributed() else 0
