"""Rules on where weights come from: read once before the first step."""

from __future__ import annotations

import re

import numpy as np

from bert_toolkit.health.attention_probe import KEYS, QUERIES
from bert_toolkit.health.findings import Finding, Severity
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import fresh_layers, largest_table
from bert_toolkit.health.rules.registry import BEHAVIOR, COURSE, FLOW, OUTCOME, STEPS, rule

# The usual names of the parts of a layer, each with a dot or the beginning before it.
QUERY, KEY, VALUE = (
    rf"(^|\.)({'|'.join(names)})\.weight$"
    for names in (QUERIES, KEYS, ("value", "v_proj", "v_lin", "v", "wv", "value_proj"))
)
FFN_IN = r"(^|\.)(intermediate\.dense|fc1|c_fc|lin1|up_proj|wi|wi_0|fc_in|dense_h_to_4h|w1|linear1)\.weight$"
FFN_OUT = (
    r"(^|\.)((?<!attention\.)output\.dense|fc2|mlp\.c_proj|lin2|down_proj|wo|fc_out|dense_4h_to_h|w2|linear2)"
    r"\.weight$"
)


@rule(
    needs="model",
    explains=(OUTCOME, STEPS, "initial_scale", "layer_out_of_line", "not_as_in_checkpoint"),
    cause="keys of the checkpoint did not match (renamed or missing), the model was built with from_config, or "
    "init_weights() was called after loading",
    remedy="load with from_pretrained and read its report of missing keys; compare a weight with the checkpoint's",
)
def fresh_weights(history: HealthHistory) -> Finding | None:
    """Layers that should come from a checkpoint have the weights of a fresh model.

    A layer is fresh where every normalization is exactly one and every bias exactly zero, which no trained layer is,
    and trained where most of them vary: one that was set to a constant (zero, so that a branch begins closed) is
    neither. Found are: layers of a stack that are fresh while others are not (as a warning where they are the topmost,
    which some re-initialize on purpose: Zhang et al. 2021, "Revisiting few-sample BERT fine-tuning"); layers that
    transformers did not read from the checkpoint while it read others; and a whole model that was built from the
    config of a checkpoint without its weights.
    """
    start = history.start
    if not start or len(history) > 1:
        return None
    fresh, loaded = fresh_layers(history), start["loaded"] > 0
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


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "initial_scale", "not_as_in_checkpoint"),
    cause="weights were filled with a constant, or an initialization was overwritten",
    remedy="initialize with random numbers (torch.nn.init.normal_, xavier_uniform_), so that units can differ",
)
def constant_weights(history: HealthHistory) -> Finding | None:
    """A matrix holds one value only, so all its units compute and learn the same.

    A single matrix of zeros is a usual choice (LoRA's B, gates, output heads, residual branches, queries) and silent.
    Zeros are judged where no gradient passes: most matrices of a layer, both of a feed-forward part, all keys or all
    values, the embeddings of words below layers; and, where the weights come from a checkpoint, all of one kind of
    these.
    """
    start = history.start
    if not start or len(history) > 1:
        return None
    constant = history.is_matrix & (start["std"] == 0.0)
    # A table of positions or a gate may begin as a constant; a layer's weights do not.
    weights = np.array([name.endswith("weight") for name in history.names])
    filled = np.flatnonzero(constant & weights & (start["mean"] != 0.0))
    zeros = constant & (start["mean"] == 0.0) & ~history.where("adapter")
    positions = filled if len(filled) else _zeros_that_block(history, zeros)
    if not len(positions):
        return None
    return constant_weights.finding(
        history,
        parameters=positions,
        value=len(positions),
        threshold=0,
        seen=f"{len(positions)} matrices hold one value each, {start['mean'][positions[0]]:.3g} in the first",
    )


