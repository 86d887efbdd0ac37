"""What logits, and the gradient that the loss sends back into them, say about the loss.

The gradient of a cross-entropy at row i is `weight_i * (softmax(logits_i) - target_i)`. So it tells, whoever computed
the loss and however, which rows count, which class each row is drawn to, and how much the whole batch weighs.
Everything stays on the device. Shapes: N rows of all leading axes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ROWS_READ = 128
_MOST_CLASSES = 1000
_COPIES = ("ToCopy", "View", "UnsafeView", "Squeeze", "Unsqueeze", "Alias", "Clone")


def logit_facts(logits: Tensor) -> dict[str, Tensor | float]:
    """Facts of logits alone.

    Args:
        logits: `(..., C)` with two or more classes, or `(N, 1)` of a regression.

    Returns:
        `logit_max` and `logit_min`; `logits_sum_to_one` (share of rows whose entries are in [0, 1] and sum to one),
        `logits_squashed` (1 where the operation that made them is a sigmoid, a softmax or a ReLU), `logits_one_sided`
        (share of entries that are exactly 0 where none is negative), `logits_vary` (largest standard deviation of a
        class over the rows, relative to the largest entry).
    """
    values = logits.detach().flatten(0, -2)
    values = values[: max(_ROWS_READ, 1)].float()
    facts: dict[str, Tensor | float] = {"logit_max": values.amax(), "logit_min": values.amin()}
    if values.shape[-1] > 1:
        inside = (values >= 0).all(-1) & (values <= 1).all(-1)
        facts["logits_sum_to_one"] = (inside & ((values.sum(-1) - 1).abs() < 1e-3)).double().mean()
        facts["logits_squashed"] = float(_last_operation(logits).startswith(("Sigmoid", "Softmax", "Relu")))
        facts["logits_one_sided"] = torch.where(
            (values >= 0).all() | (values <= 0).all(), (values == 0).double().mean(), 0.0
        )
    if len(values) > 1:
        spread = values.std(0, correction=0).amax()
        facts["logits_vary"] = spread / values.abs().amax().clamp(min=1e-12)
    return facts


def _last_operation(tensor: Tensor) -> str:
    """Name of the operation that made a tensor, as autograd knows it; copies and views aside."""
    node = tensor.grad_fn
    for _ in range(8):
        name = type(node).__name__
        following = getattr(node, "next_functions", ())
        if (
            not name.startswith(("ToCopy", "View", "UnsafeView", "Squeeze", "Unsqueeze", "Alias", "Clone"))
            or not following
        ):
            return name
        node = following[0][0]
    return ""


def gradient_facts(gradient: Tensor, logits: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor | float]:
    """Facts of the gradient that arrives at the logits.

    Args:
        gradient: dL/dlogits, shaped as the logits.
        logits: `(..., C)`, or `(B, T)` with one logit per token, of which only `counted_padding` is told.
        inputs: Keyword arguments of the model.

    Returns:
        `counted_fraction` (of rows with a gradient), `counted_padding` (of rows of padding tokens that count; NaN
        where nothing is padded), `counted_by_class` (share of the rows of each class that count, NaN for classes that
        do not occur; for class labels), `gradient_row_sum` (0 for a cross-entropy, relative), `loss_weight` (sum of
        the weights of all rows: 1 for a mean), `target_agrees` (share of rows drawn to their label), and for tokens
        `target_is_input`, `target_is_next`, `target_is_second` (share of counted rows drawn to the token at their own
        place, the next, the one after).
    """
    facts: dict[str, Tensor | float] = {}
    ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if isinstance(mask, Tensor) and _one_logit_per_token(gradient, mask, labels):
        return {"counted_padding": _counted_padding(gradient.detach() != 0, mask)}
    classes = logits.shape[-1]
    rows = gradient.detach().reshape(-1, classes)
    if classes < 2 or not len(rows):
        return facts
    largest = rows.abs().amax(-1).float()  # (N)
    counted = largest > 0
    facts["counted_fraction"] = counted.double().mean()
    leading = gradient.shape[:-1]
    if isinstance(mask, Tensor) and mask.shape == leading:
        facts["counted_padding"] = _counted_padding(counted, mask)
    # A subset of the counted rows: the first ones in a stable order, without asking how many there are.
    read = counted.to(torch.uint8).argsort(descending=True, stable=True)[:_ROWS_READ]
    part = rows[read].float()
    valid = counted[read]
    scale = largest[read].clamp(min=torch.finfo(torch.float32).tiny)
    facts["gradient_row_sum"] = torch.where(valid, part.sum(-1).abs() / scale, math.nan).nanmean()
    target = part.argmin(-1)
    probability = logits.detach().reshape(-1, classes)[read].float().softmax(-1)
    missing = 1.0 - probability.gather(-1, target[:, None]).squeeze(-1)
    weight = -part.gather(-1, target[:, None]).squeeze(-1) / missing.clamp(min=1e-6)
    # Rows that are learned have no gradient left to divide by.
    usable = valid & (missing > 1e-3)
    mean_weight = torch.where(usable, weight, math.nan).nanmean()
    facts["loss_weight"] = mean_weight.double() * counted.sum()
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.shape == leading:
        known = labels.reshape(-1)[read]
        facts["target_agrees"] = torch.where(valid & (known >= 0), (target == known).float(), math.nan).nanmean()
        if labels.ndim == 1 and classes <= _MOST_CLASSES:
            facts["counted_by_class"] = _counted_by_class(counted, labels, classes)
    if isinstance(ids, Tensor) and ids.shape == leading and ids.ndim == 2:
        facts |= _token_targets(target, read, valid, ids, mask)
    return facts


def _one_logit_per_token(gradient: Tensor, mask: Tensor, labels: Any) -> bool:
    """As ELECTRA's discriminator has them; a classifier may have as many classes as there are tokens by chance."""
    return (
        isinstance(labels, Tensor)
        and not labels.is_floating_point()
        and gradient.shape == mask.shape == labels.shape
        and gradient.ndim == 2
    )


