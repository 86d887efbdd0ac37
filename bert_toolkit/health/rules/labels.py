"""Rules on labels as the model receives them, whatever the inputs are."""

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import latest
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    needs="forward",
    explains=(OUTCOME, FLOW),
    cause="the label column is constant, was lost in a map or a join, or was read with the wrong name or type",
    remedy="count the labels of the training rows; print a batch of the data loader",
)
def constant_label(history: HealthHistory, *, samples: int = 5, examples: int = 32) -> Finding | None:
    """Every example so far had the same class label, though the model tells several apart, or the same number.

    Examples of a batch that comes again and again (one learned by heart as a check) count once.
    """
    counts = history.label_counts
    low, high = history.fact("label_low"), history.fact("label_high")
    if len(history) >= samples and np.isfinite(low).all() and low.min() == high.max():
        if np.nansum(history.fact("examples")) < examples:
            return None
        return constant_label.finding(
            history, value=1.0, threshold=1.0, seen=f"all labels of {len(history)} samples are {low[0]:g}"
        )
    if len(history) < samples or counts.size < 2:
        return None
    prints = history.fact("fingerprint")
    different = len(np.unique(prints)) / len(prints) if np.isfinite(prints).all() else 1.0
    if counts.sum() * different < examples:
        return None
    agrees = history.fact("target_agrees")
    if counts.max() < counts.sum() or (np.isfinite(agrees).any() and np.nanmedian(agrees) < 0.5):
        return None  # several, or the loss heeds others
    return constant_label.finding(
        history,
        value=1.0,
        threshold=1.0,
        seen=f"all of {counts.sum():.0f} examples have label {int(counts.argmax())} of {counts.size} classes",
    )


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW, STEPS),
    cause="labels were replaced by -100: a wrong mask of prompts, a wrong padding id, words that were not aligned",
    remedy="print the labels of a batch beside its tokens; -100 belongs only where nothing is to be learned",
)
def labels_ignored(history: HealthHistory, *, share: float = 0.02, samples: int = 3) -> Finding | None:
    """Almost no token or example has a label that counts (all others are -100)."""
    recent = latest(history, "labeled_fraction", samples)
    if len(recent) < samples or not (recent < share).all():
        return None
    return labels_ignored.finding(
        history,
        value=recent[-1],
        threshold=share,
        seen=f"only {recent[-1]:.2%} of the labels count, the others are -100",
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="a loss with ignore_index, weight 0 or a mask that fits another numbering of the classes",
    remedy="check ignore_index, class weights and masks of the loss against the ids of the labels",
)
def class_never_counts(history: HealthHistory, *, samples: int = 4) -> Finding | None:
    """Examples of one class send no gradient at all while those of the others do.

    Where the model does not get the labels: from the first step on examples are left out, and all that are not are
    drawn to one class.
    """
    counted = history.fact("counted_by_class")
    if len(history) < samples:
        return None
    if counted.ndim != 2:
        heard, top = history.fact("counted_fraction")[:samples], history.fact("target_top_share")[:samples]
        labeled = history.fact("labeled_fraction")
        if len(history) > samples or labeled.ndim != 1 or np.isfinite(labeled).any():
            return None
        if not (heard < 0.95).all() or not (top == 1.0).all():
            return None
        return class_never_counts.finding(
            history,
            value=heard[-1],
            threshold=0.95,
            seen=f"only {heard[-1]:.0%} of the examples send a gradient, and it draws all of them to one class",
        )
    known = np.isfinite(counted)
    with np.errstate(invalid="ignore"):
        silent = (known.sum(axis=0) >= samples) & (np.nan_to_num(counted, nan=0.0).max(axis=0) == 0.0)
        heard = (known & (counted > 0.5)).any(axis=0)
    if not silent.any() or not heard.any():
        return None
    ids = np.flatnonzero(silent)
    return class_never_counts.finding(
        history,
        value=len(ids),
        threshold=0,
        seen=f"examples of class {', '.join(map(str, ids[:5]))} never send a gradient, those of other classes do",
    )


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME),
    cause="the rows are sorted by class and not shuffled",
    remedy="shuffle the training rows (dataset.shuffle(seed), DataLoader(shuffle=True))",
)
def sorted_by_class(
    history: HealthHistory, *, samples: int = 5, examples: int = 4, fraction: float = 0.999, sorted_part: float = 0.8
) -> Finding | None:
    """Every batch holds one class only, although the classes change from batch to batch or the model has several.

    With batches of at least `examples` rows and classes that each take less than nine tenths of the rows in all,
    `samples` pure batches in a row do not come from shuffled rows. At least `sorted_part` of all batches so far must
    be pure: in rows that are sorted by something else (their length, their date) only some stretches are.
    """
    top, size = latest(history, "top_label_fraction", samples), latest(history, "examples", samples)
    if len(top) < samples or len(size) < samples or not (top >= fraction).all() or size.min() < examples:
        return None
    every = history.fact("top_label_fraction")
    if (every >= fraction).sum() < sorted_part * np.isfinite(every).sum():
        return None
    counts = history.label_counts
    if counts.size < 2 or not counts.sum() or counts.max() >= 0.9 * counts.sum():
        return None
    return sorted_by_class.finding(
        history,
        value=float(top.min()),
        threshold=fraction,
        seen=f"each of the last {samples} batches holds one class only",
    )


@rule(
    needs="forward",
    explains=(OUTCOME, "one_token_asked"),
    cause="the labels of one row are used for all of them: a list multiplied by the number of rows, an index that "
    "does not move, a label column made outside of the loop over rows",
    remedy="print tokens beside labels of three rows; make labels from the same row as the tokens",
)
def labels_equal_in_rows(history: HealthHistory, *, samples: int = 5) -> Finding | None:
    """All rows of every batch have the same labels of tokens (or of several classes), though their inputs differ.

    Judged where the labels of a row are not all the same.
    """
    equal = latest(history, "label_rows_equal", samples)
    if len(equal) < samples or not (equal == 1.0).all() or history.identical_inputs[-samples:].any():
        return None
    return labels_equal_in_rows.finding(
        history, value=1.0, threshold=1.0, seen=f"in {samples} batches in a row all rows had one sequence of labels"
    )


@rule(
    needs="forward",
    explains=(),
    severity="warning",
    cause="a class was lost where rows were selected, joined or renumbered, or num_labels is too large",
    remedy="count the labels of the training rows and of the test rows; compare id2label with how labels are numbered",
)
def class_without_examples(
    history: HealthHistory, *, examples_per_class: int = 100, most_classes: int = 50
) -> Finding | None:
    """A class that the model tells apart has had no example among so many that every class could have had many.

    Not judged where a model has more than `most_classes` classes, or where half of them are without examples: a head
    that came with the checkpoint has classes of its own.
    """
    counts = history.label_counts
    if not 3 <= len(counts) <= most_classes or counts.sum() < examples_per_class * len(counts):
        return None
    absent = np.flatnonzero(counts == 0)
    if not len(absent) or 2 * len(absent) > len(counts):
        return None
    return class_without_examples.finding(
        history,
        value=len(absent),
        threshold=0,
        seen=f"none of {counts.sum():.0f} examples is of class {', '.join(map(str, absent[:5]))}; the model tells "
        f"{len(counts)} apart",
    )
