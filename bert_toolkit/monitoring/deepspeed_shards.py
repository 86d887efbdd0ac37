"""Where DeepSpeed keeps the values with which its optimizer works: this rank's part of every parameter."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bert_toolkit.monitoring.parameter_roles import named_unique_parameters, whole_shape
from bert_toolkit.monitoring.tensor_statistics import local_tensor

_COMPARED = 64  # elements of each part
_ROUNDING, _TINY = 0.01, 1e-6  # more than those of bfloat16 and fp16


@dataclass(frozen=True, eq=False)
class Shard:
    """This rank's part of a parameter.

    Args:
        name: Of the parameter.
        parameter: As the model holds it.
        size: Elements of the whole parameter.
        group: Place of its parameter group.
        holder: Tensor that the torch optimizer steps, None where this rank has no part in it.
        start, length: Where the part lies in the flattened holder.
        begin: Where it lies in the flattened parameter.
        computed: The same elements as the model computes with, flat and in its precision; None where this rank has no
            part.
    """

    name: str
    parameter: nn.Parameter
    size: int
    group: int
    holder: Tensor | None
    start: int
    length: int
    begin: int
    computed: Tensor | None

    def values(self) -> Tensor:
        """Return the elements of the part, flat."""
        assert self.holder is not None
        return local_tensor(self.holder)[self.start : self.start + self.length]

    def gradient(self) -> Tensor:
        """Return the gradient of these elements, zeros where the holder has none."""
        assert self.holder is not None
        if self.holder.grad is None:
            return torch.zeros_like(self.values())
        return local_tensor(self.holder.grad)[self.start : self.start + self.length]

    def is_elsewhere(self) -> Tensor:
        """Return whether some of these values are not those of the parameter, rounding allowed for, as 0 or 1."""
        assert self.computed is not None
        distance = max(self.length // _COMPARED, 1)
        held, computed = self.values()[::distance].float(), self.computed[: self.length : distance].float()
        return ((held - computed).abs() > _ROUNDING * held.abs() + _TINY).any()


def is_deepspeed(optimizer: Any) -> bool:
    """Return whether an optimizer is Accelerate's wrapper of one that DeepSpeed steps.

    Args:
        optimizer: As Trainer gives it to callbacks.
    """
    return type(optimizer).__name__ == "DeepSpeedOptimizerWrapper"


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer that really steps.

    Args:
        optimizer: Accelerate's wrapper of DeepSpeed's wrapper of it.
    """
    inner = optimizer.optimizer
    while not isinstance(inner, torch.optim.Optimizer):
        inner = inner.optimizer
    return inner


def shards_of(model: nn.Module, optimizer: Any) -> list[Shard]:
    """Find this rank's part of every trainable parameter; where every rank holds all of one, they share the work.

    Args:
        model: The module that is trained.
        optimizer: Accelerate's wrapper of the optimizer.

    Returns:
        One shard for each, in the model's order, empty ones included.

    Raises:
        AttributeError, LookupError: DeepSpeed is not made as expected.
    """
    engine, inner = optimizer.optimizer, torch_optimizer(optimizer)
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    groups, copies = dict(_groups(engine)), dict(_copies(engine))
    shards = []
    for name, parameter in named_unique_parameters(model):
        if not parameter.requires_grad:
            continue
        size, group = whole_shape(parameter).numel(), groups.get(id(parameter), 0)
        holder, computed = None, None
        start = length = begin = 0
        if hasattr(parameter, "ds_id"):  # ZeRO 3: equal parts, the last ones padded
            part, start, width = engine.grad_position[engine.get_param_id(parameter)]
            holder, group = engine.fp32_partitioned_groups_flat[part], engine.sub_group_to_group_id[part]
            length, begin, computed = min(width, max(size - rank * width, 0)), rank * width, parameter.ds_tensor  # type: ignore[attr-defined]
        elif hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2: all parameters end to end, cut into equal parts
            mapping = parameter._hp_mapping
            if mapping is not None:
                holder = inner.param_groups[mapping.param_group_index]["params"][0]
                start, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                begin = mapping.lp_fragment_address.start
                computed = parameter.detach().reshape(-1)[begin:]
        else:
            width = -(-size // ranks)
            holder, start = copies.get(id(parameter), parameter), min(rank * width, size)
            length, begin = min(width, size - start), start
            computed = local_tensor(parameter).reshape(-1)[begin:]
        shards.append(Shard(name, parameter, size, group, holder, start, length, begin, computed))
    return shards


def deepspeed_refusal(model: nn.Module, optimizer: Any) -> str | None:
    """Return why values under DeepSpeed cannot be observed, or None where they can.

    Args:
        model: The module that is trained.
        optimizer: Accelerate's wrapper of the optimizer.
    """
    engine = getattr(optimizer, "optimizer", None)
    if getattr(engine, "zenflow", False):
        return "ZenFlow updates parameters outside the step; leave zenflow out of the DeepSpeed config."
    if any(getattr(engine, name, False) for name in ("cpu_offload", "offload_optimizer", "offload_param")):
        return (
            "DeepSpeed offloads to CPU or NVMe, where values are out of sight; leave offload_optimizer and "
            "offload_param out of the DeepSpeed config."
        )
    try:
        inner = torch_optimizer(optimizer)
        if any(group.get("use_muon") for group in inner.param_groups):
            return "DeepSpeed's Muon replaces gradients before its step; use another optimizer to see them."
        # Partitions over some of the processes: experts, MiCS, tensor parallelism.
        partitions = [getattr(p, "ds_process_group", getattr(p, "_dp_group", None)) for p in model.parameters()]
        world = torch.distributed.get_world_size()
        if any(part is not None and torch.distributed.get_world_size(part) != world for part in partitions):
            return "DeepSpeed splits parameters over some of the processes only; ZeRO over all of them is observed."
        shards = shards_of(model, optimizer)
    except (AttributeError, LookupError) as error:
        return f"DeepSpeed is not made as expected ({type(error).__name__}: {error}); version 0.19 is."
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    held |= {id(p) for p in getattr(engine, "fp32_partitioned_groups_flat", ())}  # held in turn
    if any(shard.length and id(shard.holder) not in held for shard in shards):
        return f"{type(engine).__name__} keeps what it steps where it cannot be seen; use DeepSpeed's ZeRO 1, 2 or 3."
    return None


def _groups(engine: Any) -> Iterator[tuple[int, int]]:
    """(id of a parameter of the model, place of its group)."""
    names = ("bit16_groups", "bf16_groups", "fp16_groups")
    lists = next((found for name in names if (found := getattr(engine, name, None))), None)
    if lists is None:
        lists = [group["params"] for group in engine.param_groups]
    for place, parameters in enumerate(lists):
        yield from ((id(parameter), place) for parameter in parameters)


def _copies(engine: Any) -> Iterator[tuple[int, Tensor]]:
    """(id of a parameter of the model, its fp32 copy) where DeepSpeed keeps whole copies."""
    for low, high in zip(getattr(engine, "fp16_groups", ()), getattr(engine, "fp32_groups", ()), strict=False):
        yield from ((id(parameter), copy) for parameter, copy in zip(low, high, strict=True))