def _zeros_that_block(history: HealthHistory, zeros: np.ndarray) -> np.ndarray:
    """Positions of those matrices of zeros that cannot be meant."""
    blocks = np.array(history.blocks)
    dead = [
        block
        for block in dict.fromkeys(history.blocks)
        if (inside := history.is_matrix & (blocks == block)).sum() >= 2 and zeros[inside].mean() > 0.5
    ]
    found = zeros & np.isin(blocks, dead)
    for stack in history.stacks:
        empty = {
            part: [kind for kind in stack if zeros[kind].all() and re.search(part, history.names[kind[0]])]
            for part in (QUERY, KEY, VALUE, FFN_IN, FFN_OUT)
        }
        loaded = (history.start["loaded"][stack] > 0).all()
        for part, kinds in empty.items():
            partner = {FFN_IN: FFN_OUT, FFN_OUT: FFN_IN}.get(part)
            if loaded or part in (KEY, VALUE) or (partner is not None and empty[partner]):
                for kind in kinds:
                    found[kind] = True
    words = largest_table(history) if history.stacks else -1
    # Positions that are added may begin with zeros; words that are all alike tell nothing.
    if words >= 0 and (history.start["std"][words], history.start["mean"][words]) == (0.0, 0.0):
        found[words] = not re.search(r"position|wpe|type", history.names[words])
    return np.flatnonzero(found)


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "initial_scale", "not_as_in_checkpoint"),
    cause="one row was copied into the others, or an initialization broadcasts one vector over all units",
    remedy="initialize each unit with random numbers of its own, or load the weights again",
)
def identical_units(history: HealthHistory, *, fraction: float = 0.5) -> Finding | None:
    """Units of a linear layer have the very same weights, so they compute and learn the same.

    Judged on up to 256 units of each matrix, where more than `fraction` equal the first; random or trained units never
    do. Matrices of one value are told by `constant_weights`.
    """
    start = history.start
    if not start or "same_rows" not in start or len(history) > 1:
        return None
    same = np.nan_to_num(start["same_rows"])
    several = (start["std"] != 0.0) & ~history.where("adapter")
    positions = np.flatnonzero(several & history.is_matrix & (same > fraction))
    if not len(positions):
        return None
    return identical_units.finding(
        history,
        parameters=positions,
        value=same[positions].max(),
        threshold=fraction,
        seen=f"in {len(positions)} matrices units are equal: {same[positions[0]]:.0%} of those looked at in the first",
    )


