"""Rules on parameters that do not take part: without gradient, frozen, never moved."""

import re

import numpy as np

from bert_toolkit.health.findings import Finding, Severity
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import fact_by_place, largest_table, usable_samples
from bert_toolkit.health.rules.registry import COURSE, FLOW, OUTCOME, rule

_ROUTER = re.compile(r"(^|\.)(gate|gating|router|routing|switch)\.")
"""Parameters of what chooses, outside of all layers, between layers side by side; some may never be chosen."""


@rule(
    explains=(OUTCOME, "vanishing_gradients"),
    needs="gradients",
    cause="requires_grad was switched off for this layer and not for those below it",
    remedy="call requires_grad_(True) on it; to freeze on purpose, freeze from the input upwards",
)
def frozen_layer(history: HealthHistory, *, samples: int = 2, share: float = 0.5) -> Finding | None:
    """A layer is frozen while a lower layer of the same stack trains.

    Freezing on purpose takes the lower layers, everything, or one kind of parameter in all layers. Frozen layers that
    are few (at most `share` of the stack, or one) and lie above a trainable one are a hole; a warning where they are
    the topmost, which some train in turn or keep on purpose.
    """
    if len(history) < samples:
        return None
    trainable = history.trainable[-1]
    if trainable.all():
        return None
    blocks = np.array(history.blocks)
    for stack in history.stacks:
        names = blocks[stack[0]]
        # Normalizations are often kept as they are.
        weighty = history.where("matrix", "embedding")
        alive = np.array([trainable[blocks == n].any() or not weighty[blocks == n].any() for n in names])
        holes = names[~alive & (np.cumsum(alive) > 0)]
        if len(holes) and (len(holes) == 1 or len(holes) <= share * len(names)):
            return frozen_layer.finding(
                history,
                parameters=np.flatnonzero(np.isin(blocks, holes)),
                value=len(holes),
                threshold=0,
                seen=(
                    f"{', '.join(holes)} of {len(names)} layers does not require gradients, "
                    "though layers below it train"
                ),
                severity="error" if alive[np.flatnonzero(np.isin(names, holes))[0] :].any() else "warning",
            )
    return None


@rule(
    explains=(OUTCOME, "vanishing_gradients"),
    needs="gradients",
    severity="warning",
    cause="requires_grad was switched off by a pattern of names that matches these in every layer",
    remedy="call requires_grad_(True) on them; if they are meant to stay as they are, ignore this",
)
def frozen_kind(history: HealthHistory, *, samples: int = 2, share: float = 0.5) -> Finding | None:
    """Some kinds of matrices are frozen in every layer of a stack while everything else in the model trains.

    At most `share` of the kinds. Training few parts on purpose (biases, normalizations, adapters, attention alone)
    leaves embeddings and most of the model frozen as well.
    """
    trainable = history.trainable[-1]
    if len(history) < samples or trainable.all() or history.where("adapter").any():
        return None
    frozen = np.zeros(len(history.names), dtype=bool)
    for stack in history.stacks:
        matrices = stack[history.is_matrix[stack].all(axis=1)]
        kinds = matrices[~trainable[matrices].any(axis=1)]
        if len(kinds) and len(kinds) <= share * len(matrices):
            frozen[kinds] = True
    biases = history.bias_of[frozen]
    frozen[biases[biases >= 0]] = True
    if not frozen.any() or not trainable[~frozen].all():
        return None
    positions = np.flatnonzero(frozen & ~trainable)
    return frozen_kind.finding(
        history,
        parameters=positions,
        value=len(positions),
        threshold=0,
        seen=f"{len(positions)} parameters of the same kinds in every layer do not require gradients; all others do",
    )


