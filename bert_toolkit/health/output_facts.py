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

from bert_toolkit.health.facts import widest

_ROWS_READ = 128
_MOST_CLASSES = 1000
_CLASSES_WEIGHED = 50
_COPIES = ("ToCopy", "View", "UnsafeView", "Squeeze", "Unsqueeze", "Alias", "Clone")


def logit_facts(logits: Tensor) -> dict[str, Tensor | float]:
    """Return the facts of logits alone.

    Args:
        logits: `(..., C)` with two or more classes, or `(N, 1)` of a regression.

    Returns:
        `logit_max` and `logit_min`; `logits_sum_to_one` (share of rows whose entries are in [0, 1] and sum to one),
        `logits_squashed` (1 where the operation that made them is a sigmoid, a softmax or a ReLU), `logits_one_sided`
        (share of entries that are exactly 0 where none is negative), `ends_in_relu` (1 or 0), `logits_vary` (largest
        standard deviation of a class over the rows, relative to the largest entry).
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
    else:
        facts["ends_in_relu"] = float(_last_operation(logits).startswith("Relu"))
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
        if not name.startswith(_COPIES) or not following:
            return name
        node = following[0][0]
    return ""


def gradient_facts(gradient: Tensor, logits: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor | float]:
    """Return the facts of the gradient that arrives at the logits.

    Args:
        gradient: Derivative of the loss with respect to the logits, in their shape.
        logits: `(..., C)`, or `(B, T)` with one logit per token, of which only `counted_padding` is told.
        inputs: Keyword arguments of the model.

    Returns:
        `counted_fraction` (of rows with a gradient), `counted_padding` (of rows of padding tokens that count; NaN
        where nothing is padded), `counted_by_class` (share of the rows of each class that count, NaN for classes that
        do not occur; for class labels), `gradient_row_sum` (0 for a cross-entropy, relative), `loss_weight` (sum of
        the weights of all rows: 1 for a mean), `target_agrees` and `target_opposed` (share of rows drawn to their
        label, and away from it), `softmax_twice` (1 where the gradient is that of a cross-entropy that took softmax or
        sigmoid of these values for logits, 0 where it is that of one on them, NaN where rows do not tell),
        `linear_loss` (1 where each row is drawn to one class by the same force whatever its values are, and they are
        no log-probabilities), `squared_error` (1 where the gradient is that of squared distances to zeros and a one, 0
        where it is that of a cross-entropy), `gradient_column_sum` (0 where each class is drawn as much up as down
        over the rows, relative; NaN where a row is drawn to several), `target_top_share` (of the class that most
        counted rows are drawn to, where logits are `(N, C)`), `rows_by_target` and `weight_by_target` (how many rows
        are drawn to each class, and how much one of them weighs, the heaviest class 1; NaN where they do not weigh the
        same or the loss is no cross-entropy), `pushed_away` (1 where the gradient is that of a
        cross-entropy times a negative number, else 0), `softmax_over_places` (1 where `(B, T, C)` was viewed as
        `(B, C, T)` and not transposed), and for tokens `target_is_input`, `target_is_next`,
        `target_is_second` (share of counted rows drawn to the token at their own place, the next, the one after). Of a
        single output per row `drawn_up` (share of rows that are drawn up), `drawn_to` (the one value that all rows are
        drawn to, in proportion to their distance; NaN where each has its own) and `drawn_alike` (the sum of the
        gradient, where it is the same at all rows; else NaN), `drawn_below_zero` (share of the rows that stand at 0
        and are drawn down).
    """
    facts: dict[str, Tensor | float] = {}
    ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if isinstance(mask, Tensor) and _one_logit_per_token(gradient, mask, labels):
        return {"counted_padding": _counted_padding(gradient.detach() != 0, mask)}
    classes = logits.shape[-1]
    rows = gradient.detach().reshape(-1, classes)
    if classes < 2 or not len(rows):
        return _single_output(rows.flatten(), logits.detach().flatten()) if len(rows) >= 4 else facts
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
    row_sum = torch.where(valid, part.sum(-1).abs() / scale, math.nan).nanmean()
    facts["gradient_row_sum"] = row_sum
    target = part.argmin(-1)
    probability = logits.detach().reshape(-1, classes)[read].float().softmax(-1)
    missing = 1.0 - probability.gather(-1, target[:, None]).squeeze(-1)
    weight = -part.gather(-1, target[:, None]).squeeze(-1) / missing.clamp(min=1e-6)
    # Rows that are learned have no gradient left to divide by.
    usable = valid & (missing > 1e-3)
    mean_weight = torch.where(usable, weight, math.nan).nanmean()
    facts["loss_weight"] = mean_weight.double() * counted.sum()
    if classes <= _MOST_CLASSES and logits.ndim < 4:  # maps of classes have theirs on another axis
        values = logits.detach().reshape(-1, classes)[read].float()
        # Entries of a row that do not sum to zero belong to losses of their own, as of several labels.
        of_rows, of_entries = _squashed_before(part, values, target, valid), _gated_before(part, values)
        facts["softmax_twice"] = torch.where(row_sum < 1e-2, of_rows, of_entries)
        facts["linear_loss"] = _drawn_evenly(part, values, valid)
        facts["squared_error"] = _of_squared_error(part, values, target, valid)
    if classes <= _CLASSES_WEIGHED and logits.ndim < 4:
        facts |= _class_weights(part, probability, target, valid)
        facts["pushed_away"] = _pushed_away(part, probability, valid)
    if logits.ndim == 2:
        sums = rows.sum(0).abs().float() / rows.abs().sum(0).float().clamp(min=torch.finfo(torch.float32).tiny)
        # A row is drawn to one class; where it is drawn to several, outputs were centered over the batch on purpose.
        to_one = ((rows < 0).sum(-1) <= 1).all()
        facts["gradient_column_sum"] = torch.where(to_one, sums.amax(), math.nan) if len(rows) >= 4 else math.nan
        most = torch.where(valid, target, -1 - torch.arange(len(target), device=target.device)).mode().values
        facts["target_top_share"] = torch.where(
            valid.sum() >= 4, ((target == most) & valid).sum() / valid.sum().clamp(min=1), math.nan
        )
    elif logits.ndim == 3 and classes <= _MOST_CLASSES:
        facts["softmax_over_places"] = _over_places(gradient.detach())
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.shape == leading:
        known = labels.reshape(-1)[read]
        away = part.argmax(-1)
        facts["target_opposed"] = torch.where(valid & (known >= 0), (away == known).float(), math.nan).nanmean()
        facts["target_agrees"] = torch.where(valid & (known >= 0), (target == known).float(), math.nan).nanmean()
        if labels.ndim == 1 and classes <= _MOST_CLASSES:
            facts["counted_by_class"] = _counted_by_class(counted, labels, classes)
    if isinstance(ids, Tensor) and ids.shape == leading and ids.ndim == 2:
        facts |= _token_targets(target, read, valid, ids, mask)
    return facts


def _class_weights(gradient: Tensor, probability: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """How many rows are drawn to each class, and what one of them weighs in a cross-entropy, relative to the most."""
    wide = widest(gradient.device)
    wanted = torch.nn.functional.one_hot(target, probability.shape[-1]).to(wide)
    usable = (valid & ((1.0 - (probability * wanted).sum(-1)) > 0.01)).to(wide)
    weight, rest = _fitted(gradient.to(wide), probability.to(wide) - wanted)
    is_entropy = ((rest < 0.02) | (usable == 0)).all()
    rows = (wanted * usable[:, None]).sum(0)
    mean = (wanted * (usable * weight)[:, None]).sum(0) / rows.clamp(min=1)
    off = ((wanted * usable[:, None]) * (weight[:, None] - mean).abs()).amax(0)
    weighs = torch.where((rows > 0) & (off < 0.02 * mean) & is_entropy, mean, math.nan)
    most = torch.where(weighs.isnan(), 0.0, weighs).amax().clamp(min=1e-30)
    return {"rows_by_target": (wanted * valid[:, None]).sum(0), "weight_by_target": weighs / most}


def _pushed_away(gradient: Tensor, probability: Tensor, valid: Tensor) -> Tensor:
    """1 where the gradient is that of a cross-entropy with the wrong sign, else 0; NaN with fewer than four rows.

    Of two classes either sign fits every row; the right one is that with which all rows weigh the same.
    """
    wide = widest(gradient.device)
    gradient, probability = gradient.to(wide), probability.to(wide)

    def scatter(label: Tensor) -> Tensor:
        weight, rest = _fitted(gradient, probability - torch.nn.functional.one_hot(label, probability.shape[-1]))
        middle = torch.where(valid, weight, math.nan).nanmedian()
        return torch.where(valid, (weight / middle - 1.0).abs() + rest, 0.0).amax()

    away = (scatter(gradient.argmax(-1)) < 0.02) & (scatter(gradient.argmin(-1)) > 0.1)
    return torch.where(valid.sum() >= 4, away.double(), math.nan)


def _over_places(gradient: Tensor) -> Tensor:
    """1 where (B, T, C) was viewed as (B, C, T), whole or without the last place, and not transposed, else 0.

    A softmax leaves a sum of zero along the axis that it runs over; that over the classes of a place is not zero.
    """
    found = torch.zeros((), dtype=torch.bool, device=gradient.device)
    own = _relative_sum(gradient, -1) > 1e-2
    for part in (gradient, gradient[:, :-1]):
        rows, places, classes = part.shape
        if places > 1:
            found |= own & (_relative_sum(part.reshape(rows, classes, places), 1) < 1e-4)
    return found.double()


def _relative_sum(values: Tensor, dim: int) -> Tensor:
    """Largest sum along an axis, relative to the largest sum of absolute values."""
    return values.sum(dim).abs().amax() / values.abs().sum(dim).amax().clamp(min=1e-30)


def _squashed_before(gradient: Tensor, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Whether the loss is a cross-entropy of softmax(logits) or sigmoid(logits), 1, or one of the logits, 0.

    All rows of a mean weigh the same. Which of the three losses it is shows in which the weights come out equal; NaN
    where none does, or rows differ too little to tell.
    """
    wide = widest(logits.device)
    logits, gradient = logits.to(wide), gradient.to(wide)
    wanted = torch.nn.functional.one_hot(target, logits.shape[-1]).to(logits)
    probability, gate = logits.softmax(-1), logits.sigmoid()
    plain = probability - wanted
    twice = _through_softmax(probability, probability.softmax(-1) - wanted)
    # What looks alike while outputs are small and is meant: temperatures, and the error 1 - p of a robust loss.
    tempered = [(logits / degrees).softmax(-1) - wanted for degrees in (2.0, 4.0, 8.0)]
    robust = _through_softmax(probability, -wanted)
    gated = gate * (1.0 - gate) * (gate.softmax(-1) - wanted)
    usable = valid & (probability.amax(-1) < 0.99)

    def scatter(expected: Tensor) -> Tensor:
        """Deviation of the rows' weights and of what is left over, relative to the mean weight."""
        weight, rest = _fitted(gradient, expected)
        middle = torch.where(usable, weight, math.nan).nanmedian()
        return torch.where(usable, (weight / middle - 1.0).abs() + rest, math.nan).nanmean()

    meant = torch.stack([scatter(loss) for loss in (plain, robust, *tempered)]).amin()
    told = _which(meant, torch.minimum(scatter(twice), scatter(gated)))
    return torch.where(usable.sum() >= 4, told, math.nan)