@rule(
    needs="model",
    explains=(OUTCOME, "dead_units", "no_gradient", "initial_scale", "not_as_in_checkpoint"),
    severity="warning",
    cause="part of a matrix was zeroed, sliced or never filled (a pruning mask, a resized matrix, a table of word "
    "vectors with gaps)",
    remedy="if it is meant (pruning), ignore it; else initialize those rows or load the weights again",
)
def zero_rows(history: HealthHistory, *, fraction: float = 0.05) -> Finding | None:
    """Many units, inputs or tokens of a matrix have weights of exactly zero while the others have not.

    Judged are linear layers of which a kind has such lines in at least half of the layers of a stack, and embeddings
    beside their padding row; at least `fraction` of the lines. Embeddings of models without a config are a note:
    tables of word vectors usually lack some words.
    """
    start = history.start
    if not start or "zero_rows" not in start or len(history) > 1:
        return None
    zero = np.fmax(start["zero_rows"], start["zero_columns"])
    with np.errstate(invalid="ignore"):
        partly = (zero >= fraction) & (zero < 1.0)
    positions: list[int] = []
    for stack in history.stacks:
        for kind in stack:
            if 2 * partly[kind].sum() >= len(kind):
                positions += kind[partly[kind]].tolist()
    embeddings = np.flatnonzero(partly & history.where("embedding"))
    severity: Severity = "warning" if positions or history.settings.config else "note"
    positions = sorted({*positions, *embeddings.tolist()})
    if not positions:
        return None
    return zero_rows.finding(
        history,
        parameters=positions,
        value=zero[positions].max(),
        threshold=fraction,
        seen=f"{zero[positions[0]]:.0%} of the rows or columns of {history.names[positions[0]]} are exactly zero"
        + (f", and in {len(positions) - 1} more matrices" if len(positions) > 1 else ""),
        severity=severity,
    )


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, FLOW, STEPS, BEHAVIOR, "initial_scale", "not_as_in_checkpoint"),
    cause="normalizations were scaled, shifted or zeroed, or read from other keys of a checkpoint",
    remedy="a fresh normalization multiplies by 1 and adds 0; load the weights again or reset these parameters",
)
def norms_out_of_scale(
    history: HealthHistory,
    *,
    off_one: float = 0.2,
    trained_off_one: float = 0.45,
    shift: float = 0.3,
    norms: int = 3,
    share: float = 0.9,
) -> Finding | None:
    """All normalizations multiply by zero or by a value far from one, or add the same to every feature.

    What a normalization does is measured, so formulas such as "one plus weight" count as what they are. Fresh ones
    (each multiplies all features alike) are judged from `off_one` on where all agree on the factor, trained ones from
    `trained_off_one` on where all of them lie on one side of one and the features of none scatter by more than a
    tenth: learned factors far from one do scatter, and those of the last normalization go the other way.
    Learned shifts differ in sign from feature to feature; a mean above `shift` and above twice their scatter in
    `share` of the normalizations is none.
    """
    start = history.start
    if not start or "norm_gain" not in start or len(history) > 1:
        return None
    gain, spread = start["norm_gain"], start["norm_gain_std"]
    known = np.flatnonzero(np.isfinite(gain))
    as_made = (start["mean"][known] == 1.0) & (start["std"][known] == 0.0)  # Nemotron's multiply by one plus that
    if len(known) < norms:
        return None
    even = spread[known] < 1e-4 * np.maximum(np.abs(gain[known]), 1e-4)
    common = float(np.median(gain[known]))
    value, limit, seen = common, 0.0, ""
    if (np.abs(gain[known]) + spread[known] < 1e-6).mean() >= share:
        seen = f"{len(known)} normalizations multiply by zero, so they give the same whatever comes in"
    elif as_made.all() and not start["norm_shift"][known].any():
        return None
    elif even.all() and (np.abs(gain[known] / common - 1) < 1e-3).all() and abs(common - 1) > off_one:
        limit, seen = 1 + off_one, f"all {len(known)} normalizations multiply by {common:.3g}"
    elif scaled := _scaled_norms(gain[known], spread[known], trained_off_one):
        limit = scaled
        seen = f"all {len(known)} normalizations multiply every feature by a factor near {common:.2g}"
    else:
        mean, scatter = start["norm_shift"][known], start["norm_shift_std"][known]
        shifted = (np.abs(mean) > shift) & (np.abs(mean) > 2 * scatter) & (np.sign(mean) == np.sign(np.median(mean)))
        if shifted.mean() >= share:
            value, limit = float(np.median(mean)), shift
            seen = f"{shifted.sum()} of {len(known)} normalizations add about {value:.2g} to every feature"
    if not seen:
        return None
    return norms_out_of_scale.finding(history, parameters=known, value=value, threshold=limit, seen=seen)


