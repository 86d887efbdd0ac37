"""Rules on the loss, as the gradient that it sends into the model's outputs shows it."""

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import has_not_fallen, latest
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    needs="forward",
    explains=(OUTCOME, FLOW, STEPS),
    cause="softmax or sigmoid is applied in the model, and again in the loss, which takes logits",
    remedy="return logits; cross_entropy and binary_cross_entropy_with_logits apply softmax and sigmoid themselves",
)
def outputs_not_logits(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """What goes into the loss as logits cannot be logits: probabilities, or values of one sign with exact zeros.

    Judged where the gradient of every row sums to zero, as that of a softmax does; so the loss takes them for logits.
    Losses that take probabilities are silent: a squared error of probabilities has such sums as well and is told apart
    once outputs leave the even distribution, and values of a softmax wait for that. Where softmax or sigmoid stands
    between the model and its loss, the gradient is exactly that of such a loss, and not that of a cross-entropy on
    what the model returns.
    """
    squashed = history.fact("softmax_twice")
    squashed = squashed[np.isfinite(squashed)]
    if len(squashed) >= samples and (squashed == 1.0).all():
        return outputs_not_logits.finding(
            history,
            value=1.0,
            threshold=0.0,
            seen="the gradient is that of a cross-entropy of softmax(logits) or sigmoid(logits), not of the logits",
            remedy="give the model's logits to the loss as they are; cross_entropy applies softmax itself",
        )
    made = latest(history, "logits_squashed", samples)
    if (
        len(squashed) >= samples
        and (squashed[-samples:] == 0.0).all()
        and len(made) == samples
        and (made == 1.0).all()
    ):
        return outputs_not_logits.finding(
            history,
            value=1.0,
            threshold=0.5,
            seen="the logits come out of a sigmoid, a softmax or a ReLU, and the loss takes them for logits",
        )
    for fact, limit, seen in (
        ("logits_sum_to_one", 0.999, "rows of the logits are probabilities: in [0, 1], with a sum of one"),
        ("logits_squashed", 0.5, "the logits come out of a sigmoid, a softmax or a ReLU"),
        ("logits_one_sided", 0.2, "no logit is negative, and many are exactly 0"),
    ):
        recent = latest(history, fact, samples)
        row_sum = latest(history, "gradient_row_sum", samples)
        if len(recent) < samples or not (recent > limit).all():
            continue
        if len(row_sum) < samples or not (row_sum < 1e-2).all():
            continue
        squares = history.fact("squared_error")
        if (squares == 1.0).any() or (fact == "logits_sum_to_one" and not (squares == 0.0).any()):
            continue
        return outputs_not_logits.finding(history, value=recent[-1], threshold=limit, seen=seen)
    return None


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW, STEPS, "wrong_loss_sign"),
    cause="the loss takes log-probabilities (nll_loss, or a picked entry with a minus) and gets plain logits",
    remedy="use cross_entropy, or put log_softmax before nll_loss",
)
def log_probabilities_expected(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """Every row is drawn to its class by the same force, whatever the model already predicts: the loss has no end.

    That is the gradient of a negative log-likelihood in log-probabilities; judged where rows of outputs are none:
    their exponentials do not sum to one.
    """
    recent = latest(history, "linear_loss", samples)
    if len(recent) < samples or not (recent == 1.0).all():
        return None
    return log_probabilities_expected.finding(
        history,
        value=1.0,
        threshold=0.0,
        seen="every row is drawn to its class by the same force however sure the model is, and outputs are no "
        "log-probabilities",
    )


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW, STEPS, "rows_mixed"),
    cause="softmax runs over the examples of the batch (dim=0) instead of over the classes",
    remedy="use dim=-1, or cross_entropy on logits of shape (examples, classes)",
)
def softmax_over_batch(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """The gradient at the logits sums to zero over the batch for every class, and not over the classes of an example.

    A softmax leaves such a sum along the axis that it runs over. Square outputs, as of contrastive losses, are silent.
    """
    columns, rows = latest(history, "gradient_column_sum", samples), latest(history, "gradient_row_sum", samples)
    if len(columns) < samples or len(rows) < samples or history.fact("examples")[-1] == history.classes[-1]:
        return None
    if not (columns < 1e-4).all() or not (rows > 2e-3).all():
        return None
    return softmax_over_batch.finding(
        history,
        value=columns[-1],
        threshold=1e-4,
        seen="the gradient of every class sums to zero over the batch, that of an example does not over the classes",
    )


@rule(
    needs="forward",
    explains=(OUTCOME, "loss_diverging"),
    severity="warning",
    cause="cross_entropy (a softmax over the classes) on rows that have several labels, of which it can give each "
    "only a part",
    remedy="use binary_cross_entropy_with_logits, or problem_type='multi_label_classification'",
)
def one_softmax_for_several_labels(history: HealthHistory, *, share: float = 0.1, samples: int = 4) -> Finding | None:
    """Rows have more than one label, and the gradient of each row sums to zero, as only a softmax leaves it."""
    several, sums = latest(history, "several_labels", samples), latest(history, "gradient_row_sum", samples)
    if len(several) < samples or len(sums) < samples or not (several > share).all() or not (sums < 1e-3).all():
        return None
    return one_softmax_for_several_labels.finding(
        history,
        value=several[-1],
        threshold=share,
        seen=f"{several[-1]:.0%} of the rows have several labels, and their losses come from one softmax",
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    severity="warning",
    cause="class weights are the wrong way round: frequencies instead of their inverse, or another order of classes",
    remedy="weight = 1 / count of each class (sklearn's compute_class_weight('balanced')); print it beside the counts",
)
def class_weights_reversed(
    history: HealthHistory, *, factor: float = 3.0, frequency: float = 2.0, samples: int = 4
) -> Finding | None:
    """The loss weights examples of a frequent class several times as much as those of a rarer one.

    Weights are read from the gradient at the outputs of a cross-entropy, where all rows of a class weigh the same.
    """
    weights, rows = history.fact("weight_by_target"), history.fact("rows_by_target")
    if weights.ndim != 2 or rows.shape != weights.shape:
        return None
    counts = np.nansum(rows, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = weights[:, :, None] / weights[:, None, :]  # (samples, classes, classes)
        known = np.isfinite(ratios)
        heavier = (known.sum(0) >= samples) & (np.where(known, ratios, np.inf).min(0) >= factor)
        reversed_pair = heavier & (counts[:, None] >= frequency * counts[None, :])
    if not reversed_pair.any():
        return None
    heavy, light = np.argwhere(reversed_pair)[np.argmax(counts[np.argwhere(reversed_pair)[:, 0]])]
    ratio = float(np.nanmedian(ratios[:, heavy, light]))
    return class_weights_reversed.finding(
        history,
        value=ratio,
        threshold=factor,
        seen=f"an example of class {heavy} ({counts[heavy]:.0f} of those looked at) weighs {ratio:.3g} times as much "
        f"as one of class {light} ({counts[light]:.0f})",
    )


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW, STEPS, "padding_counts", "labels_of_other_text"),
    cause="logits of shape (rows, places, classes) were viewed or reshaped to (rows, classes, places) for the loss, "
    "which mixes places and classes",
    remedy="use logits.transpose(1, 2), or flatten both: logits.flatten(0, 1) with labels.flatten()",
)
def logits_viewed_not_transposed(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """The gradient of a sequence of logits sums to zero over places as a view counts them, not over the classes."""
    viewed = latest(history, "softmax_over_places", samples)
    if len(viewed) < samples or not (viewed == 1.0).all():
        return None
    return logits_viewed_not_transposed.finding(
        history,
        value=1.0,
        threshold=0.0,
        seen="the softmax of the loss runs over entries of several places, as a view gives them",
    )


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW),
    cause="outputs of shape (N, 1) and targets of shape (N,) were broadcast to (N, N), so that the loss compares each "
    "output with the targets of all rows",
    remedy="bring both to one shape: logits.squeeze(-1), or labels.unsqueeze(-1)",
)
def targets_broadcast(history: HealthHistory, *, samples: int = 4) -> Finding | None:
    """All outputs of a regression are drawn to one value, which is another one in every batch.

    Each row of a squared error is drawn to its own target; all to the mean of the batch where shapes were broadcast.
    Where the value is always the same (a discriminator, a constant label) this is silent.
    """
    value = latest(history, "drawn_to", samples)
    force = latest(history, "drawn_alike", samples)
    if len(force) == samples and _differ(np.abs(force), np.abs(force).max()):
        return targets_broadcast.finding(
            history,
            value=force[-1],
            threshold=0.0,
            seen=f"in each of {samples} batches the gradient is the same at all outputs, though they differ",
            cause="the loss compares means over the batch instead of each output with its target",
            remedy="take the mean after the square: (outputs - targets).square().mean()",
        )
    if len(value) < samples:
        return None
    outputs = max(abs(history.fact("logit_max")[-1]), abs(history.fact("logit_min")[-1]))
    if not _differ(value, max(np.abs(value).max(), outputs)):
        return None
    return targets_broadcast.finding(
        history,
        value=value[-1],
        threshold=0.0,
        seen=f"in each of {samples} batches all outputs are drawn to one value, now {value[-1]:.3g}, before "
        f"{value[-2]:.3g}",
    )


