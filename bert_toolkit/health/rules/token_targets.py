"""Rules on what tokens a language model is asked for, and what its inputs give away."""

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import VOCABULARY, latest
from bert_toolkit.health.rules.registry import OUTCOME, rule


@rule(
    needs="forward",
    explains=(OUTCOME,),
    severity="warning",
    cause="the padding token is the end token, and the collator turns every padding id in the labels into -100",
    remedy="use a padding token of its own, or keep the label of the first end token after the text",
)
def end_never_learned(history: HealthHistory, *, samples: int = 4) -> Finding | None:
    """The end token stands in the inputs and is never a target, so the model will not learn to stop."""
    present, asked = latest(history, "eos_in_inputs", samples), latest(history, "eos_in_labels", samples)
    causal = latest(history, "target_is_next", samples)
    if len(present) < samples or len(asked) < samples or len(causal) < samples:
        return None
    if not (present > 0.2).all() or (asked > 0).any() or not (causal > 0.8).all():
        return None
    return end_never_learned.finding(
        history,
        value=0.0,
        threshold=0.0,
        seen=f"{present[-1]:.0%} of the rows hold the end token, and no label is one",
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="masked-LM labels without masking the inputs, or a causal model whose labels are not shifted",
    remedy="use DataCollatorForLanguageModeling(mlm=True) for masked LM; shift labels by one for a causal loss",
)
def target_in_input(history: HealthHistory, *, share: float = 0.99, samples: int = 3) -> Finding | None:
    """Every target is the token that stands in the input at its own place, so copying solves the task.

    Read from the gradient at the logits: the class that a row is drawn to. Masked language modeling leaves about a
    tenth of its targets readable; correction of texts nearly all. Where mask tokens stand in the inputs and tokens
    that are not masked are targets too, it is a warning from one half on.
    """
    recent = latest(history, "target_is_input", samples)
    following = latest(history, "target_is_next", samples)
    masks, labeled = latest(history, "mask_fraction", samples), latest(history, "labeled_fraction", samples)
    masked = len(masks) == len(labeled) == samples and history.settings.both_ways
    masked = masked and bool((masks > 0.02).all() and (masks < 0.5).all() and (labeled > 0.95).all())
    if masked and len(recent) == samples and (recent > 0.5).all():
        return target_in_input.finding(
            history,
            value=recent[-1],
            threshold=0.5,
            seen=f"{masks[-1]:.0%} of the words are masked and {labeled[-1]:.0%} of the tokens are targets, so "
            f"{recent[-1]:.0%} of the targets stand in the input",
            cause="labels of tokens that are not masked were not set to -100",
            remedy="set them to -100, as DataCollatorForLanguageModeling does",
            severity="warning",
        )
    if len(recent) < samples or not (recent > share).all() or (len(following) and (following > 0.9).any()):
        return None
    return target_in_input.finding(
        history,
        value=recent[-1],
        threshold=share,
        seen=f"{recent[-1]:.0%} of the targets stand in the input at their own place",
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="labels were shifted by the data and again by the model, which shifts them itself",
    remedy="pass labels equal to input_ids; causal models of transformers shift them inside",
)
def target_shifted_twice(history: HealthHistory, *, share: float = 0.9, samples: int = 3) -> Finding | None:
    """Nearly every target is the token after the next one: labels were shifted twice."""
    recent = latest(history, "target_is_second", samples)
    following = latest(history, "target_is_next", samples)
    if len(recent) < samples or not (recent > share).all() or (len(following) and (following > 0.5).any()):
        return None
    return target_shifted_twice.finding(
        history,
        value=recent[-1],
        threshold=share,
        seen=f"{recent[-1]:.0%} of the targets are the token after the next",
    )


@rule(
    needs="forward",
    group=OUTCOME,
    explains=("class_never_counts",),
    cause="labels come from other texts than the inputs: rows were sorted, shuffled or batched apart",
    remedy="build labels from the same row's input_ids, right before the model gets both",
)
def labels_of_other_text(history: HealthHistory, *, share: float = 0.3, samples: int = 3) -> Finding | None:
    """A causal language model is asked for tokens that stand neither at their own place nor next in its inputs.

    Judged where there are as many classes as tokens; two texts share few tokens at the same place.
    """
    own, following = (
        latest(history, "label_equals_input", samples),
        latest(history, "label_equals_next_input", samples),
    )
    config = history.settings.config
    if (
        len(own) < samples
        or len(following) < samples
        or history.settings.both_ways
        or config.get("is_encoder_decoder")
        or "MaskedLM" in history.settings.model_class
    ):
        return None
    if history.classes[-1] != config.get("vocab_size") or not (own < share).all() or not (following < share).all():
        return None
    masks = latest(history, "mask_fraction", samples)
    masked = len(masks) == samples and bool((masks > 0.02).all())
    return labels_of_other_text.finding(
        history,
        value=max(own[-1], following[-1]),
        threshold=share,
        seen=f"of the labels {own[-1]:.0%} stand in the inputs at their own place and {following[-1]:.0%} next",
        cause="a collator for masked language modeling feeds a causal model" if masked else "",
        remedy="use DataCollatorForLanguageModeling(mlm=False): labels equal to input_ids" if masked else "",
    )


