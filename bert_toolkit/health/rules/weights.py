"""Rules on where weights come from: read once before the first step."""

from __future__ import annotations

import numpy as np

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, STEPS, rule


@rule(
    needs="model",
    explains=(OUTCOME, STEPS, "initial_scale", "layer_out_of_line"),
    cause="keys of the checkpoint did not match (renamed or missing), the model was built with from_config, or "
    "init_weights() was called after loading",
    remedy="load with from_pretrained and read its report of missing keys; compare a weight with the checkpoint's",
)
def fresh_weights(history: HealthHistory) -> Finding | None:
    """Layers that should come from a checkpoint have the weights of a fresh model.

    A layer is fresh where every normalization is exactly one and every bias exactly zero, which no trained layer is.
    Found are: layers of a stack that are fresh while others are not (as a warning where they are the topmost, which
    some re-initialize on purpose: Zhang et al. 2021, "Revisiting few-sample BERT fine-tuning"); layers that
    transformers did not read from the checkpoint while it read others; and a whole model that was built from the
    config of a checkpoint without its weights.
    """
    start = history.start
    if not start or len(history) > 1:
        return None
    fresh, loaded = _fresh_layers(history), start["loaded"] > 0
    blocks = np.array(history.blocks)
    for stack in history.stacks:
        layers = [history.blocks[p] for p in stack[0]]
        state = np.array([fresh.get(layer, np.nan) for layer in layers], dtype=float)
        if np.isnan(state).any() or len(layers) < 2:
            continue
        odd = [layer for layer, is_fresh in zip(layers, state, strict=True) if is_fresh]
        if 0 < len(odd) < len(layers):
            top = layers[-len(odd) :] == odd
            return fresh_weights.finding(
                history,
                parameters=np.flatnonzero(np.isin(blocks, odd)),
                value=len(odd),
                threshold=0,
                seen=f"{len(odd)} of {len(layers)} layers have fresh weights while the others are trained",
                severity="warning" if top else "error",
            )
        missing = [layer for layer in layers if not loaded[blocks == layer].any()]
        if loaded.any() and 0 < len(missing) < len(layers):
            return fresh_weights.finding(
                history,
                parameters=np.flatnonzero(np.isin(blocks, missing)),
                value=len(missing),
                threshold=0,
                seen=f"{len(missing)} of {len(layers)} layers were not read from the checkpoint",
            )
    whole = bool(fresh) and all(fresh.values())
    large = history.count[history.in_layer].sum() >= _LARGE
    if whole and large and loaded[history.in_layer].any():
        return fresh_weights.finding(
            history,
            value=len(fresh),
            threshold=0,
            seen="weights were read from a checkpoint, and all layers have those of a fresh model",
            cause="init_weights() was called after loading, or the checkpoint was saved before any training",
            severity="warning",
        )
    if whole and history.settings.name_or_path and not loaded.any():
        return fresh_weights.finding(
            history,
            value=len(fresh),
            threshold=0,
            seen=f"the config comes from {history.settings.name_or_path!r}, the weights of all layers are fresh",
        )
    return None


_LARGE = 5_000_000  # elements of all layers: smaller models with random weights are saved for tests


def _fresh_layers(history: HealthHistory) -> dict[str, bool]:
    """Layer -> whether all its normalizations are one and all its biases zero; layers without any are left out."""
    mean, std = history.start["mean"], history.start["std"]
    norms = history.where("norm") & np.array([name.endswith("weight") for name in history.names])
    biases = history.where("bias")
    blocks = np.array(history.blocks)
    fresh = {}
    for block in dict.fromkeys(history.blocks):
        inside = history.in_layer & (blocks == block) & np.isfinite(mean)
        scales, shifts = inside & norms, inside & biases
        if not scales.any():
            continue
        untouched = (mean[scales] == 1.0) & (std[scales] == 0.0)
        zero = (mean[shifts] == 0.0) & (std[shifts] == 0.0)
        fresh[block] = bool(untouched.all() and zero.all())
    return fresh


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, FLOW, STEPS, "initial_scale"),
    cause="weights were filled with a constant, or an initialization was overwritten",
    remedy="initialize with random numbers (torch.nn.init.normal_, xavier_uniform_), so that units can differ",
)
def constant_weights(history: HealthHistory) -> Finding | None:
    """A matrix holds one value only, so all its units compute and learn the same.

    A single matrix of zeros is a usual choice (LoRA's B, gates, output heads, residual branches) and silent; zeros are
    judged where two or more kinds of matrices of a layer hold nothing else, since then no gradient passes.
    """
    start = history.start
    if not start or len(history) > 1:
        return None
    constant = history.is_matrix & (start["std"] == 0.0)
    filled = np.flatnonzero(constant & (start["mean"] != 0.0))
    blocks = np.array(history.blocks)
    zeros = constant & (start["mean"] == 0.0) & ~history.where("adapter")
    dead = [
        block
        for block in dict.fromkeys(history.blocks)
        if (inside := history.is_matrix & (blocks == block)).sum() >= 2 and zeros[inside].mean() > 0.5
    ]
    positions = filled if len(filled) else np.flatnonzero(zeros & np.isin(blocks, dead))
    if not len(positions):
        return None
    return constant_weights.finding(
        history,
        parameters=positions,
        value=len(positions),
        threshold=0,
        seen=f"{len(positions)} matrices hold one value each, {start['mean'][positions[0]]:.3g} in the first",
    )


@rule(
    needs="model",
    explains=(),
    cause="one of the two was replaced after the model was built (resized, loaded, wrapped or quantized)",
    remedy="call model.tie_weights() after the last change; or set config.tie_word_embeddings=False if this is meant",
)
def tie_broken(history: HealthHistory) -> Finding | None:
    """The config ties input and output embeddings, and they are two parameters."""
    if len(history) > 1 or history.settings.tied is not False:
        return None
    return tie_broken.finding(
        history,
        value=2,
        threshold=1,
        seen="config.tie_word_embeddings is True, and the output layer has a weight of its own",
    )


@rule(
    needs="model",
    explains=(),
    severity="warning",
    cause="layers were copied from one another, or one layer's weights were loaded into several",
    remedy="if this is meant (stacked or upcycled models), ignore it; else check which keys were loaded where",
)
def equal_layers(history: HealthHistory) -> Finding | None:
    """Two layers of a stack have the very same weights in all their matrices, as separate parameters.

    Experts of one layer are not compared: they are often copies of one feed-forward block.
    """
    start = history.start
    if not start or len(history) > 1:
        return None
    twin = start["twin"].astype(int)
    blocks = np.array(history.blocks)
    for stack in history.stacks:
        layers = [history.blocks[p] for p in stack[0]]
        kinds = stack[history.is_matrix[stack].all(axis=1)]
        if not len(kinds):
            continue
        for column, layer in enumerate(layers):
            others = twin[kinds[:, column]]
            if (others >= 0).all() and all(blocks[o] in layers and blocks[o] != layer for o in others):
                return equal_layers.finding(
                    history,
                    parameters=kinds[:, column],
                    value=len(kinds),
                    threshold=0,
                    seen=f"{layer} has the same weights as {blocks[others[0]]} in all {len(kinds)} matrices",
                )
    return None
