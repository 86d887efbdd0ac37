"""Rules on what flows through the model in a forward pass."""

from __future__ import annotations

import numpy as np

from bert_toolkit.health.findings import Finding, Severity
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import fact_by_place, latest
from bert_toolkit.health.rules.registry import BEHAVIOR, COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "nonfinite"),
    cause="a forward hook, or a function put in the place of forward, changes what the module returns",
    remedy="print(module._forward_hooks, module.__dict__.get('forward')) shows what is around it; remove it, or make "
    "it a module of its own if it is meant",
)
def module_output_changed(history: HealthHistory) -> Finding | None:
    """A plain linear layer, normalization, embedding or dropout returns something else than its formula.

    Compared are a few rows with the module's own weights, rounding allowed for: 0.3 % of the norm in float32, 3 % in
    half precision. Noise on embeddings alone is a note, since some add it on purpose (NEFTune, Jain et al. 2023).
    """
    error, gain = fact_by_place(history, "identity_error"), fact_by_place(history, "identity_gain")
    if not len(error):
        return None
    names = history.places["identity_error"]
    limit = float(history.fact("identity_tolerance")[-1])
    looked_at = ~np.isnan(error[-1])
    changed = np.flatnonzero(looked_at & (error[-1] > limit))
    if not len(changed):
        return None
    embeddings = {
        name.rpartition(".")[0] for name, role in zip(history.names, history.roles, strict=True) if role == "embedding"
    }
    first = changed[0]
    noise = all(names[c] in embeddings and 0.8 < gain[-1, c] < 1.25 for c in changed)
    severity: Severity = "note" if noise else "error"
    return module_output_changed.finding(
        history,
        parameters=_parameters_of(history, changed),
        value=error[-1, first],
        threshold=limit,
        seen=f"{len(changed)} of {looked_at.sum()} modules looked at return something else than their own weights "
        f"and input give; first {names[first]}: {_how(error[-1, first], gain[-1, first])}",
        severity=severity,
    )


def _how(error: float, gain: float) -> str:
    if abs(gain) < 1e-6:
        return "zeros"
    unexplained = np.sqrt(max(error**2 - (gain - 1.0) ** 2, 0.0))
    if unexplained < 0.1 * error:
        return f"{gain:.3g} times the right value"
    return f"off by {error:.2g} of the norm"


def _parameters_of(history: HealthHistory, changed: np.ndarray) -> np.ndarray:
    """Positions of the parameters of these modules; a tied weight has the name of the other module."""
    modules, weights = history.places["identity_error"], history.places.get("identity_weight", ())
    owners = {modules[c] for c in changed}
    tied = {weights[c] for c in changed if c < len(weights)}
    return np.flatnonzero([name in tied or name.rpartition(".")[0] in owners for name in history.names])