@rule(
    needs="forward",
    explains=(OUTCOME, "labels_ignored"),
    cause="labels of all other tokens are -100 or were overwritten: a wrong mask of prompts, labels of the end alone",
    remedy="decode the labels that count, beside the inputs, for one row",
)
def one_token_asked(history: HealthHistory, *, samples: int = 4) -> Finding | None:
    """Every label that counts is one and the same token of the vocabulary, or class of tokens, in all samples.

    Classes of tokens are judged after 64 texts: entities may be rare.
    """
    top, texts = latest(history, "top_target_fraction", samples), np.nansum(history.fact("examples"))
    if len(top) < samples or not (top == 1.0).all():
        return None
    if history.classes[-1] < VOCABULARY and (texts < 64 or (history.fact("top_target_fraction") < 1.0).any()):
        return None
    return one_token_asked.finding(
        history, value=1.0, threshold=1.0, seen=f"in {samples} samples in a row all labels that count are the same"
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="decoder_input_ids were made of padding or of one token only",
    remedy="leave them out where labels are passed (the model shifts those), or pass the target shifted by one",
)
def decoder_inputs_constant(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """`decoder_input_ids` are passed and are one token, the same in all places."""
    vary = latest(history, "decoder_ids_vary", samples)
    if len(vary) < samples or (vary > 0).any():
        return None
    return decoder_inputs_constant.finding(
        history, value=0.0, threshold=1.0, seen="decoder_input_ids hold one token in all places of the batch"
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="labels of words were not moved by the special token before them, or moved twice",
    remedy="align labels with word_ids(); print tokens beside labels of one row",
)
def labels_one_place_off(history: HealthHistory, *, samples: int = 4) -> Finding | None:
    """The first special token of every text has a label of its own and the last has none, or the other way round.

    Judged for classes of tokens, where the tokenizer begins and ends a text with tokens of its own.
    """
    first, last = latest(history, "first_labeled", samples), latest(history, "last_labeled", samples)
    if len(first) < samples or len(last) < samples or history.classes[-1] >= VOCABULARY:
        return None
    if not history.settings.both_ways or history.classes[-1] == history.settings.config.get("vocab_size"):
        return None
    early, late = (first > 0.95).all() and (last < 0.05).all(), (first < 0.05).all() and (last > 0.95).all()
    if not early and not late:
        return None
    return labels_one_place_off.finding(
        history,
        value=first[-1],
        threshold=0.95,
        seen=f"the {'first' if early else 'last'} special token of every text has a label, the "
        f"{'last' if early else 'first'} has none",
    )


@rule(
    needs="forward",
    explains=(OUTCOME, "unknown_tokens", "texts_cut", "rows_repeated", "identical_inputs"),
    severity="warning",
    cause="mlm_probability is far too high, or tokens that must stay are masked as well",
    remedy="mask 15 to 40 % (Devlin et al. 2019; Wettig et al. 2023)",
)
def nearly_all_masked(history: HealthHistory, *, share: float = 0.8, samples: int = 4) -> Finding | None:
    """More than `share` of the words of every batch are the mask token, so hardly anything is left to tell from."""
    recent = latest(history, "mask_fraction", samples)
    if len(recent) < samples or not (recent > share).all():
        return None
    return nearly_all_masked.finding(
        history,
        value=recent[-1],
        threshold=share,
        seen=f"{recent[-1]:.0%} of the words are the mask token",
    )


@rule(
    needs="forward",
    explains=(),
    severity="warning",
    cause="words are hidden by another token than the tokenizer's mask token, which the model never gets to know",
    remedy="use tokenizer.mask_token_id, as DataCollatorForLanguageModeling does",
)
def mask_token_unused(history: HealthHistory, *, samples: int = 4) -> Finding | None:
    """An encoder is asked for hidden words, its tokenizer has a mask token, and no batch holds one.

    Hidden are those labels of which most do not stand in the input; judged where there are as many classes as tokens.
    """
    masks, own = latest(history, "mask_fraction", samples), latest(history, "label_equals_input", samples)
    labeled = latest(history, "labeled_fraction", samples)
    if len(masks) < samples or len(own) < samples or len(labeled) < samples or not history.settings.both_ways:
        return None
    if history.classes[-1] != history.settings.config.get("vocab_size"):
        return None
    if (masks > 0).any() or not (own < 0.5).all() or not (labeled < 0.6).all():
        return None
    return mask_token_unused.finding(
        history,
        value=0.0,
        threshold=0.0,
        seen=f"{labeled[-1]:.0%} of the tokens are asked for and mostly hidden, and no input is the mask token",
    )


@rule(
    needs="forward",
    explains=(OUTCOME,),
    cause="the mask of the prompt is the wrong way round: labels of the answer are -100 and the prompt is learned",
    remedy="set labels of the prompt to -100 and keep those of the answer; decode the labels that count, for one row",
)
def answers_ignored(history: HealthHistory, *, share: float = 0.9, samples: int = 3) -> Finding | None:
    """A causal language model is asked for the beginnings of rows alone; a fifth and more of their ends is -100."""
    recent = latest(history, "counted_beginnings", samples)
    causal = latest(history, "target_is_next", samples)
    if len(recent) < samples or len(causal) < samples or not (recent > share).all() or not (causal > 0.8).all():
        return None
    return answers_ignored.finding(
        history,
        value=recent[-1],
        threshold=share,
        seen=f"in {recent[-1]:.0%} of the rows the first tokens have labels and those that follow have none",
    )
