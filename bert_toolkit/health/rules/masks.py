"""Rules on what attention masks hide, seen in the batches that the model receives."""

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import latest
from bert_toolkit.health.rules.registry import BEHAVIOR, COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, "nonfinite", "padding_counts"),
    needs="forward",
    cause="attention_mask is all zeros: inverted (1 means hidden) or built from the wrong padding id",
    remedy="pass 1 for tokens and 0 for padding; check pad_token_id against the tokenizer",
)
def fully_masked_inputs(history: HealthHistory, *, samples: int = 3, share: float = 0.5) -> Finding | None:
    """The attention mask hides every token of more than `share` of the examples.

    A padded batch may hold an empty row by mistake or on purpose; half of the batch is never meant.
    """
    if len(history) < samples or not (history.masked_share[-samples:] > share).all():
        return None
    return fully_masked_inputs.finding(
        history,
        value=history.masked_share[-1],
        threshold=share,
        seen=f"attention_mask hides all tokens of {history.masked_share[-1]:.0%} of the examples",
    )


@rule(
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "padding_not_hidden", "texts_cut", "unknown_tokens"),
    needs="forward",
    cause="the mask is inverted: it was made by `== pad_token_id`, or for a library in which 1 means hidden",
    remedy="invert it: attention_mask has 1 for tokens and 0 for padding",
)
def mask_inverted(history: HealthHistory, *, samples: int = 2, share: float = 0.9) -> Finding | None:
    """The attention mask hides nearly all words and shows nearly all padding, or it is that of other rows.

    Of other rows it is where it hides more than a twentieth of the words and shows more than a fifth of the padding:
    one that is meant does either.
    """
    shown, hidden = latest(history, "padding_seen", samples), latest(history, "words_hidden", samples)
    if len(shown) < samples or len(hidden) < samples or not (shown > 0.2).all() or not (hidden > 0.05).all():
        return None
    inverted = (shown > share).all() and (hidden > share).all()
    return mask_inverted.finding(
        history,
        value=hidden[-1],
        threshold=share if inverted else 0.05,
        seen=f"attention_mask hides {hidden[-1]:.0%} of the words and shows {shown[-1]:.0%} of the padding",
        cause="" if inverted else "mask and ids do not belong together: padded on different sides, or of other rows",
        remedy="" if inverted else "take both from the same call of the tokenizer or of tokenizer.pad",
    )


@rule(
    needs="forward",
    explains=(),
    severity="warning",
    cause="attention_mask is not passed to the model, or a collator or a dataset makes one of ones only",
    remedy="pass the tokenizer's attention_mask on to the model (keep the column, return it from the collator)",
)
def padding_not_hidden(history: HealthHistory, *, samples: int = 3, share: float = 0.9) -> Finding | None:
    """Padding tokens stand in the batch, and no mask hides them from an encoder that attends to all tokens.

    Not judged where the padding token is the end token, nor in causal models, for which padding after a text is
    hidden by the order.
    """
    config = history.settings.config
    recent = latest(history, "padding_seen", samples)
    if len(recent) < samples or not (recent > share).all():
        return None
    if not (history.settings.both_ways or config.get("is_encoder_decoder")):
        return None
    padded = latest(history, "padding_tokens", samples)
    return padding_not_hidden.finding(
        history,
        value=recent[-1],
        threshold=share,
        seen=f"{recent[-1]:.0%} of the padding tokens ({padded[-1]:.0%} of all tokens) are open to attention",
    )
