"""Rules on inputs and the loss as the model receives them: wrong before any parameter moves."""

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import latest
from bert_toolkit.health.rules.registry import BEHAVIOR, COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite", "repeated_batch", "constant_label", "rows_repeated"),
    needs="forward",
    cause="the dataset, tokenization or collator gives a constant, or one example is repeated",
    remedy="print a batch of the data loader; compare the examples with the raw rows",
)
def identical_inputs(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """All examples of a batch are the same, in each of the last `samples` samples.

    Batches of one example are not judged. Three samples rule out a chance duplicate. Without class labels it must be
    so from the beginning: a policy may come to do the same every time.
    """
    if len(history) < samples or not history.identical_inputs[-samples:].all():
        return None
    if not history.integer_labels[-1] and not history.identical_inputs.all():
        return None
    return identical_inputs.finding(
        history,
        value=1.0,
        threshold=1.0,
        seen=f"every example of the batch had the same inputs in {samples} samples in a row",
    )


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite"),
    needs="forward",
    cause="the loss has the wrong sign (a log-likelihood instead of its negative), so training makes the model worse",
    remedy="negate the loss; use torch.nn.functional.cross_entropy on logits, nll_loss on log-probabilities",
)
def wrong_loss_sign(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """The loss of a model with class labels is negative, which no cross-entropy is.

    Losses that are negative by design (a Dice score, mutual information) do not push rows away from their labels.
    Where the model does not get the labels: the gradient is that of a cross-entropy times a negative number.
    """
    recent = slice(-samples, None)
    pushed = latest(history, "pushed_away", samples)
    if len(pushed) == samples and (pushed == 1.0).all() and not (history.loss[recent] > 0).any():
        return wrong_loss_sign.finding(
            history,
            value=1.0,
            threshold=0.0,
            seen="the gradient is that of a cross-entropy times a negative number: it pushes rows from their labels",
        )
    if len(history) < samples or not (history.integer_labels & (history.classes > 1))[recent].all():
        return None
    opposed = latest(history, "target_opposed", samples)
    if not (history.loss[recent] < 0).all() or (len(opposed) and not (opposed > 0.9).all()):
        return None
    return wrong_loss_sign.finding(
        history,
        value=history.loss[-1],
        threshold=0.0,
        seen=f"the loss is {history.loss[-1]:.3g} though labels are classes",
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="labels of padding tokens are not -100, or attention_mask and labels were padded apart",
    remedy="pad labels with -100 (DataCollatorForTokenClassification, DataCollatorForSeq2Seq do), or mask the loss",
)
def padding_counts(history: HealthHistory, *, samples: int = 3, share: float = 0.5) -> Finding | None:
    """Padding tokens are targets of the loss.

    Seen in the gradient that arrives at the logits of tokens that `attention_mask` hides, or, where that is unknown,
    in the labels. A causal model's last real token may be asked for one padding token, so most of the padding must
    count. Labels are compared with the padding token's id only where there are as many classes as words: class 0 of a
    tagger is no padding. The mask of an encoder says nothing about the labels of its decoder.
    """
    config = history.settings.config
    words = config.get("vocab_size")
    facts = []
    if not config.get("is_encoder_decoder"):
        facts.append(("counted_padding", "of the padding tokens send a gradient"))
        if not len(latest(history, "counted_padding", samples)):
            facts.append(("labels_on_padding", "of the padding tokens have a label"))
    if isinstance(words, int) and len(history) and history.classes[-1] >= words:
        facts.append(("label_pad_run", "of the labels are padding"))
    for fact, seen in facts:
        recent = latest(history, fact, samples)
        limit = 0.2 if fact == "label_pad_run" else share
        if len(recent) == samples and (recent > limit).all():
            labeled = latest(history, "labels_on_padding", samples)
            ignored = fact == "counted_padding" and len(labeled) == samples and not labeled.any()
            return padding_counts.finding(
                history,
                value=recent[-1],
                threshold=limit,
                seen=f"{recent[-1]:.0%} {seen}" + (", and their labels are -100" if ignored else ""),
                cause="the loss does not heed -100, or compares outputs with labels of other places: reshaped in "
                "another order, shifted past the end of a row"
                if ignored
                else None,
                remedy="flatten both in the same order, logits.reshape(-1, classes) with labels.reshape(-1), and use "
                "cross_entropy with ignore_index=-100"
                if ignored
                else None,
            )
    return None


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="an iterator that is made anew for every step, a cached batch, or a generator that always starts at the top",
    remedy="iterate the data loader to its end before starting again; print the ids of a few batches",
)
def repeated_batch(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """The very same batch, in the same order, in each of the last samples.

    Not judged where an epoch has one batch, or where the sampled steps are whole epochs apart, since data in a fixed
    order then repeat by design. Where the length of an epoch is unknown it is a note: a loop may have all its data in
    one batch, take several steps with one (policies, quasi-Newton), or learn one by heart as a check. Batches of
    neighboring steps that come in equal pairs, again and again and never in threes, are told as a warning.
    """
    if (pairs := _equal_neighbors(history)) >= samples and history.settings.batches_per_epoch is None:
        return repeated_batch.finding(
            history,
            value=pairs,
            threshold=samples,
            seen=f"{pairs} times in the last 12 samples a step had the batch of the step before",
            cause="several workers of the data loader read the same stream",
            remedy="split the stream by torch.utils.data.get_worker_info(), or use dataloader_num_workers=0",
            severity="warning",
        )
    prints = latest(history, "fingerprint", samples)
    if len(prints) < samples or len(set(prints.tolist())) > 1:
        return None
    batches = history.settings.batches_per_epoch
    distances = np.diff(history.step[-samples:])
    if batches is not None:
        updates = max(1.0, batches / max(history.settings.accumulation, 1))
        if batches <= max(history.settings.accumulation, 1) or (distances % updates == 0).all():
            return None
    elif len(set(distances.tolist())) == 1 and distances[0] > 1:
        return None
    return repeated_batch.finding(
        history,
        value=samples,
        threshold=samples,
        seen=f"the batches of steps {', '.join(str(step) for step in history.step[-samples:])} are the same",
        severity="note" if batches is None else "error",
    )


def _equal_neighbors(history: HealthHistory) -> int:
    """How many of the last 12 samples have the batch of the step before them, while others do not; 0 if in threes."""
    prints, steps = history.fact("fingerprint")[-12:], history.step[-12:]
    if prints.ndim != 1 or len(prints) < 6:
        return 0
    neighbors = np.diff(steps) == 1
    equal = (np.diff(prints) == 0) & neighbors
    if (equal[1:] & equal[:-1]).any():
        return 0
    return int(equal.sum()) if (~equal & neighbors).sum() >= 3 else 0


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="the tokenizer does not belong to the texts or the model: another language, alphabet, casing or vocabulary",
    remedy="load the tokenizer with the model's name; decode a batch and read it",
)
def unknown_tokens(history: HealthHistory, *, share: float = 0.4, samples: int = 3) -> Finding | None:
    """A large part of the tokens is the unknown token."""
    recent = latest(history, "unknown_fraction", samples)
    if len(recent) < samples or not (recent > share).all():
        return None
    return unknown_tokens.finding(
        history,
        value=recent[-1],
        threshold=share,
        seen=f"{recent[-1]:.0%} of the tokens (special ones aside) are unknown",
        severity="error" if recent[-1] > 0.7 else "warning",
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    severity="warning",
    cause="max_length cuts texts to almost nothing, the wrong column was tokenized, or texts are empty",
    remedy="raise max_length; decode a batch and read it",
)
def texts_cut(history: HealthHistory, *, tokens: float = 2.0, samples: int = 3) -> Finding | None:
    """Texts hold two tokens at most besides the special ones, on average over the rows of every batch."""
    ordinary, examples = latest(history, "ordinary_tokens", samples), latest(history, "examples", samples)
    if len(ordinary) < samples or len(examples) < samples or not history.settings.special_tokens:
        return None
    if not {"cls", "sep"} <= history.settings.special_tokens.keys():
        return None
    per_row = ordinary / np.maximum(examples, 1)
    if not (per_row <= tokens).all():
        return None
    return texts_cut.finding(
        history,
        value=per_row[-1],
        threshold=tokens,
        seen=f"rows hold {per_row[-1]:.1f} tokens each besides the special ones",
    )


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW, "nonfinite"),
    cause="inputs are raw values (pixels of 0 to 255, samples of 16 bits), were scaled twice, or hold NaN",
    remedy="use the model's image or feature processor; scale inputs to a mean of 0 and a deviation of 1",
)
def input_scale(
    history: HealthHistory, *, largest: float = 30.0, smallest: float = 1e-3, samples: int = 3
) -> Finding | None:
    """Float inputs have a root mean square far from one, or are not finite.

    The scale says nothing where a normalization is the first thing in the model.
    """
    bad = latest(history, "float_input_nonfinite", 1)
    if len(bad) and bad[-1] > 0:
        return input_scale.finding(
            history, value=bad[-1], threshold=0.0, seen=f"{bad[-1]:.2%} of the inputs are NaN or infinite"
        )
    recent = latest(history, "float_input_rms", samples)
    if history.roles[0] == "norm":
        return None
    if len(recent) < samples or not ((recent > largest).all() or ((recent > 0) & (recent < smallest)).all()):
        return None
    return input_scale.finding(
        history,
        value=recent[-1],
        threshold=largest if recent[-1] > largest else smallest,
        seen=f"inputs have a root mean square of {recent[-1]:.3g}; about 1 is usual",
        severity="warning",
    )


@rule(
    needs="forward",
    explains=(OUTCOME, BEHAVIOR),
    cause="position_ids are constant, built wrongly or left at zero",
    remedy="leave position_ids out (the model counts itself), or pass 0, 1, 2, … for every row",
)
def positions_constant(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """`position_ids` are passed and are the same for all tokens."""
    recent = latest(history, "positions_vary", samples)
    if len(recent) < samples or (recent > 0).any():
        return None
    return positions_constant.finding(
        history, value=0.0, threshold=1.0, seen="position_ids hold one value for all tokens of the batch"
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    severity="warning",
    cause="rows were duplicated by a join, a map or a sampler, or a data set is repeated within an epoch",
    remedy="drop duplicates; if rows are repeated on purpose (several views of one example), ignore this",
)
def rows_repeated(history: HealthHistory, *, distinct: float = 0.5, samples: int = 4) -> Finding | None:
    """Most rows of every batch so far are the same as another row of it."""
    recent = history.fact("distinct_rows")
    if len(recent) < samples or not (recent < distinct).all():  # a policy may come to say the same every time
        return None
    return rows_repeated.finding(
        history,
        value=recent[-1],
        threshold=distinct,
        seen=f"of the rows of a batch {recent[-1]:.0%} are different ones",
    )
