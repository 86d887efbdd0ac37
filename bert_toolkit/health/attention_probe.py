"""What queries and keys say about attention: how large their products are, how sharp, and whether heads differ.

Products are computed from what a layer's own projections return, for a few tokens of one row, so it does not matter
which kernel attends. No mask, bias or rotation is applied: lengths and the comparison of heads do not depend on a
rotation, and sharpness is told only of models without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.monitoring.guarded_hooks import GuardedHooks
from bert_toolkit.monitoring.parameter_roles import clean_name, unwrap

QUERIES = ("query", "q_proj", "q_lin", "q", "wq", "query_proj")
KEYS = ("key", "k_proj", "k_lin", "k", "wk", "key_proj")
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_MOST_LAYERS = 16
_TOKENS = 32
_FEWEST_HEADS, _FEWEST_TOKENS = 4, 8  # below these one token has much of the weight by chance
_NUMBERS = ("attention_size", "attention_peak", "attention_contrast", "heads_differ")


class AttentionProbe:
    """A probe of queries and keys of the first row of one forward pass, in at most 16 layers at equal distances.

    Known are attention modules with separate projections for queries and keys, as most have, and those of GPT-2, whose
    one projection makes both. Of others nothing is told, nor where products are normalized or capped afterwards.

    Args:
        model: The module that is trained.

    Attributes:
        places: Name of a vector that is handed out to the names of the attention modules, in the same order.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = unwrap(model)
        config = getattr(inner, "config", None)
        found = list(_attention_modules(inner, config))
        step = max(math.ceil(len(found) / _MOST_LAYERS), 1)
        self._layers = found[::step]
        self.places = dict.fromkeys(_NUMBERS, tuple(clean_name(layer.name) for layer in self._layers))
        self.guard = GuardedHooks()
        self._handles: list[Any] = []
        self._seen: dict[tuple[int, str], Tensor] = {}

    def start(self) -> None:
        """Watch from now on."""
        self.forget()
        for place, layer in enumerate(self._layers):
            for part, module in layer.projections.items():
                self._handles.append(module.register_forward_hook(self.guard(_Output(self._seen, (place, part)))))

    @torch.no_grad()
    def stop(self, device: torch.device) -> dict[str, Tensor | float]:
        """Stop watching.

        Args:
            device: Where the facts are put.

        Returns:
            Each (layers), NaN where unknown, with n queries and keys of length d per head: `attention_size`, mean
            length of a query times that of a key, divided by the square root of d, of the head where it is largest:
            what products may reach; `attention_peak`, share of the weight that goes to one token, mean over queries,
            of the head where it is smallest (told with four heads and eight tokens or more); `attention_contrast`,
            standard deviation of a query's products over the keys, of the head where it is largest; `heads_differ`,
            largest difference of a head's products from those of the first head, relative to their length.
        """
        unknown = torch.full((len(_NUMBERS),), math.nan, device=device)
        rows = []
        for place, layer in enumerate(self._layers):
            parts = {part: self._seen[place, part] for part in layer.projections if (place, part) in self._seen}
            facts = layer.facts(parts)
            rows.append(unknown if facts is None else facts.to(device))
        self.forget()
        return dict(zip(_NUMBERS, torch.stack(rows).unbind(1), strict=True)) if rows else {}

    def forget(self) -> None:
        """Remove the hooks and drop what they have seen."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._seen.clear()


class _Output:
    """A forward hook that keeps a few rows of the first output."""

    def __init__(self, seen: dict[tuple[int, str], Tensor], key: tuple[int, str]) -> None:
        self._seen = seen
        self._key = key

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        plain = isinstance(output, Tensor) and not isinstance(output, DTensor) and output.ndim == 3
        if self._key not in self._seen and torch.is_grad_enabled() and plain and output.shape[1] > 1:
            self._seen[self._key] = output[0, :_TOKENS].detach().float()


class _Layer:
    """The projections of one attention module.

    Args:
        name: Of the attention module.
        projections: `query` and `key`, or `both`.
        heads: Of the queries; keys may have fewer, which several share.
        plain: Products are divided by the square root of a head's width, and nothing else is done to them.
    """

    def __init__(self, name: str, projections: dict[str, nn.Module], heads: int, plain: bool) -> None:
        self.name = name
        self.projections = projections
        self.heads = heads
        self.plain = plain

    def facts(self, parts: dict[str, Tensor]) -> Tensor | None:
        if parts.keys() != self.projections.keys():
            return None
        query, key = parts["both"].chunk(3, -1)[:2] if "both" in parts else (parts["query"], parts["key"])
        if query.shape[-1] % self.heads:
            return None
        width = query.shape[-1] // self.heads
        if key.shape[-1] % width or self.heads % (key.shape[-1] // width):
            return None
        query = query.reshape(len(query), self.heads, width).transpose(0, 1)  # (heads, n, d)
        key = key.reshape(len(key), -1, width).transpose(0, 1)
        key = key.repeat_interleave(self.heads // len(key), 0)
        products = query @ key.transpose(1, 2) / math.sqrt(width)
        size = (query.norm(dim=-1).mean(1) * key.norm(dim=-1).mean(1)).amax() / math.sqrt(width)
        peak = products.softmax(-1).amax(-1).mean(-1).amin()
        contrast = products.std(-1, correction=0).mean(-1).amax()
        unknown = torch.full_like(size, math.nan)
        first = products[0].norm()
        others = (products - products[0]).flatten(1).norm(dim=1).amax()
        differ = torch.where(first > 0, others / first, unknown) if self.heads > 1 else unknown
        sharp = self.plain and self.heads >= _FEWEST_HEADS and key.shape[1] >= _FEWEST_TOKENS
        return torch.stack([size, peak if sharp else unknown, contrast, differ])


def _attention_modules(model: nn.Module, config: Any) -> Iterator[_Layer]:
    if getattr(config, "attn_logit_softcapping", None):
        return
    for name, module in model.named_modules():
        children = dict(module.named_children())
        query = next((children[part] for part in QUERIES if part in children), None)
        key = next((children[part] for part in KEYS if part in children), None)
        projections: dict[str, nn.Module] = {}
        if query is not None and key is not None:
            projections = {"query": query, "key": key}
        elif _makes_three(children.get("c_attn")):
            projections = {"both": children["c_attn"]}
        own = {*children, *(parameter for parameter, _ in module.named_parameters(recurse=False))}
        limited = any("norm" in part or "scale" in part for part in own)
        heads = _heads_of(module) or _heads_of(config)
        if projections and heads and not limited:
            yield _Layer(name, projections, heads, _is_plain(module, own, config))


def _makes_three(projection: nn.Module | None) -> bool:
    """Whether a projection makes queries, keys and values of the width of its input."""
    weight = None if projection is None else projection._parameters.get("weight")
    shape = () if weight is None else tuple(weight.shape)
    return len(shape) == 2 and max(shape) == 3 * min(shape)


def _whole(holder: Any, name: str) -> int:
    value = getattr(holder, name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _heads_of(holder: Any) -> int:
    return next((heads for heads in (_whole(holder, name) for name in _HEADS) if heads), 0)


def _is_plain(module: nn.Module, own: set[str], config: Any) -> bool:
    """Without rotation, relative positions, or another scale than the width of a head gives."""
    rotary = any(getattr(config, name, None) for name in ("rope_parameters", "rope_theta", "rotary_dim"))
    relative = any("relative" in part or "rotary" in part for part in own) or any(
        getattr(holder, name, False)
        for holder, name in ((config, "relative_attention"), (module, "has_relative_attention_bias"))
    )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    own_scale = type(module).__name__.startswith(("T5", "MT5", "UMT5", "LongT5", "GPTNeoSelf"))
    return not (rotary or relative or own_scale or positions != "absolute")
