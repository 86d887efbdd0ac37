"""Rules on what a model that was trained before must bring along: all its parts, and what it has learned."""

from __future__ import annotations

import math

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import VOCABULARY, is_trained
from bert_toolkit.health.rules.registry import BEHAVIOR, COURSE, FLOW, OUTCOME, STEPS, rule

_FEW_TARGETS = 0.05  # share of the tokens; a word or two as an answer may be one that the model does not expect
_UNIFORM = -1.0  # excess kurtosis; uniform values have -1.2, Gaussian ones 0, learned ones more


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "initial_scale", "layer_out_of_line", "not_as_in_checkpoint"),
    severity="warning",
    cause="these matrices were initialized again after loading, or their keys did not match the checkpoint's",
    remedy="read the report of from_pretrained on missing keys, and initialize only new parts; if it is meant, ignore "
    "this",
)
def fresh_kind(history: HealthHistory, *, most: float = 0.75) -> Finding | None:
    """One kind of matrix holds uniform values, as an initialization draws them, in every layer of a trained model.

    Normalizations tell whether layers are trained. Up to the share `most` of the kinds may be uniform: where all are,
    training has hardly begun. Kinds that were drawn anew from a Gaussian look like learned ones and are found where
    the checkpoint is at hand, by `not_as_in_checkpoint`.
    """
    start = history.start
    if not start or len(history) > 1 or not is_trained(history):
        return None
    for stack in history.stacks:
        kinds = stack[history.is_matrix[stack].all(axis=1) & np.isfinite(start["std"][stack]).all(axis=1)]
        uniform = start["excess_kurtosis"][kinds].mean(axis=1) < _UNIFORM
        if 0 < uniform.sum() <= most * len(kinds):
            return fresh_kind.finding(
                history,
                parameters=np.sort(kinds[uniform].ravel()),
                value=uniform.sum(),
                threshold=0,
                seen=f"{uniform.sum()} of {len(kinds)} kinds of matrices hold uniform values in all {stack.shape[1]} "
                "layers of a trained model",
            )
    return None


@rule(
    needs="gradients",
    explains=(OUTCOME, "vanishing_gradients"),
    severity="warning",
    cause="the body was built from a config instead of from_pretrained, or its weights did not load, and is frozen",
    remedy="load the body with from_pretrained and read its report, or let it train",
)
def frozen_fresh_body(history: HealthHistory, *, samples: int = 2) -> Finding | None:
    """Every layer of a model with a config is frozen and as fresh as on the day it was made, and no adapter trains.

    Fresh are normalizations that multiply by one and biases of zero, without exception. A head learns from random
    features then.
    """
    if not history.start or len(history) < samples or not history.settings.config or history.where("adapter").any():
        return None
    start, trainable, inside = history.start, history.trainable[-1], history.in_layer
    if "norm_gain" not in start or np.nansum(start["loaded"]) > 0 or trainable[inside].any() or not trainable.any():
        return None
    norms, linear = inside & np.isfinite(start["norm_gain"]), inside & np.isfinite(start["as_made"])
    untouched = (start["norm_gain"] == 1.0) & (start["norm_gain_std"] == 0.0) & (start["norm_shift"] == 0.0)
    fresh = {block for block, known in zip(history.blocks, norms, strict=True) if known}
    if len(fresh) < 2 or not untouched[norms].all() or not (start["as_made"][linear] == 1.0).all():
        return None
    return frozen_fresh_body.finding(
        history,
        parameters=np.flatnonzero(inside),
        value=len(fresh),
        threshold=0,
        seen=f"all {len(fresh)} layers are frozen and were never trained",
    )


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "initial_scale", "layer_out_of_line", "not_as_in_checkpoint"),
    severity="warning",
    cause="the head was reset or resized after loading, or its key did not match the checkpoint's",
    remedy="load the head with the model, or tie it to the embeddings; if a head of zeros is meant, ignore this",
)
def zero_head(history: HealthHistory, *, fraction: float = 0.05) -> Finding | None:
    """The output layer over the tokens is zero, in whole or for a `fraction` of the tokens, above a trained body.

    Taken for that are linear layers outside the stack with as many weights as a table of embeddings. Models whose
    layers are fresh may begin with it; so may classifiers, whose head is new.
    """
    start = history.start
    if not start or "zero_rows" not in start or len(history) > 1 or not is_trained(history):
        return None
    tables = history.count[history.where("embedding")]
    with np.errstate(invalid="ignore"):
        of_tokens = np.isin(history.count, tables) & (history.count / start["fan_in"] >= VOCABULARY)
    head = history.where("matrix") & ~history.in_layer & of_tokens
    zero = np.where(head, np.nan_to_num(start["zero_rows"]), 0.0)
    positions = np.flatnonzero(zero >= fraction)
    if not len(positions):
        return None
    return zero_head.finding(
        history,
        parameters=positions,
        value=zero[positions].max(),
        threshold=fraction,
        seen=f"{zero[positions[0]]:.0%} of the rows of {history.names[positions[0]]}, one for each token, are exactly "
        "zero while the layers below are trained",
    )


