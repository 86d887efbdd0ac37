"""Rules on labels, inputs and the loss as the model receives them: wrong before any parameter moves."""

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite"),
    needs="forward",
    cause="the dataset, tokenization or collator gives a constant, or one example is repeated",
    remedy="print a batch of the data loader; compare the examples with the raw rows",
)
def identical_inputs(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """All examples of a batch are the same, in each of the last `samples` samples.

    Batches of one example are not judged. Three samples rule out a chance duplicate.
    """
    if len(history) < samples or not history.identical_inputs[-samples:].all():
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
    cause="attention_mask is all zeros: inverted (1 means hidden) or built from the wrong padding id",
    remedy="pass 1 for tokens and 0 for padding; check pad_token_id against the tokenizer",
)
def masked_attention(history: HealthHistory, *, samples: int = 3, share: float = 0.5) -> Finding | None:
    """The attention mask hides every token of more than `share` of the examples.

    A padded batch may hold an empty row by mistake or on purpose; half of the batch is never meant.
    """
    if len(history) < samples or not (history.masked_share[-samples:] > share).all():
        return None
    return masked_attention.finding(
        history,
        value=history.masked_share[-1],
        threshold=share,
        seen=f"attention_mask hides all tokens of {history.masked_share[-1]:.0%} of the examples",
    )


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite"),
    needs="forward",
    cause="the loss has the wrong sign (a log-likelihood instead of its negative), so training makes the model worse",
    remedy="negate the loss; use torch.nn.functional.cross_entropy on logits, nll_loss on log-probabilities",
)
def wrong_loss_sign(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """The loss of a model with class labels is negative, which no cross-entropy is."""
    recent = slice(-samples, None)
    if len(history) < samples or not (history.integer_labels & (history.classes > 1))[recent].all():
        return None
    if not (history.loss[recent] < 0).all():
        return None
    return wrong_loss_sign.finding(
        history,
        value=history.loss[-1],
        threshold=0.0,
        seen=f"the loss is {history.loss[-1]:.3g} though labels are classes",
    )