def _differ(values: np.ndarray, scale: float) -> bool:
    """Whether there are at least three values: a critic's mean has the same in every batch, or one for each player."""
    return bool((np.diff(np.sort(values)) > 1e-3 * scale).sum() >= 2)


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW),
    severity="warning",
    cause="the model's outputs end in a sigmoid, tanh or ReLU whose range does not hold the targets, or targets have "
    "another scale or unit than outputs",
    remedy="scale the targets (mean 0, deviation 1), and let the last layer of a regression be linear",
)
def targets_out_of_reach(history: HealthHistory, *, samples: int = 20) -> Finding | None:
    """All outputs of a regression are drawn in one direction, batch after batch, and the loss does not fall.

    Or outputs end in a ReLU, and over eight samples a tenth and more of the rows stand at 0 and are drawn below it.
    """
    below, ends = latest(history, "drawn_below_zero", 8), latest(history, "ends_in_relu", 8)
    if len(below) == len(ends) == 8 and below.mean() > 0.1 and ends.all():
        return targets_out_of_reach.finding(
            history,
            value=below.mean(),
            threshold=0.1,
            seen=f"outputs end in a ReLU, and {below.mean():.0%} of the rows stand at 0 and are drawn below it",
        )
    drawn = latest(history, "drawn_up", samples)
    if len(drawn) < samples or not ((drawn == 1.0).all() or (drawn == 0.0).all()) or not has_not_fallen(history):
        return None
    return targets_out_of_reach.finding(
        history,
        value=drawn[-1],
        threshold=0.5,
        seen=f"in {samples} samples in a row all outputs are drawn {'up' if drawn[-1] else 'down'}; the loss stays",
    )