@rule(
    explains=(OUTCOME, FLOW),
    needs="gradients",
    cause="requires_grad was switched off for all parameters and not on again for the head, or an adapter library "
    "froze it because it was not told the task (task_type, modules_to_save)",
    remedy="call requires_grad_(True) on the head; with PEFT pass task_type or modules_to_save",
)
def fresh_head_frozen(history: HealthHistory, *, samples: int = 2) -> Finding | None:
    """The last matrix of a model whose body comes from a checkpoint is frozen, was not read from there, and is fresh.

    A bias of zero, or weights and bias as PyTorch spreads them, says so. Something else trains, so the body has to
    learn to suit random outputs.
    """
    start, trainable = history.start, history.trainable[-1]
    if "as_made" not in start or len(history) < samples or not trainable.any() or not (start["loaded"] > 0).any():
        return None
    # PEFT trains a copy of the original module; of a pooler many read nothing.
    no_head = np.array([bool(re.search(r"original_module|pooler", name)) for name in history.names])
    matrices = np.flatnonzero(history.is_matrix & ~history.where("adapter") & ~no_head)
    last = matrices[-1] if len(matrices) else -1
    if last < 0 or history.blocks[last] != "head" or trainable[last] or start["loaded"][last] > 0:
        return None
    bias = history.bias_of[last]
    if start["as_made"][last] != 1.0 or (bias >= 0 and (trainable[bias] or start["loaded"][bias] > 0)):
        return None
    return fresh_head_frozen.finding(
        history,
        parameters=[last] if bias < 0 else [last, bias],
        value=1,
        threshold=0,
        seen=f"{history.names[last]} was not read from the checkpoint that the body comes from, and does not train",
    )


@rule(
    explains=(COURSE, OUTCOME, "vanishing_gradients", "layer_out_of_line"),
    needs="updates",
    cause="the optimizer was built before the parameter was added or from a filtered list, a parameter group with "
    "rate 0, or a schedule that has ended",
    remedy="compare optimizer.param_groups with model.named_parameters(); check lr_scheduler_type, warmup_steps and "
    "max_steps",
)
def not_updated(history: HealthHistory, *, samples: int = 4) -> Finding | None:
    """A parameter has a gradient in each of the last `samples` samples and never moves, while the learning rate is on.

    Exactly zero movement, so no threshold is needed; several samples, since a warm-up may start at zero. In half
    precision small steps round away instead, see `rounded_away`. Embeddings count only where the optimizer does not
    hold them or their rate is zero, since few of their rows move in a step.
    """
    recent = usable_samples(history, samples)
    if len(recent) < samples:
        return None
    rates = history.learning_rate[recent]
    on = history.rate[recent] > 0
    if np.isnan(rates).all() and history.step[-1] >= 12 and (history.ratio[recent] == 0)[:, history.is_matrix].all():
        return not_updated.finding(
            history,
            parameters=np.flatnonzero(history.trainable[-1]),
            value=0.0,
            threshold=0.0,
            seen=f"no parameter moved in {samples} samples, and the optimizer holds none of them",
            cause="the optimizer was built from another model, or from a copy of this one",
            remedy="build the optimizer from the parameters of the model that is trained, after it is in its place",
        )
    if not on.any():
        at_end = history.step[-1] >= 0.9 * history.last_step
        if at_end or history.step[-1] < 2 * samples:
            return None
        return not_updated.finding(
            history,
            parameters=np.flatnonzero(history.trainable[-1]),
            value=0.0,
            threshold=0.0,
            seen=f"the learning rate is 0 in {samples} samples in a row",
            cause=(
                "the scheduler gives 0: wrong number of steps or of warm-up steps, "
                "or a resumed schedule that has ended"
            ),
            remedy="check lr_scheduler_type, warmup_steps and max_steps",
        )
    if not on.all():
        return None
    stuck = (history.gradient[recent] > 0).all(axis=0) & (history.ratio[recent] == 0).all(axis=0)
    stuck &= np.ptp(history.weight[recent], axis=0) == 0  # else another optimizer moves them between the samples
    moving = (history.ratio[recent] > 0).any()
    if not moving and "RAdam" in history.settings.optimizer and history.step[-1] < 12:
        return None  # rectified Adam and its schedule-free form make no step before their variance is known
    unheld = np.isnan(rates).all(axis=0) & ~np.isnan(rates).all()
    off = (rates == 0).all(axis=0)
    # Late in a decay even fp32 rounds steps away, from normalization weights of 1 first.
    full_rate = (history.rate[recent] >= 0.1 * history.rate.max()).all()
    exact = (history.item_size > 2) & ~history.where("embedding") & full_rate
    # Where training has converged, what is left rounds away.
    converged = (history.gradient[recent] < 1e-4 * np.fmax.reduce(history.gradient, axis=0)).all(axis=0)
    positions = np.flatnonzero(stuck & (unheld | off | (exact & ~converged)))
    if not len(positions):
        return None
    if unheld[positions].all():
        cause = "the optimizer does not hold them: it was built before they were added, or from a filtered list"
        remedy = "pass them to the optimizer, or let Trainer build it"
    elif off[positions].all():
        cause = "the learning rate of their parameter group is 0"
        remedy = "give their group a learning rate, or set requires_grad=False if this is meant"
    else:
        cause = "the optimizer gives them no step: a wrong parameter group, a hook that undoes it, or rounding"
        remedy = "compare optimizer.param_groups with model.named_parameters()"
    return not_updated.finding(
        history,
        parameters=positions,
        value=0.0,
        threshold=0.0,
        seen=f"{len(positions)} parameters have gradients and did not move in {samples} samples",
        cause=cause,
        remedy=remedy,
        severity="note" if (unheld | off)[positions].all() and _is_lower_part(history, positions) else "error",
    )


