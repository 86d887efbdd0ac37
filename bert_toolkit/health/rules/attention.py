"""Rules on what queries and keys do: sharpness, growth, heads that repeat one another."""

from __future__ import annotations

import numpy as np

from bert_toolkit.health.attention_probe import KEYS, QUERIES
from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import fact_by_place
from bert_toolkit.health.rules.registry import BEHAVIOR, COURSE, OUTCOME, rule


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(OUTCOME,),
    severity="warning",
    cause="queries and keys are too large: their weights or the embeddings were scaled, or the division by the square "
    "root of a head's width is missing in what made them",
    remedy="initialize queries and keys with initializer_range, or load the weights again; then lower the learning "
    "rate or normalize queries and keys",
)
def attention_saturated(history: HealthHistory, *, peak: float = 0.8, samples: int = 2) -> Finding | None:
    """In at least half of the layers every head gives nearly all its weight to one token, so little gradient passes.

    Told of models with four heads or more whose positions are added to the words. Mean over queries; even in trained
    encoders some head of every layer stays below half of `peak`.
    """
    seen = fact_by_place(history, "attention_peak")
    if len(seen) < samples:
        return None
    known = np.isfinite(seen[-samples:]).all(axis=0)
    sharp = known & (np.nan_to_num(seen[-samples:]) > peak).all(axis=0)
    if not _in_half(sharp, known):
        return None
    least = float(seen[-1, sharp].min())
    return attention_saturated.finding(
        history,
        parameters=_queries_and_keys(history, sharp, "attention_peak"),
        value=least,
        threshold=peak,
        seen=f"in {sharp.sum()} of {known.sum()} layers even the least sharp head gives {least:.0%} of its weight to "
        "one token",
    )


@rule(
    needs="forward",
    explains=(COURSE, OUTCOME, "attention_saturated"),
    severity="warning",
    cause="the learning rate is too high for queries and keys, whose products grow until attention sees one token "
    "alone (Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities)",
    remedy="go back to a checkpoint of before, and lower the learning rate, warm up longer or normalize queries and "
    "keys (qk-norm)",
)
def attention_logits_grow(history: HealthHistory, *, spread: float = 30.0, factor: float = 10.0) -> Finding | None:
    """Products of queries and keys have grown tenfold and spread over tens in at least half of the layers.

    Told of models of three layers and more: in smaller ones sharp attention may be all there is to learn. The spread
    is the standard deviation over the keys, in the head where it is largest. In trained encoders one layer
    may reach 20; a softmax of values that spread over 30 is one token, and such growth comes before the loss moves.
    """
    seen = fact_by_place(history, "attention_contrast")
    if len(seen) < 2:
        return None
    known = np.isfinite(seen[0]) & np.isfinite(seen[-1])
    with np.errstate(invalid="ignore"):
        grown = known & (seen[-1] > spread) & (seen[-1] > factor * seen[0])
    if not _in_half(grown, known) or known.sum() < 3:
        return None
    return attention_logits_grow.finding(
        history,
        parameters=_queries_and_keys(history, grown, "attention_contrast"),
        value=float(np.median(seen[-1, grown])),
        threshold=spread,
        seen=f"in {grown.sum()} of {known.sum()} layers products of queries and keys spread over "
        f"{np.median(seen[-1, grown]):.3g}, {np.median(seen[-1, grown] / np.maximum(seen[0, grown], 1e-9)):.3g} times "
        "what it was at first",
    )


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(OUTCOME,),
    severity="warning",
    cause="queries or keys are the same for all tokens: weights of zeros that are not trained, inputs that do not "
    "vary, a projection that was replaced",
    remedy="look at the outputs of a query and a key projection for two different tokens",
)
def attention_uniform(history: HealthHistory, *, spread: float = 1e-4, samples: int = 10) -> Finding | None:
    """In every layer all tokens get the same weight, still after some samples, so attention only takes a mean.

    Queries that begin as zeros are usual; an optimizer moves them within a few steps.
    """
    seen = fact_by_place(history, "attention_contrast")
    if len(seen) < samples or not history.rate[0] > 0:
        return None
    recent = seen[-samples:]
    known = np.isfinite(recent).all(axis=0)
    if not known.any() or not (recent[:, known] < spread).all():
        return None
    return attention_uniform.finding(
        history,
        parameters=_queries_and_keys(history, known, "attention_contrast"),
        value=float(recent[-1, known].max()),
        threshold=spread,
        seen=f"in all {known.sum()} layers looked at products of queries and keys spread over less than {spread:g}",
    )


@rule(
    needs="forward",
    group=BEHAVIOR,
    explains=(OUTCOME,),
    severity="warning",
    cause="the weights of one head were copied to the others, or an initialization repeats them",
    remedy="initialize each head with random numbers of its own; copies learn to differ only slowly",
)
def heads_alike(history: HealthHistory, *, difference: float = 1e-3) -> Finding | None:
    """All heads of at least half of the layers have the same products of queries and keys, so they do the same."""
    seen = fact_by_place(history, "heads_differ")
    if not len(seen):
        return None
    known = np.isfinite(seen[-1])
    alike = known & (np.nan_to_num(seen[-1], nan=1.0) < difference)
    if not _in_half(alike, known):
        return None
    return heads_alike.finding(
        history,
        parameters=_queries_and_keys(history, alike, "heads_differ"),
        value=float(seen[-1, alike].max()),
        threshold=difference,
        seen=f"in {alike.sum()} of {known.sum()} layers all heads have the same products of queries and keys",
    )


def _in_half(chosen: np.ndarray, known: np.ndarray) -> bool:
    """Whether some layers are chosen, and at least half of those that are known."""
    return bool(chosen.any() and 2 * chosen.sum() >= known.sum())


def _queries_and_keys(history: HealthHistory, chosen: np.ndarray, name: str) -> np.ndarray:
    """Positions of the weights of the projections of these attention modules."""
    modules = [module for module, is_chosen in zip(history.places[name], chosen, strict=True) if is_chosen]
    projections = tuple(f"{module}.{part}." for module in modules for part in (*QUERIES, *KEYS, "c_attn"))
    named = [parameter.startswith(projections) and parameter.endswith("weight") for parameter in history.names]
    return np.flatnonzero(named)