def _counted_padding(counted: Tensor, mask: Tensor) -> Tensor:
    padding = ~mask.bool().reshape(-1)
    count = padding.sum().double()
    return torch.where(count > 0, (counted.reshape(-1) & padding).sum().double() / count.clamp(min=1), math.nan)


def _counted_by_class(counted: Tensor, labels: Tensor, classes: int) -> Tensor:
    index = torch.where((labels >= 0) & (labels < classes), labels, classes).long()
    zeros = torch.zeros(classes + 1, dtype=torch.float64, device=labels.device)
    occurring = zeros.scatter_add(0, index, torch.ones_like(index, dtype=torch.float64))
    counting = zeros.scatter_add(0, index, counted.double())
    return torch.where(occurring > 0, counting / occurring.clamp(min=1), math.nan)[:classes]


def _token_targets(target: Tensor, read: Tensor, valid: Tensor, ids: Tensor, mask: Any) -> dict[str, Tensor | float]:
    """How often the target of a row is the input token at its own place, the next one, or the one after that."""
    length = ids.shape[1]
    place = read % length
    flat = ids.reshape(-1)
    has_mask = isinstance(mask, Tensor) and mask.shape == ids.shape
    real = mask.reshape(-1).bool() if has_mask else torch.ones_like(flat, dtype=torch.bool)
    facts: dict[str, Tensor | float] = {}
    for name, distance in (("target_is_input", 0), ("target_is_next", 1), ("target_is_second", 2)):
        inside = valid & (place + distance < length)
        at = (read + distance).clamp(max=len(flat) - 1)
        inside = inside & real[at]
        facts[name] = torch.where(inside, (flat[at] == target).float(), math.nan).nanmean()
    return facts