@rule(
    needs="settings",
    explains=(COURSE, OUTCOME, FLOW, STEPS),
    severity="warning",
    cause="activation modules were replaced after the model was built",
    remedy="set hidden_act (activation_function) in the config instead, or the saved model will be loaded with "
    "another function than it was trained with",
)
def activation_not_as_configured(history: HealthHistory) -> Finding | None:
    """Every activation in the layers of a transformers model computes another function than its config names.

    Judged once. Approximations of one function count as the same.
    """
    changed = history.settings.activations
    if not changed or len(history) > 1:
        return None
    name, what = next(iter(changed.items()))
    return activation_not_as_configured.finding(
        history, value=len(changed), threshold=0, seen=f"{len(changed)} activations, first {name}: {what}"
    )


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(COURSE, OUTCOME),
    cause="the causal mask is missing, inverted or not passed on to attention (is_causal=False, a mask of another "
    "shape, a mask that only hides padding)",
    remedy="pass is_causal=True to scaled_dot_product_attention, or a lower triangular mask; change a late token and "
    "see that earlier logits stay",
)
def future_visible(history: HealthHistory, *, effect: float = 1e-3) -> Finding | None:
    """A model that learns to predict the next token sees it: earlier logits change with later tokens.

    Tried in one extra forward pass in evaluation mode; judged where targets are the next tokens.
    """
    causal, seen = latest(history, "target_is_next", 1), history.fact("future_effect")
    if not len(history) or not len(causal) or causal[-1] < 0.9 or not seen[-1] > effect:
        return None
    return future_visible.finding(
        history,
        value=seen[-1],
        threshold=effect,
        seen=f"with the second half of a text changed, logits of the first half change by {seen[-1]:.2g} of their "
        "spread",
    )


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(),
    severity="warning",
    cause="attention_mask does not reach the attention (not passed on, a wrong shape, inverted, added without -inf), "
    "or padding goes into a mean or a maximum over tokens",
    remedy="hide padding in every attention and in pooling; change the ids of hidden tokens and see that the logits "
    "stay",
)
def padding_matters(history: HealthHistory, *, effect: float = 1e-3) -> Finding | None:
    """The batch has an `attention_mask`, and what it hides changes the logits of real tokens or of the row.

    Tried in one extra forward pass in evaluation mode. Models without attention (convolutions, recurrences) and causal
    classifiers, which find their last token by the id of the padding, are not judged.
    """
    seen = history.fact("padding_effect")
    if not len(history) or not seen[-1] > effect:
        return None
    return padding_matters.finding(
        history,
        value=seen[-1],
        threshold=effect,
        seen=f"with other ids under the padding, logits change by {seen[-1]:.2g} of their spread",
    )


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(OUTCOME,),
    severity="warning",
    cause="positions are not added (a constant position_ids, a zeroed or skipped position embedding, no rotation)",
    remedy="check that position embeddings are added to the words and that position_ids count from 0 in every row; if "
    "the model is meant to read bags of words, ignore this",
)
def order_not_seen(history: HealthHistory, *, effect: float = 3e-6) -> Finding | None:
    """A model with attention gives the same for a text whose inner words were reversed.

    Tried in one extra forward pass in evaluation mode at the first sample, at the fifth and at ever rarer ones, and
    said where two agree: layers that begin as the identity see no order before they have learned.
    """
    tried = history.fact("order_effect")
    known = tried[np.isfinite(tried)]
    if len(known) < 2 or np.isnan(tried[-1]) or (known[-2:] > effect).any():
        return None
    return order_not_seen.finding(
        history,
        value=known[-1],
        threshold=effect,
        seen=f"with the inner words of a text reversed, the logits change by {known[-1]:.1g} of their spread",
    )


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(),
    severity="warning",
    cause="dropout or other noise is drawn in evaluation mode as well (functional.dropout without "
    "training=self.training)",
    remedy="pass training=self.training to functional.dropout, or use nn.Dropout; until then scores vary by chance",
)
def noise_in_evaluation(history: HealthHistory, *, noise: float = 1e-3) -> Finding | None:
    """In evaluation mode the model gives two equal rows of one batch different logits.

    Tried in one extra forward pass in evaluation mode. Rounding is far below.
    """
    seen = history.fact("evaluation_noise")
    if not len(history) or not seen[-1] > noise:
        return None
    return noise_in_evaluation.finding(
        history,
        value=seen[-1],
        threshold=noise,
        seen=f"two equal rows of a batch get logits that differ by {seen[-1]:.2g} of the largest",
    )


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(OUTCOME, "noise_in_evaluation", "order_not_seen", "padding_matters", "future_visible"),
    severity="warning",
    cause="attention, a recurrence or a normalization runs over the rows instead of the tokens: batch_first is "
    "missing, a view or a reshape where a transpose was meant, a mean or a softmax over dim 0",
    remedy="print shapes before and after the layer; pass batch_first=True, or (tokens, rows, width); change one row "
    "of a batch and see that the logits of the others stay",
)
def rows_mixed(history: HealthHistory, *, effect: float = 0.05) -> Finding | None:
    """The logits of a row change with the other rows of its batch, in evaluation mode.

    Tried in three extra forward passes of at most four rows. Mixtures of experts are not judged, nor models that score
    every row with every other; a scale that is taken of the whole batch, as quantization may, has far less effect.
    """
    seen = history.fact("row_effect")
    if not len(history) or not seen[-1] > effect:
        return None
    return rows_mixed.finding(
        history,
        value=seen[-1],
        threshold=effect,
        seen=f"with other rows beside it in the batch, the logits of a row change by {seen[-1]:.2g} of their spread",
    )
