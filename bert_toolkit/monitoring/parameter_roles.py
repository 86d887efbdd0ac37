"""What each parameter of a model is for, and to which block it belongs, read from modules and shapes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from bert_toolkit.errors import InputError

Role = Literal["matrix", "embedding", "norm", "bias", "adapter", "other"]

# Names that wrappers (torch.compile, FSDP, activation checkpointing) insert into a parameter's path.
_WRAPPER_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter as a person knows it.

    Args:
        name: Path of the parameter in the unwrapped model, e.g. `bert.encoder.layer.3.output.dense.weight`.
        role: What it is for.
        block: `embeddings`, `layer.0` ..., `head`, or the name of a top-level module in a model without a stack.
        kind: Short name inside the block, the same in every layer: `query`, `attention.output.dense`.
        trainable: Whether it required a gradient when it was described.
    """

    name: str
    role: Role
    block: str
    kind: str
    trainable: bool

    @property
    def label(self) -> str:
        """A name that is short and still clear: `layer.3 query`."""
        return f"{self.block} {self.kind}"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside `DistributedDataParallel`, `DataParallel` and `torch.compile` wrappers.

    Args:
        model: A module, in any number of wrappers.
    """
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


@lru_cache(maxsize=2**16)
def clean_name(name: str) -> str:
    """Remove from a parameter's path the parts that wrappers inserted.

    Args:
        name: Path of the parameter, such as `module._orig_mod.layer.0.weight`.

    Returns:
        The path in the unwrapped model, such as `layer.0.weight`.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def named_unique_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (clean name, parameter) in the model's order; a tied parameter comes once, under its first name.

    Args:
        model: The module that is trained, in wrappers or not.
    """
    for name, parameter in unwrap(model).named_parameters():
        yield clean_name(name), parameter


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of a parameter, also where DeepSpeed's ZeRO 3 leaves an empty tensor in its place.

    Args:
        parameter: Of a model.
    """
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def learning_rates(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """Return the learning rate of every parameter that an optimizer holds.

    Args:
        model: The module that is trained.
        optimizer: A torch optimizer or a wrapper of one; anything without parameter groups gives none.

    Returns:
        Parameter name -> learning rate; NaN where the optimizer finds its rate by itself (Adafactor).
    """
    names = {id(parameter): name for name, parameter in named_unique_parameters(model)}
    return {
        names[id(parameter)]: math.nan if group.get("lr") is None else float(group["lr"])
        for group in getattr(optimizer, "param_groups", ())
        for parameter in group["params"]
        if id(parameter) in names
    }


def describe_parameters(model: nn.Module) -> dict[str, ParameterInfo]:
    """Find the role and the block of every parameter.

    Roles come from the owning module and the shape, never from the names of one architecture, so they hold for
    BERT, GPT-2, ViT, Llama or a model of your own:

    - `adapter`: below a module that lists `adapter_layer_names` (PEFT's tuner layers), in one of those.
    - `bias`: one-dimensional and called `bias` (or `..._bias`).
    - `embedding`: owned by an `nn.Embedding` or `nn.EmbeddingBag`, also when tied to an output layer.
    - `norm`: one-dimensional in a module whose class is a normalization (`LayerNorm`, `LlamaRMSNorm`, ...).
    - `matrix`: two or more dimensions (linear, convolution, experts).
    - `other`: the rest, such as gates, scales, class tokens and position tables that broadcast over the batch.

    Blocks come from the outermost `nn.ModuleList` on the path (or `nn.Sequential` where there is no list): its
    index names the layer. Parameters before the first stack are `embeddings`, those after it are `head`. With
    several stacks (encoder and decoder) the part of the path that tells them apart comes first:
    `decoder.layer.0`.

    Args:
        model: Any module; `torch.compile`, DDP and FSDP2 wrappers are seen through.

    Returns:
        Name -> `ParameterInfo`, in the model's order, tied parameters once.
    """
    model = unwrap(model)
    roles: dict[int, Role] = {}
    for _path, module in model.named_modules():
        # PEFT's tuner layers stand around a base layer; its copies of whole modules have no base layer.
        adapters = getattr(module, "adapter_layer_names", ()) if "base_layer" in module._modules else ()
        for adapter in adapters:
            child = getattr(module, adapter, None)
            if isinstance(child, (nn.Module, nn.Parameter)):
                for parameter in [child] if isinstance(child, nn.Parameter) else child.parameters():
                    roles[id(parameter)] = "adapter"
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            role = _role(module, name, parameter)
            if id(parameter) not in roles or (role == "embedding" and roles[id(parameter)] == "matrix"):
                roles[id(parameter)] = role
    stacks = _stacks(model)
    blocks = _blocks(model, stacks, roles)
    kinds = _kinds({name: _path_in_block(name, stacks[name]) for name, _ in model.named_parameters()})
    return {
        clean_name(name): ParameterInfo(
            clean_name(name), roles[id(parameter)], blocks[name], kinds[name], parameter.requires_grad
        )
        for name, parameter in model.named_parameters()
    }


class WatchedParameters:
    """The trainable parameters of a model, with their descriptions, as they come and go during training.

    Args:
        model: The module that is trained; DDP, FSDP2 and `torch.compile` wrappers are seen through.
        purpose: What they are watched for, for the error, e.g. `gradient flow`.

    Attributes:
        described: Name -> `ParameterInfo` of all parameters in the model's order, then of those that were removed
            while they were watched.

    Raises:
        InputError: No parameter is trainable.
    """

    def __init__(self, model: nn.Module, purpose: str):
        self._model = model
        self.described: dict[str, ParameterInfo] = describe_parameters(model)
        if not any(info.trainable for info in self.described.values()):
            raise InputError(
                f"{purpose} needs a model with at least one trainable parameter (requires_grad=True), got none; "
                "unfreeze a parameter or remove the monitor"
            )

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the parameters that did not require a gradient when they were described."""
        return tuple(name for name, info in self.described.items() if not info.trainable)

    def now(self) -> list[tuple[str, nn.Parameter]]:
        """Return names and parameters that are trainable now, in the model's order; new ones are described first."""
        named = [(name, p) for name, p in named_unique_parameters(self._model) if p.requires_grad]
        if any(name not in self.described for name, _ in named):
            found = describe_parameters(self._model)
            self.described = found | {name: info for name, info in self.described.items() if name not in found}
        return named


def positions_by_block(names: Sequence[str], parameters: dict[str, ParameterInfo]) -> dict[str, np.ndarray]:
    """Return where the weights of each block are in `names`.

    Biases and norms stand aside, since their gradients and updates live on other scales; they stand in for a block
    that has nothing else.

    Args:
        names: Parameter names.
        parameters: Description of at least these parameters.

    Returns:
        Block -> positions in `names`, blocks in the model's order.
    """
    weights: dict[str, list[int]] = {}
    everything: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        info = parameters[name]
        everything.setdefault(info.block, []).append(position)
        if info.role not in ("bias", "norm"):
            weights.setdefault(info.block, []).append(position)
    return {block: np.array(weights.get(block, found)) for block, found in everything.items()}


def _role(module: nn.Module, name: str, parameter: torch.Tensor) -> Role:
    shape = whole_shape(parameter)
    if len(shape) == 1 and (name == "bias" or name.endswith("_bias")):
        return "bias"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if len(shape) == 1 and "norm" in type(module).__name__.lower():
        return "norm"
    if len(shape) >= 2 and (name.endswith("weight") or shape[0] > 1):
        return "matrix"
    return "other"


def _stacks(model: nn.Module) -> dict[str, str | None]:
    """For each parameter the path of the outermost list of layers that holds it, None where there is none."""
    modules = dict(model.named_modules())
    stacks: dict[str, str | None] = {}
    for container in (nn.ModuleList, nn.Sequential):
        for name, _ in model.named_parameters():
            parts = name.split(".")[:-1]
            paths = [".".join(parts[:depth]) for depth in range(len(parts))]
            stacks[name] = next((p for p in paths if isinstance(modules[p], container)), None)
        if any(stack is not None for stack in stacks.values()):
            break
    return stacks


def _split_at_stack(name: str, stack: str) -> tuple[str, list[str]]:
    """The layer's index and the path inside the layer."""
    index, *rest = name[len(stack) + 1 if stack else 0 :].split(".")
    return index, rest


def _blocks(model: nn.Module, stacks: dict[str, str | None], roles: dict[int, Role]) -> dict[str, str]:
    order = list(dict.fromkeys(stack for stack in stacks.values() if stack is not None))
    prefixes = dict(zip(order, _distinguishing_parts(order), strict=True))
    blocks = {}
    in_or_after_stack = False
    for name, parameter in model.named_parameters():
        stack = stacks[name]
        if stack is not None:
            in_or_after_stack = True
            index, _ = _split_at_stack(name, stack)
            blocks[name] = f"{prefixes[stack]}.layer.{index}" if prefixes[stack] else f"layer.{index}"
        elif not order:
            # Without any stack the top-level modules are the blocks.
            blocks[name] = clean_name(name).split(".")[0]
        elif roles[id(parameter)] == "embedding" or not in_or_after_stack:
            blocks[name] = "embeddings"
        else:
            blocks[name] = "head"
    return blocks


def _path_in_block(name: str, stack: str | None) -> tuple[str, ...]:
    parts = clean_name(name).split(".") if stack is None else _split_at_stack(name, stack)[1]
    # PEFT calls its first adapter `default`, and keeps modules that are trained as a whole in `modules_to_save`.
    dropped = {*_WRAPPER_PARTS, "weight", "default", "modules_to_save"}
    short = [part for part in parts if part not in dropped]
    return tuple(short or parts[-1:])


def _kinds(paths: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The shortest ending of each path that no different path shares."""
    different = set(paths.values())
    endings: dict[tuple[str, ...], int] = {}
    for path in different:
        for start in range(len(path)):
            endings[path[start:]] = endings.get(path[start:], 0) + 1
    kinds = {}
    for name, path in paths.items():
        start = max((s for s in range(len(path)) if endings[path[s:]] == 1), default=0)
        kinds[name] = ".".join(path[start:])
    return kinds


def _distinguishing_parts(paths: list[str]) -> list[str]:
    """For each dotted path the shortest run of parts that no other path shares; empty when there is one path."""
    if len(paths) < 2:
        return [""] * len(paths)
    split = [clean_name(path).split(".") for path in paths]
    shared = 0
    while all(len(parts) > shared and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    tails = [parts[shared:] for parts in split]
    depth = 1
    while len({tuple(tail[:depth]) for tail in tails}) < len(tails):
        depth += 1
    return [".".join(tail[:depth]) for tail in tails]


def own_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return a parameter that a module itself holds, None where it has none of this name or computes it.

    Asking the module for one that is computed would step the power iteration of `spectral_norm`.

    Args:
        module: Any module, a scripted one too.
        name: Name of the parameter within it.
    """
    return next((p for own, p in module.named_parameters(recurse=False) if own == name), None)