def _is_lower_part(history: HealthHistory, positions: np.ndarray) -> bool:
    """Whether all of these lie below whatever learns: a body that is kept as it is, under a head."""
    left_out = ~history.trainable[-1] | history.missing[-1]
    left_out[positions] = True
    learning = np.flatnonzero(~left_out)
    return bool(len(learning)) and positions.max() < learning[0]


@rule(
    explains=(OUTCOME,),
    needs="gradients",
    severity="warning",
    cause="the adapter was made or loaded for inference (inference_mode=True, is_trainable=False), or a loop over all "
    "parameters froze it as well",
    remedy="make it with inference_mode=False, or load it with is_trainable=True; print_trainable_parameters() tells",
)
def adapters_frozen(history: HealthHistory, *, samples: int = 2) -> Finding | None:
    """The model has adapters, and none of them requires gradients, while other parameters train."""
    adapters, trainable = history.where("adapter"), history.trainable[-1]
    if len(history) < samples or not adapters.any() or trainable[adapters].any() or not trainable.any():
        return None
    return adapters_frozen.finding(
        history,
        parameters=np.flatnonzero(adapters),
        value=adapters.sum(),
        threshold=0,
        seen=f"none of {adapters.sum()} parameters of adapters requires gradients; {trainable.sum()} others do",
    )


@rule(
    explains=(OUTCOME, FLOW),
    needs="gradients",
    cause="modules are kept in a plain list or dict, so they are in no model.parameters(): no optimizer holds them, "
    "and no checkpoint saves them",
    remedy="keep them in nn.ModuleList or nn.ModuleDict, and build the optimizer after that",
)
def modules_unregistered(history: HealthHistory, *, samples: int = 2) -> Finding | None:
    """Modules in a plain Python container get gradients, and nobody has moved their parameters since the last sample.

    A teacher or a loss that is hidden there on purpose gets none.
    """
    stuck = fact_by_place(history, "unregistered")
    if len(stuck) < samples or not (found := (stuck[-samples:] == 1.0).all(axis=0)).any():
        return None
    names = [name for name, is_stuck in zip(history.places["unregistered"], found, strict=True) if is_stuck]
    return modules_unregistered.finding(
        history,
        value=len(names),
        threshold=0,
        seen=f"parameters of the modules in {', '.join(names[:3])} get gradients and are not among those of the model",
    )


@rule(
    group=FLOW,
    explains=(COURSE, OUTCOME, "vanishing_gradients", "layer_out_of_line"),
    needs="gradients",
    cause="they do not reach the loss: a detach() or no_grad() in the forward pass, a branch or head that is not "
    "used, or a label that was not passed",
    remedy="remove the detach, or set requires_grad=False (and leave them out of the optimizer) if this is meant",
)
def no_gradient(history: HealthHistory, *, samples: int = 5) -> Finding | None:
    """A trainable parameter has had no gradient, or one of only zeros, since the start of training.

    `samples` samples: LoRA's A and gates that start at zero have a zero gradient at the first step only. It is an
    error where a layer above it, or the same kind of parameter in other layers, gets gradients: then the path to the
    loss is cut; or where no adapter has any (reentrant checkpointing of frozen inputs). Unused poolers and heads, mask
    tokens, idle experts, upper layers whose output nobody reads, and what the optimizer does not hold are notes.
    """
    usable = ~np.isnan(history.gradient_norm)
    if usable.sum() < samples:
        return None
    ever = (np.nan_to_num(history.gradient[usable]) > 0).any(axis=0)
    never = history.trainable[usable].all(axis=0) & ~ever
    if not never.any():
        return None
    cut, severity = _cut_off(history, never, ever)
    positions = np.flatnonzero(never) if cut is None else cut
    return no_gradient.finding(
        history,
        parameters=positions,
        value=usable.sum(),
        threshold=samples,
        seen=f"{len(positions)} trainable parameters had no gradient in any of {usable.sum()} samples",
        severity=severity,
    )


