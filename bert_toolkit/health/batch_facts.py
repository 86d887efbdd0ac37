"""What a batch says about itself as the model receives it: labels, padding, special tokens, repetition, scale.

Everything is computed on the batch's device and nothing waits for it. Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bert_toolkit.ignored_label import IGNORED_LABEL

_FINGERPRINT_PRIME = 2_147_483_647


def batch_facts(inputs: Mapping[str, Any], special_tokens: Mapping[str, int]) -> dict[str, Tensor | float]:
    """Return the facts of one batch.

    Args:
        inputs: Keyword arguments of the model.
        special_tokens: Name (`pad`, `unk`, `eos`, …) to id, as far as a tokenizer told them.

    Returns:
        As far as the batch allows: `examples`; `labeled_fraction` (of real tokens), `labels_on_padding`,
        `label_equals_input`, `label_equals_next_input`, `label_pad_run` (see the functions below);
        `top_label_fraction` (of the most frequent class in this batch); `padding_seen` (share of the padding tokens
        that no mask hides, NaN where there are none), `padding_tokens` (of all) and `words_hidden` (share of the
        tokens that are not special which the mask hides); `unknown_fraction`, `mask_fraction` (mask tokens of
        those that are no other special ones), `top_target_fraction` (of the most frequent label of tokens),
        `eos_in_inputs`, `eos_in_labels`; `longest_row`, `shortest_row` (real tokens), `top_token_fraction`;
        `distinct_rows` (share of the rows, counting equal ones once); `first_labeled`, `last_labeled` (of special
        tokens that begin and end a text, those with a label); `label_low`, `label_high` (of labels that are numbers);
        `several_labels` (share of the rows of zeros and ones with more than a one); `label_rows_equal` (1 where all
        rows have the same labels, of several values); `counted_beginnings` (share of the rows whose first tokens alone
        have a label, though other tokens follow); `decoder_ids_vary`; `fingerprint`; `float_input_rms`,
        `float_input_nonfinite`; `positions_vary`.
    """
    facts: dict[str, Tensor | float] = {}
    ids, labels, mask = (inputs.get(name) for name in ("input_ids", "labels", "attention_mask"))
    tensors = [value for name, value in inputs.items() if isinstance(value, Tensor) and "label" not in name]
    batches = [tensor for tensor in tensors if tensor.ndim and tensor.is_floating_point() | (tensor.ndim > 1)]
    if not batches:
        return facts
    facts["examples"] = float(max(len(tensor) for tensor in batches))
    facts["fingerprint"] = fingerprint(batches)
    real = _real_tokens(ids, mask)
    if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
        facts |= _token_facts(ids, real, special_tokens)
        if isinstance(labels, Tensor) and labels.ndim >= 2 and not labels.is_floating_point():
            facts |= _token_label_facts(ids, labels, real, special_tokens)
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.ndim == 1 and len(labels):
        facts["labeled_fraction"] = (labels != IGNORED_LABEL).double().mean()
        facts["top_label_fraction"] = (labels == labels.mode().values).double().mean()
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.numel():
        facts |= {"label_low": labels.amin().double(), "label_high": labels.amax().double()}
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim == 2 and labels.numel():
        ones = ((labels == 0) | (labels == 1)).all(1)
        facts["several_labels"] = (ones & (labels.sum(1) > 1)).double().mean()
    if isinstance(labels, Tensor) and labels.ndim > 1 and len(labels) >= 4 and labels[0].numel():
        facts["label_rows_equal"] = _same_in_rows(labels)
    decoder = inputs.get("decoder_input_ids")
    if isinstance(decoder, Tensor) and decoder.ndim == 2 and decoder.shape[1] > 2:
        facts["decoder_ids_vary"] = (decoder != decoder[:1, :1]).any().double()
    floats = [tensor for tensor in batches if tensor.is_floating_point() and tensor.ndim > 1]
    # Models of time series scale inside what came before.
    floats = [tensor for tensor in floats if tensor is not mask and tensor is not inputs.get("past_values")]
    if floats:
        values = floats[0].detach()
        facts["float_input_rms"] = values.float().square().mean().sqrt()
        facts["float_input_nonfinite"] = (~values.isfinite()).double().mean()
    positions = inputs.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] > 1:
        facts["positions_vary"] = (positions != positions[:, :1]).any().double()
    return facts


def fingerprint(tensors: list[Tensor]) -> Tensor:
    """Return a number that is the same for the same batch and, but for a chance of about 1e-9, for no other.

    Values are weighted by their place, so the order of rows counts.

    Args:
        tensors: The batch; one tensor at least, all on one device.

    Returns:
        A whole number as a float64 scalar, left on the device.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for tensor in tensors:
        bits = _whole_numbers(tensor).reshape(-1)
        total = total.mul(31).add(
            (bits.remainder(1_048_573) * _by_place(len(bits), bits.device)).remainder(_FINGERPRINT_PRIME).sum()
        )
        total = total.remainder(_FINGERPRINT_PRIME)
    return total.double()


def _by_place(count: int, device: torch.device) -> Tensor:
    """A weight for each of `count` places."""
    return torch.arange(1, count + 1, device=device).mul_(40_503).remainder_(65_521)


