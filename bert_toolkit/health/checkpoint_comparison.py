"""Whether a model still holds the weights of the checkpoint that its config names, when training begins."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.monitoring.parameter_roles import named_unique_parameters, unwrap

logger = logging.getLogger(__name__)

_FILE = "model.safetensors"
_ROWS = 8
_ROUNDING = 0.01  # of a row's norm: what loading in half precision may change
_LARGEST = 50_000_000  # elements of a tensor that is read whole


@torch.no_grad()
def checkpoint_differences(model: nn.Module, names: tuple[str, ...]) -> np.ndarray:
    """Compare eight rows of each parameter with the safetensors files from which the model was read.

    Only files of this machine are read: the directory that the config names, or the cache of the hub. Parameters that
    have another shape or name there, or that only had their elements rearranged, are left out.

    Args:
        model: The module that is trained.
        names: Parameters in the order of the result.

    Returns:
        (parameters): 1 where the values differ, 0 where they are the same, NaN where they were not compared.
    """
    found = np.full(len(names), np.nan)
    inner = unwrap(model)
    config = getattr(inner, "config", None)
    place = {name: i for i, name in enumerate(names)}
    try:
        files = _files(str(getattr(config, "_name_or_path", "") or ""), getattr(config, "_commit_hash", None))
        keys = {key: file for file in files for key in _keys(file)}
        parameters = {
            name: p
            for name, p in named_unique_parameters(inner)
            if name in place and p.is_floating_point() and not isinstance(p, DTensor) and not p.is_meta and p.numel()
        }
        pairs = _matched(parameters, keys, str(getattr(inner, "base_model_prefix", "")))
        for file in dict.fromkeys(keys[key] for key in pairs.values()):
            with safe_open(file, framework="pt") as stored:
                for name, key in pairs.items():
                    if keys[key] == file:
                        found[place[name]] = _differs(parameters[name].detach(), stored, key)
    except (OSError, ValueError, SafetensorError) as error:
        logger.info("Training health: the checkpoint of the model could not be compared with it: %s", error)
        found[:] = np.nan
    return found


def _files(name_or_path: str, revision: str | None) -> list[Path]:
    """The safetensors files of a checkpoint, as far as they are on this machine."""
    if not name_or_path:
        return []
    folder = Path(name_or_path)

    def local(name: str) -> Path | None:
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        cached = try_to_load_from_cache(name_or_path, name, revision=revision)
        return Path(cached) if isinstance(cached, str) else None

    if whole := local(_FILE):
        return [whole]
    index = local(f"{_FILE}.index.json")
    parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) if index else []
    return [path for part in parts if (path := local(part)) is not None]


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as stored:
        return list(stored.keys())


def _matched(parameters: Mapping[str, Any], keys: Mapping[str, Path], prefix: str) -> dict[str, str]:
    """Parameter -> key, with or without the prefix of the body, whichever finds more."""

    def plain(name: str) -> str:  # as it is called below PEFT's wrappers
        return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")

    ways: list[Callable[[str], str]] = [
        plain,
        lambda name: plain(name).removeprefix(f"{prefix}."),
        lambda name: f"{prefix}.{plain(name)}",
    ]
    tried = [{name: way(name) for name in parameters if way(name) in keys} for way in ways]
    return max(tried, key=len)


def _differs(parameter: Tensor, stored: Any, key: str) -> float:
    """1 or 0, NaN where shapes differ or the elements are the same ones in another order."""
    part = stored.get_slice(key)
    if tuple(part.get_shape()) != tuple(parameter.shape):
        return np.nan
    rows = list(_spread(len(parameter))) if parameter.ndim > 1 else [slice(None)]
    for row in rows:
        here, there = parameter[row].float().cpu(), part[row].float()
        if (here - there).norm() > _ROUNDING * max(float(there.norm()), 1e-12):
            break
    else:
        return 0.0
    if parameter.ndim > 1 and parameter.numel() <= _LARGEST and "embed" not in key:
        # Loading may permute the rows of a projection, as rotary embeddings need it.
        here, there = parameter.double().square().sum().cpu(), stored.get_tensor(key).double().square().sum()
        if torch.isclose(here, there, rtol=1e-4):
            return np.nan
    return 1.0


def _spread(length: int) -> Iterator[slice]:
    for row in dict.fromkeys(np.linspace(0, length - 1, _ROWS).astype(int).tolist()):
        yield slice(row, row + 1)