def _silent_below(never: np.ndarray, ever: np.ndarray, history: HealthHistory) -> np.ndarray:
    """Positions of all parameters below the first with a gradient, if they hold a matrix and most of the model.

    What is not used at all stands anywhere; all that comes before a head has been cut off from it.
    """
    alive = np.flatnonzero(ever)
    lower = np.flatnonzero(never[: alive[0]]) if len(alive) else np.zeros(0, dtype=int)
    whole = len(lower) and len(lower) == alive[0] and len(lower) == never.sum()
    held = history.count[lower].sum() > 0.5 * history.count.sum() and (history.is_matrix[lower]).any()
    return lower if whole and held else np.zeros(0, dtype=int)


def _cut_off(history: HealthHistory, never: np.ndarray, ever: np.ndarray) -> tuple[np.ndarray | None, Severity]:
    """Which of the parameters without gradient should have one, and how sure that is; None where none should."""
    unheld = np.isin(history.names, history.settings.unheld)
    routed = any(_ROUTER.search(n) for n, inside in zip(history.names, history.in_layer, strict=True) if not inside)
    experts = np.array(["expert" in name for name in history.names]) | (history.in_layer & routed)
    judged = ~unheld & ~experts & ~history.where("adapter")
    blocks = np.array(history.blocks)
    # Some adapters may stand where nothing is read; none at all has a gradient where none can have one.
    adapters = history.where("adapter") & history.trainable[-1]
    errors: list[int] = np.flatnonzero(adapters).tolist() if adapters.any() and never[adapters].all() else []
    warnings: list[int] = []
    for stack in history.stacks:
        layers = [history.blocks[p] for p in stack[0]]
        alive = np.array([ever[blocks == layer].any() for layer in layers])
        whole = np.array([never[blocks == layer].any() and not ever[blocks == layer].any() for layer in layers])
        if not alive.any():  # something outside the stack learns, nothing in it: a cut between the two
            found = np.flatnonzero(np.isin(blocks, layers) & never & judged).tolist() if ever.any() else []
            (errors if len(history.stacks) == 1 else warnings).extend(found)
            continue
        highest = int(np.flatnonzero(alive)[-1])
        below = [layer for layer, dead in zip(layers[:highest], whole[:highest], strict=True) if dead]
        errors += np.flatnonzero(np.isin(blocks, below) & never & judged).tolist()
        living = [column for column, layer in enumerate(layers) if alive[column]]
        for kind in stack[:, living]:
            silent = kind[never[kind] & judged[kind]]
            if len(silent) == len(kind) and len(kind) > 1:
                # What serves an input that is optional: an encoder's states, global attention, entities.
                part = r"cross|encoder_attn|EncDec|global|entit|e2|2e_|seg_embed|r_s_bias"
                used = np.array([p for p in silent if not re.search(part, history.names[p])], dtype=int)
                warnings += used[history.is_matrix[used]].tolist()
            elif silent.tolist() != [kind[-1]] or not re.search(r"att(e?n|\b)", history.names[kind[-1]]):
                errors += silent.tolist()  # but for attention of the top layer, of which one token may be read alone
    words = np.flatnonzero(history.where("embedding"))
    if len(words) and np.isfinite(history.fact("ordinary_tokens")).any() and ever[history.in_layer].any():
        largest = largest_table(history)
        errors += [largest] if never[largest] and judged[largest] else []
        positions = [
            p for p in words if never[p] and judged[p] and re.search(r"^(?!.*entit).*(position|wpe)", history.names[p])
        ]
        warnings += [int(p) for p in positions]
    if errors:
        return np.unique(errors), "error"
    if not history.stacks and len(lower := _silent_below(never & judged, ever, history)):
        return lower, "warning"
    return (np.unique(warnings), "warning") if warnings else (None, "note")
