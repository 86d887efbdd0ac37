"""What a model does with the future, with padding, with the order of words and with other rows of its batch.

No weight, gradient or setting tells whether somebody's attention hides what it should. Changing tokens that must not
matter does: copies of one row, each with other tokens changed, go through the model in one extra forward pass, and
outputs that must be equal are compared. It works for any model that takes `input_ids`, whatever its attention is made
of. Three passes of a few rows more tell whether a row's output depends on its neighbors in the batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_toolkit.monitoring.parameter_roles import unwrap

_FEWEST_TOKENS = 8
_LONGEST = 256  # tokens; a longer row is cut
_COPIES = ("original", "again", "future", "padding", "order")
_EFFECTS = ("evaluation_noise", "future_effect", "padding_effect", "order_effect", "row_effect")
_ROWS_TRIED = 4
# Arguments of transformers' models whose first axis is that of the rows.
_ROWS_FIRST = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
_STEADY = 1e-5  # what two equal rows may differ by where a kernel sums them in another order


class BehaviorProbe:
    """A probe that changes tokens that must not matter and compares outputs, in evaluation mode, without gradients.

    Modes, buffers and the state of every random number generator are afterwards as before, and hooks of the model as a
    whole do not run. Left alone are models whose forward pass may do more than compute: with hooks on their parts,
    with parameters that are sharded, offloaded or quantized, and compiled ones.

    Args:
        model: The module that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrap(model)

    @torch.no_grad()
    def facts(self, inputs: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Run the probe.

        Args:
            inputs: Keyword arguments of a forward pass of the training.

        Returns:
            How much outputs differ that should not, NaN where it cannot be told. `evaluation_noise`: logits of the
            same row twice in a batch, relative to the largest. Relative to their spread: `future_effect`, logits of a
            token after later tokens were changed; `padding_effect`, logits of real tokens (or of the row) after tokens
            that `attention_mask` hides were changed; `order_effect`, logits of the row after its inner tokens were
            reversed, or those of the tokens, taken along; `row_effect`, logits of a row after the other rows of its
            batch were changed.
        """
        unknown: dict[str, Tensor | float] = dict.fromkeys(_EFFECTS, math.nan)
        if not self._is_plain():
            return unknown
        unknown |= self._row_effect(inputs)
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            return unknown
        row = _row_to_use(ids, inputs.get("attention_mask"))
        if row is None:
            return unknown
        batch, length = _copies_of(row, ids, inputs)
        with _as_before(self._model, ids.device):
            try:
                output = self._model.forward(**batch)
            except Exception:  # somebody's model may refuse such a batch; no probe may end a training
                return unknown
        logits = _logits(output)
        if logits is None or len(logits) != len(_COPIES):
            return unknown
        original = logits[0].float()
        noise = (original - logits[1].float()).abs().amax() / original.abs().amax().clamp(min=1e-12)
        width = batch["input_ids"].shape[1]
        of_tokens = logits.ndim == 3 and logits.shape[1] == width
        # (rows, width) may be as many classes or one logit per token, as ELECTRA's discriminator has.
        of_rows = logits.ndim == 2 and logits.shape[1] != width
        if not of_tokens and not (of_rows and attends_both_ways(self._model)):
            return unknown | {"evaluation_noise": noise}
        return unknown | {"evaluation_noise": noise} | _compared(logits.float(), length, batch["input_ids"])

    def _row_effect(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """How much the first row's logits change with the rows beside it; nothing where that cannot be told.

        Experts that pick their tokens, or hold so many, let rows compete on purpose.
        """
        rows = _rows_of(inputs)
        parts = (name.lower() for name, _ in self._model.named_modules())
        if rows is None or any(part in name for name in parts for part in ("expert", "router", "moe")):
            return {}
        # The second is the first with copies of its first row beside it; the third shows what chance does.
        alone = {name: value[:1].expand_as(value) if _is_batch(value) else value for name, value in rows.items()}
        device = next(value.device for value in rows.values() if _is_batch(value))
        outputs = []
        for batch in (rows, alone, rows):
            with _as_before(self._model, device):
                try:
                    outputs.append(_logits(self._model.forward(**batch)))
                except Exception:  # as above
                    return {}
        first, changed, again = outputs
        if first is None or changed is None or again is None or not _is_by_row(rows, first):
            return {}
        if first.shape != changed.shape or first.shape != again.shape:
            return {}
        spread = first.float().std(correction=0).clamp(min=1e-12)
        effect, noise = ((first[0] - other[0]).abs().amax().float() / spread for other in (changed, again))
        varies = spread > 1e-6 * first.abs().amax()
        return {"row_effect": torch.where((noise < _STEADY) & varies, effect, math.nan)}

    def _is_plain(self) -> bool:
        model = self._model
        parts = [module for module in model.modules() if module is not model]
        tensors = [*model.parameters(), *model.buffers()]
        return not (
            any(m._forward_hooks or m._forward_pre_hooks or "_orig_mod" in m._modules for m in parts)
            or any(m._compiled_call_impl is not None for m in model.modules())
            or any(isinstance(t, DTensor) or t.is_meta or hasattr(t, "ds_shape") for t in tensors)
            or any(type(t) not in (Tensor, nn.Parameter) for t in tensors)
            or len({t.device for t in tensors}) != 1
            or getattr(model, "hf_device_map", None) is not None
            or getattr(model, "is_quantized", False)
            or getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        )


def attends_both_ways(model: nn.Module) -> bool:
    """Return whether a model has attention that is not causal, as far as its modules tell.

    Modules of transformers say so in `is_causal`, and a causal classifier of transformers finds the last token of a
    row by the id of the padding. Of other models one that has attention and does not say is taken for an encoder.

    Args:
        model: Any module.
    """
    modules = list(unwrap(model).modules())
    says = {value for m in modules if isinstance(value := getattr(m, "is_causal", None), bool)}
    if says:
        return says == {False}
    own = any("attention" in type(m).__name__.lower() for m in modules)
    return own and not type(unwrap(model)).__module__.startswith("transformers.")


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple):
        output = next((part for part in output if isinstance(part, Tensor) and part.ndim > 1), None)
    found = isinstance(output, Tensor) and output.ndim > 1 and output.is_floating_point()
    return output if found else None


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _rows_of(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first rows of a batch without labels; None where its arguments do not all have the same number of rows."""
    arguments = {n: v for n, v in inputs.items() if "label" not in n and n != "num_items_in_batch"}
    batches = [value for value in arguments.values() if _is_batch(value)]
    others = [value for value in arguments.values() if not _is_batch(value) and not isinstance(value, Tensor)]
    if not batches or any(value is not None and not isinstance(value, (bool, int, float, str)) for value in others):
        return None
    if len({len(value) for value in batches}) > 1 or len(batches[0]) < 2:
        return None
    ids = arguments.get("input_ids")
    cut = {
        name: value[:, :_LONGEST] if isinstance(ids, Tensor) and value.shape[:2] == ids.shape[:2] else value
        for name, value in arguments.items()
        if _is_batch(value) and value.ndim > 1
    }
    return {n: v[:_ROWS_TRIED] if _is_batch(v) else v for n, v in {**arguments, **cut}.items()}


def _is_by_row(rows: Mapping[str, Any], logits: Tensor) -> bool:
    """Whether the first axis of inputs and logits is that of the rows, and not of time or of the nodes of a graph.

    transformers' names say so; of other models one vector of logits for each matrix, or for each row of tokens, does.
    Scores of each row with each are meant to depend on both.
    """
    batches = [value for value in rows.values() if _is_batch(value)]
    if len(logits) != len(batches[0]) or logits.shape == (len(logits), len(logits)):
        return False
    if any(name in rows for name in _ROWS_FIRST):
        return True
    inputs = [value for value in batches if value.ndim > 1]  # one number for each row is mostly its target
    matrices = all(value.ndim > 2 or not value.is_floating_point() for value in inputs)
    return bool(inputs) and matrices and logits.ndim == 2


def _row_to_use(ids: Tensor, mask: Any) -> tuple[int, int, int] | None:
    """The row with the most real tokens among those with padding at the end, or else the longest: place, real, width.

    None where rows are short or padded at the start.
    """
    width = ids.shape[1]
    lengths = [width] * len(ids)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if mask.shape != ids.shape:
            return None
        real = mask.bool().cpu()
        lengths = real.sum(1).tolist()
        if any(not row[:n].all() for row, n in zip(real, lengths, strict=True)):
            return None
    padded = [(n, place) for place, n in enumerate(lengths) if _FEWEST_TOKENS <= n < min(width, _LONGEST)]
    whole = [(n, place) for place, n in enumerate(lengths) if n >= _FEWEST_TOKENS]
    if not padded and not whole:
        return None
    real_tokens, place = max(padded or whole)
    return place, min(real_tokens, _LONGEST), min(width, _LONGEST)


def _copies_of(row: tuple[int, int, int], ids: Tensor, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The batch of changed copies without labels, and the number of real tokens of each."""
    place, length, width = row
    batch: dict[str, Any] = {}
    for name, value in inputs.items():
        if "label" in name or name == "num_items_in_batch":
            continue
        if isinstance(value, Tensor) and value.ndim and len(value) == len(ids):
            one = value[place : place + 1]
            if value.shape[:2] == ids.shape:
                one = one[:, :width]
            value = one.expand(len(_COPIES), *one.shape[1:])
        batch[name] = value
    changed = batch["input_ids"].clone()
    own = changed[0, :length]
    # Tokens of the row itself, so that each is one that the model takes.
    cut = length // 2
    changed[2, cut:length] = own[1:cut].repeat(3)[: length - cut]
    if width > length:
        changed[3, length:] = own[1:-1].repeat(math.ceil(width / max(length - 2, 1)))[: width - length]
    changed[4, 1 : length - 1] = own[1 : length - 1].flip(0)
    batch["input_ids"] = changed
    return batch, length


def _compared(logits: Tensor, length: int, ids: Tensor) -> dict[str, Tensor | float]:
    """Largest differences between the original and each changed copy, relative to the spread of the logits."""
    original, again, future, padding, order = logits
    of_tokens = logits.ndim == 3
    if of_tokens:
        original, again, future, padding, order = (copy[:length] for copy in logits)
    spread = original.std(correction=0).clamp(min=1e-12)
    unknown = torch.full((), math.nan, device=logits.device)

    def effect(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().amax() / spread

    cut, inner = length // 2, slice(1, length - 1)
    found = {}
    if of_tokens:
        found["future_effect"] = effect(future[:cut], original[:cut])
    if ids.shape[1] > length:
        found["padding_effect"] = effect(padding, original)
    moved = effect(order[inner].flip(0), original[inner]) if of_tokens else effect(order, original)
    found["order_effect"] = torch.where((ids[0, inner] != ids[4, inner]).any(), moved, unknown)
    # Dropout that is always on, or a head of zeros that answers the same whatever comes in, tell nothing.
    tells = (effect(original, again) < _STEADY) & (effect(future, original) > 1e-3)
    return {name: torch.where(tells, value, unknown) for name, value in found.items()}


@contextmanager
def _as_before(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode inside; modes, buffers and random numbers are afterwards what they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for module in modes:  # not `model.eval()`: somebody's own `train` may do more
                module.training = False
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for buffer, value, version in buffers:
                if buffer._version != version:
                    buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)