def _scaled_norms(gain: np.ndarray, spread: np.ndarray, off_one: float) -> float:
    """The factor that all normalizations pass on one side of one though their features agree; 0 where they do not."""
    if (spread > 0.1 * np.abs(gain)).any():
        return 0.0
    if (gain > 1 + off_one).all():
        return 1 + off_one
    return 1 / (1 + off_one) if (np.abs(gain) < 1 / (1 + off_one)).all() else 0.0


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, STEPS, "initial_scale"),
    severity="warning",
    cause="one kind of matrix was rescaled, or initialized apart from the rest, in every layer",
    remedy="initialize all linear layers alike (initializer_range), or load the weights again",
)
def kind_out_of_scale(history: HealthHistory, *, factor: float = 4.0, usual: float = 1.25) -> Finding | None:
    """One kind of matrix is far larger than the others in every layer of a fresh model.

    Judged in models with an `initializer_range`: kinds of linear layers above `factor` times that, while at least half
    lie below `usual` times it. Matrices with few inputs (low-rank parts) are larger by design and left out.
    """
    start = history.start
    if not start or "fan_in" not in start or len(history) > 1 or history.initializer_range is None:
        return None
    states = fresh_layers(history).values()
    if not states or not all(states):
        return None
    size = np.sqrt(start["mean"] ** 2 + start["std"] ** 2) / history.initializer_range
    for stack in history.stacks:
        kinds = stack[np.isfinite(start["fan_in"][stack]).all(axis=1) & ~history.where("adapter")[stack].any(axis=1)]
        if not len(kinds):
            continue
        fan = start["fan_in"][kinds[:, 0]]
        kinds = kinds[fan >= 0.5 * np.median(fan)]
        large = (size[kinds] > factor).all(axis=1)
        if large.any() and 2 * (size[kinds] < usual).all(axis=1).sum() >= len(kinds) >= 3:
            return kind_out_of_scale.finding(
                history,
                parameters=np.sort(kinds[large].ravel()),
                value=float(np.median(size[kinds[large]])),
                threshold=factor,
                seen=f"{large.sum()} of {len(kinds)} kinds of matrices are {np.median(size[kinds[large]]):.2g} times "
                f"as large as initializer_range in all {stack.shape[1]} layers, the others are not",
            )
    return None


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, STEPS, "initial_scale"),
    severity="warning",
    cause="one table of embeddings was rescaled, or initialized apart from the others",
    remedy="initialize all tables alike (initializer_range), or load the weights again; if the table comes from "
    "elsewhere (word vectors), ignore this",
)
def table_out_of_scale(history: HealthHistory, *, factor: float = 4.0, usual: float = 1.25) -> Finding | None:
    """Embeddings of positions, segments or the like are far larger than those of the words in a fresh model.

    Judged in models with an `initializer_range` of which the largest table is within `usual` times that; tables above
    `factor` times that drown what words, positions and segments are meant to add up to.
    """
    start = history.start
    if not start or len(history) > 1 or history.initializer_range is None:
        return None
    states = fresh_layers(history).values()
    tables = np.flatnonzero(history.where("embedding") & (start["std"] > 0.0))
    if not states or not all(states) or len(tables) < 2:
        return None
    size = np.sqrt(start["mean"][tables] ** 2 + start["std"][tables] ** 2) / history.initializer_range
    waves = (start["largest"][tables] <= 1.0) & (np.abs(start["std"][tables] - 0.68) < 0.1)  # sinusoidal positions
    words = int(history.count[tables].argmax())
    large = (size > factor) & ~waves
    if not large.any() or not 1.0 / usual < size[words] < usual:
        return None
    return table_out_of_scale.finding(
        history,
        parameters=tables[large],
        value=float(size[large].max()),
        threshold=factor,
        seen=f"{history.names[tables[large][0]]} is {size[large].max():.2g} times as large as initializer_range, the "
        "largest table is not",
    )


@rule(
    needs="model",
    explains=(COURSE, OUTCOME, STEPS, "initial_scale", "layer_out_of_line"),
    severity="warning",
    cause="something changed them between loading and training: init_weights() or an initialization loop, a "
    "state_dict with other keys, surgery on the weights",
    remedy="compare a weight right after from_pretrained with the same one right before training; if the change is "
    "meant, ignore this",
)
def not_as_in_checkpoint(history: HealthHistory, *, most: float = 0.6) -> Finding | None:
    """Part of the weights are not those of the checkpoint that the config names, though the others are.

    Eight rows of each parameter are compared with the safetensors file, 1 % of their norm allowed for other
    precisions. Where more than `most` of the parameters differ, the model plainly holds other weights (a resumed or
    merged one). A head that was drawn anew, pooler included, is a note: some do so on purpose; and so is what differs
    under adapters, of which some take their start out of the weights (PiSSA).
    """
    start = history.start
    if not start or "differs" not in start or len(history) > 1:
        return None
    differs, known = start["differs"] == 1.0, np.isfinite(start["differs"])
    positions = np.flatnonzero(differs)
    if not len(positions) or differs.sum() > most * known.sum():
        return None
    meant = history.where("adapter").any() or all(history.blocks[p] == "head" for p in positions)
    severity: Severity = "note" if meant else "warning"
    return not_as_in_checkpoint.finding(
        history,
        parameters=positions,
        value=len(positions),
        threshold=0,
        seen=f"{len(positions)} of {known.sum()} parameters differ from {history.settings.name_or_path!r} before the "
        "first step",
        severity=severity,
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

    Experts of one layer are not compared: they are often copies of one feed-forward block. A note where all layers are
    equal and fresh, as torch.nn.TransformerEncoder makes them.
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
                cloned = (twin[kinds[:, 1:]] >= 0).all() and any("in_proj" in history.names[p] for p in kinds[:, 0])
                return equal_layers.finding(
                    history,
                    severity="note" if cloned else "warning",
                    parameters=kinds[:, column],
                    value=len(kinds),
                    threshold=0,
                    seen=f"{layer} has the same weights as {blocks[others[0]]} in all {len(kinds)} matrices",
                )
    return None