def _whole_numbers(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_floating_point():
        return tensor.float().contiguous().view(torch.int32).long()
    return tensor.long()


def _same_in_rows(labels: Tensor) -> Tensor:
    """1 where all rows (B, ...) are equal and hold several values that count, else 0."""
    counted = labels[0] != IGNORED_LABEL
    low = torch.where(counted, labels[0], labels.amax()).amin()
    high = torch.where(counted, labels[0], low).amax()
    return ((labels == labels[:1]).all() & (low != high)).double()


def _real_tokens(ids: Any, mask: Any) -> Tensor | None:
    """Booleans (B, T), True on tokens that are not padding; None where there are no token ids."""
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        return mask.bool()
    return torch.ones_like(ids, dtype=torch.bool)


def _fraction(chosen: Tensor, of: Tensor) -> Tensor:
    """Share of the True entries of `of` in which `chosen` is True as well; NaN where there are none."""
    count = of.sum().double()
    return torch.where(count > 0, (chosen & of).sum().double() / count.clamp(min=1), math.nan)


def _if_at_an_end(padding: Tensor, value: Tensor, special: Mapping[str, int]) -> Tensor:
    """The value, NaN where only the model names the padding token and it is not at one end of each row of (B, T).

    Data of another vocabulary may use its id for a word.
    """
    if len(special) > 1:
        return value
    changes = (padding[:, 1:] != padding[:, :-1]).sum(1)
    return torch.where((changes <= 1).all(), value, math.nan)


def _top_fraction(values: Tensor, counted: Tensor) -> Tensor:
    """Share of the most frequent of the values that count, NaN where none does."""
    # Those that do not are given values of their own, so that none of them is the most frequent.
    others = -1000 - torch.arange(values.numel(), device=values.device).view(values.shape)
    most = torch.where(counted, values, others).flatten().mode().values
    return _fraction(values == most, counted)


def _token_facts(ids: Tensor, real: Tensor | None, special: Mapping[str, int]) -> dict[str, Tensor | float]:
    assert real is not None
    lengths = real.sum(1)
    facts: dict[str, Tensor | float] = {
        "longest_row": lengths.max().double(),
        "shortest_row": lengths.min().double(),
        "padding_fraction": 1.0 - real.double().mean(),
    }
    words = torch.ones_like(real)
    for name in ("pad", "cls", "sep", "bos", "eos", "mask"):
        if name in special:
            words &= ids != special[name]
    ordinary = real & words
    if "pad" in special and special["pad"] not in (special.get("eos"), special.get("bos"), special.get("unk")):
        padding = ids == special["pad"]
        facts["padding_seen"] = _if_at_an_end(padding, _fraction(real, padding), special)
        facts["padding_tokens"] = padding.double().mean()
        facts["words_hidden"] = _if_at_an_end(padding, _fraction(~real, words), special)
    if "mask" in special:
        masked = (ids == special["mask"]) & real
        facts["mask_fraction"] = _fraction(masked, (ordinary | masked))
    if "unk" in special:
        facts["unknown_fraction"] = _fraction(ids == special["unk"], ordinary)
    if "eos" in special:
        facts["eos_in_inputs"] = ((ids == special["eos"]) & real).any(1).double().mean()
    facts["top_token_fraction"] = _top_fraction(ids, ordinary)
    facts["ordinary_tokens"] = ordinary.sum().double()
    if len(ids) >= 8:
        sums = (ids.long() * _by_place(ids.shape[1], ids.device)).sum(1).sort().values
        facts["distinct_rows"] = ((sums[1:] != sums[:-1]).sum().double() + 1.0) / len(ids)
    return facts


def _token_label_facts(
    ids: Tensor, labels: Tensor, real: Tensor | None, special: Mapping[str, int]
) -> dict[str, Tensor | float]:
    """Labels of tokens: which count, and whether the inputs give them away."""
    labels = labels.reshape(len(labels), -1)
    counted = labels != IGNORED_LABEL
    facts: dict[str, Tensor | float] = {"labeled_fraction": counted.double().mean()}
    if "pad" in special and labels.shape[1] > 1:
        # Padding that is a target: a run of it, since one padding token may serve as the end token as well.
        padding = labels == special["pad"]
        run = (padding[:, 1:] & padding[:, :-1]).double().mean()
        facts["label_pad_run"] = _if_at_an_end(padding | ~counted, run, special)
    facts["top_target_fraction"] = _top_fraction(labels, counted)
    if labels.shape != ids.shape or real is None:
        return facts
    facts["labeled_fraction"] = _fraction(counted, real)
    facts["labels_on_padding"] = _fraction(counted, ~real)
    if {"cls", "sep"} <= special.keys():
        ends = (ids == special["sep"]) & real
        first, last = ids[:, 0] == special["cls"], ends.any(1)
        place = (ends.long() * torch.arange(ids.shape[1], device=ids.device)).argmax(1)
        facts["first_labeled"] = _fraction(counted[:, 0], first)
        facts["last_labeled"] = _fraction(counted.gather(1, place[:, None]).squeeze(1), last)
    facts["counted_beginnings"] = _counted_beginnings(ids, counted, real)
    facts["label_equals_input"] = _fraction(labels == ids, counted & real)
    facts["label_equals_next_input"] = _fraction(labels[:, :-1] == ids[:, 1:], (counted & real)[:, :-1])
    if "eos" in special:
        eos = special["eos"]
        facts["eos_in_labels"] = ((labels == eos) & counted).any(1).double().mean()
    return facts


def _counted_beginnings(ids: Tensor, counted: Tensor, real: Tensor) -> Tensor:
    """Share of the rows (B, T) in which the first real tokens have labels and none of the last fifth and more has.

    What follows must hold several tokens, which padding does not.
    """
    place = torch.arange(ids.shape[1], device=ids.device)
    begins = (counted & real).any(1) & ((counted == (place < counted.sum(1, keepdim=True))) | ~real).all(1)
    rest = real & ~counted
    # Two different tokens at least: the largest id is not the smallest.
    low, high = torch.where(rest, ids, ids.amax()).amin(1), torch.where(rest, ids, ids.amin()).amax(1)
    follows = (rest.sum(1) >= 3) & (5 * rest.sum(1) >= real.sum(1)) & (low != high)
    return (begins & follows).double().mean()