@rule(
    needs="model",
    explains=(OUTCOME, "worse_than_guessing", "unknown_tokens", "padding_not_hidden"),
    severity="warning",
    cause="tokenizer and model come from different checkpoints, so token numbers mean other words to the model",
    remedy="load both by the same name; decode a batch with the model's own tokenizer",
)
def tokenizer_of_another_model(history: HealthHistory, *, share: float = 0.97, tokens: int = 1000) -> Finding | None:
    """The tokenizer has clearly fewer tokens than the loaded model, or another padding token than the loaded encoder.

    Models round their vocabulary up, by at most a few in a hundred: less than `share` is another one. Padding is not
    compared where the model does not say or attends to earlier tokens alone: there an end token may serve.
    """
    run, start = history.settings, history.start
    if not run.tokenizer_size or "loaded" not in start or not (start["loaded"] > 0).any() or len(history) > 1:
        return None
    words, padding = run.config.get("vocab_size"), run.config.get("pad_token_id")
    if isinstance(words, int) and words >= tokens and run.tokenizer_size < share * words:
        size, limit = float(run.tokenizer_size), share * words
        seen = f"the tokenizer has {run.tokenizer_size:,} tokens, the model was made for {words:,}"
    elif run.both_ways and isinstance(padding, int) and run.special_tokens.get("pad", padding) != padding:
        size, limit = float(run.special_tokens["pad"]), float(padding)
        seen = f"padding is token {run.special_tokens['pad']} of the tokenizer and {padding} of the model"
    else:
        return None
    return tokenizer_of_another_model.finding(history, value=size, threshold=limit, seen=seen)


@rule(
    needs="forward",
    group=OUTCOME,
    explains=(COURSE,),
    severity="warning",
    cause="token numbers do not mean what they meant to the model: another tokenizer, a vocabulary in another order, "
    "embeddings that were exchanged, overwritten or resized; or weights were changed after loading",
    remedy="load tokenizer and model from the same checkpoint, decode a batch, and look at the loss of one plain "
    "sentence before training",
)
def worse_than_guessing(history: HealthHistory, *, margin: float = 0.05) -> Finding | None:
    """A model that is trained and has a trained head predicts the first tokens worse than a guess among all of them.

    Judged at the first step, before any update, on next or masked tokens, where the loss is a mean cross-entropy; from
    `margin` above the logarithm of the vocabulary's size on. Silent are new heads, and new embeddings that serve as
    one: they were not read from the checkpoint, or have the standard deviation of an initialization.
    """
    if not history.start or len(history) != 1 or history.now != 1 or history.several_losses[0]:
        return None
    if history.classes[0] < VOCABULARY or not is_trained(history):
        return None
    limit = math.log(history.classes[0]) + margin
    if not history.loss[0] > limit:
        return None
    is_mean = history.fact("loss_weight")[0] < 1.5 and history.fact("gradient_row_sum")[0] < 0.1
    labeled = history.fact("labeled_fraction")[0]
    of_next = labeled > _FEW_TARGETS and history.fact("target_is_next")[0] > 0.9
    of_masked = _FEW_TARGETS < labeled < 0.5 and history.fact("label_equals_input")[0] < 0.9
    tables = _trained_tables(history)
    if not is_mean or not (of_next or of_masked) or not len(tables):
        return None
    return worse_than_guessing.finding(
        history,
        parameters=tables,
        value=history.loss[0],
        threshold=limit,
        seen=f"before the first update the loss is {history.loss[0]:.2f}, and a guess among all "
        f"{history.classes[0]} tokens would score {math.log(history.classes[0]):.2f}",
    )


def _trained_tables(history: HealthHistory) -> np.ndarray:
    """Positions of the matrices that may hold one row for each class; none where one of them is not learned."""
    start, classes = history.start, int(history.classes[0])
    rows = history.count / classes
    tables = np.flatnonzero(history.where("embedding", "matrix") & ~history.in_layer & (rows >= 8) & (rows % 1 == 0))
    none = np.zeros(0, dtype=int)
    head = np.array(history.blocks) == "head"
    if (start["loaded"] > 0).any() and not (start["loaded"][tables] > 0).all():
        return none
    if (start["loaded"] > 0).any() and (start["loaded"][head & history.is_matrix] == 0).any():
        return none
    std = start["std"][tables]
    # As configured, as nn.Linear draws them, or as nn.Embedding does.
    for usual in (history.initializer_range or math.nan, 1 / np.sqrt(3 * start["fan_in"][tables]), 1.0):
        if (np.abs(std / usual - 1) < 0.1).any():
            return none
    return tables if np.isfinite(std).all() else none