def _through_softmax(probability: Tensor, gradient: Tensor) -> Tensor:
    """What a gradient at probabilities is at the values that softmax made them of."""
    return probability * (gradient - (probability * gradient).sum(-1, keepdim=True))


def _fitted(gradient: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of each row with which it is nearest to what is expected, and the relative norm of what is left."""
    weight = (gradient * expected).sum(-1) / expected.square().sum(-1).clamp(min=1e-20)
    rest = (gradient - weight[:, None] * expected).norm(dim=-1) / gradient.norm(dim=-1).clamp(min=1e-20)
    return weight, rest


def _which(once: Tensor, before: Tensor) -> Tensor:
    """0 where weights are equal under a loss of the logits, 1 where they are under one of what was made of them."""
    told = torch.where((before < 0.01) & (once > 0.03), 1.0, math.nan)
    return torch.where((once < 0.01) & (before > 0.03), 0.0, told)


def _of_squared_error(gradient: Tensor, outputs: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Whether the loss is the squared distance to a row of zeros and a one, 1, or a cross-entropy, 0; else NaN."""
    wide = widest(outputs.device)
    outputs, gradient = outputs.to(wide), gradient.to(wide)
    wanted = torch.nn.functional.one_hot(target, outputs.shape[-1]).to(outputs)

    def rest(expected: Tensor) -> Tensor:
        return torch.where(valid, _fitted(gradient, expected)[1], math.nan).nanmean()

    squares, entropy = rest(outputs - wanted), rest(outputs.softmax(-1) - wanted)
    told = torch.where((entropy < 0.02) & (squares > 5 * entropy), 0.0, math.nan)
    return torch.where((squares < 0.02) & (entropy > 5 * squares), 1.0, told)


def _gated_before(gradient: Tensor, logits: Tensor) -> Tensor:
    """As `_squashed_before`, of a binary cross-entropy on every entry: of sigmoid(logits), 1, or of the logits, 0."""
    wide = widest(logits.device)
    logits, gradient = logits.flatten().to(wide), gradient.flatten().to(wide)
    wanted, gate = (gradient < 0).to(wide), logits.sigmoid()
    usable = (gradient != 0) & ((gate - wanted).abs() > 0.01)

    def scatter(expected: Tensor) -> Tensor:
        weight = torch.where(usable, gradient / expected, math.nan)
        return (weight / weight.nanmedian() - 1.0).abs().nanmean()

    told = _which(scatter(gate - wanted), scatter(gate * (1.0 - gate) * (gate.sigmoid() - wanted)))
    both = (wanted.bool() & usable).any() & (~wanted.bool() & usable).any()  # else it is a mean, as a critic's
    return torch.where((usable.sum() >= 8) & both, told, math.nan)


def _drawn_evenly(gradient: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
    """Whether every row has one entry that is not zero, negative and as large as those of others, as 0 or 1."""
    force = -gradient.amin(-1)
    middle = torch.where(valid, force, math.nan).nanmedian()
    alone = ((gradient != 0).sum(-1) == 1) & ((force / middle - 1.0).abs() < 1e-3)
    normalized = logits.logsumexp(-1).abs() < 0.05
    found = (alone | ~valid).all() & ~(normalized | ~valid).all()
    return torch.where(valid.sum() >= 4, found.double(), math.nan)


def _single_output(gradient: Tensor, output: Tensor) -> dict[str, Tensor | float]:
    """Where rows of a regression are drawn to: a straight line through (output, gradient) crosses zero there."""
    wide = widest(gradient.device)
    y, x = gradient.to(wide), output.to(wide)
    dx, dy = x - x.mean(), y - y.mean()
    slope = (dx * dy).sum() / dx.square().sum()
    off = (dy - slope * dx).square().sum() / dy.square().sum()
    # Of a mean of squares, or of their halves.
    of_squares = ((slope * len(x) - 2.0).abs() < 0.02) | ((slope * len(x) - 1.0).abs() < 0.01)
    lies_on_it = (off < 1e-6) & of_squares & (dy.abs().amax() > 1e-5 * y.abs().amax())
    alike = (dy.abs().amax() <= 1e-5 * y.abs().amax()) & (y != 0).any() & (dx.abs().amax() > 1e-5 * x.abs().amax())
    return {
        "softmax_twice": _gated_before(gradient, output),
        "drawn_alike": torch.where(alike, y.sum(), math.nan),
        "drawn_up": (y < 0).double().mean(),
        "drawn_below_zero": ((x == 0) & (y > 0)).double().mean(),
        "drawn_to": torch.where(lies_on_it, x.mean() - y.mean() / slope, math.nan),
    }


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
