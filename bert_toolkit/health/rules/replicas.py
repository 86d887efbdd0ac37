"""Rules on the ranks of a data-parallel run."""

from __future__ import annotations

from bert_toolkit.health.findings import Finding
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.rules.questions import latest
from bert_toolkit.health.rules.registry import COURSE, OUTCOME, STEPS, rule


@rule(
    needs="ranks",
    explains=(COURSE, OUTCOME, STEPS, "gradients_not_averaged"),
    cause="ranks began with different weights, or something moves them on one rank only",
    remedy="seed all ranks alike or load one checkpoint; wrap the model before training; change no weights by rank",
)
def replicas_differ(history: HealthHistory, *, tolerance: float = 1e-5, samples: int = 1) -> Finding | None:
    """Data-parallel ranks do not hold the same parameters before a step.

    A few values of each parameter are summed and the sums compared; in a healthy run they are equal to the bit.
    """
    recent = latest(history, "replica_parameters", samples)
    if len(recent) < samples or not (recent > tolerance).all():
        return None
    return replicas_differ.finding(
        history,
        value=recent[-1],
        threshold=tolerance,
        seen=f"parameters of the ranks differ by {recent[-1]:.2g} of their sum",
    )


@rule(
    needs="ranks",
    explains=(COURSE, OUTCOME),
    cause="the model is not wrapped for data parallelism, or gradients are synchronized in no backward pass (no_sync)",
    remedy="let Trainer or accelerator.prepare() wrap the model; leave no_sync() for the last accumulated batch",
)
def gradients_not_averaged(history: HealthHistory, *, tolerance: float = 1e-4, samples: int = 2) -> Finding | None:
    """Gradients of the ranks differ right before the optimizer's step, where they should be averages over all."""
    recent = latest(history, "replica_gradients", samples)
    if len(recent) < samples or not (recent > tolerance).all():
        return None
    return gradients_not_averaged.finding(
        history,
        value=recent[-1],
        threshold=tolerance,
        seen=f"gradients of the ranks differ by {recent[-1]:.2g} of their sum",
    )


@rule(
    needs="ranks",
    explains=(),
    severity="error",
    cause="every rank reads the same rows: no distributed sampler, or a sampler that does not know the rank",
    remedy="use Trainer's or accelerator.prepare()'s data loader, or DistributedSampler(num_replicas, rank)",
)
def ranks_share_rows(history: HealthHistory, *, samples: int = 3) -> Finding | None:
    """Two or more ranks train on the very same batch, sample after sample."""
    recent = latest(history, "replica_same_rows", samples)
    if len(recent) < samples or not (recent > 0).all():
        return None
    return ranks_share_rows.finding(
        history,
        value=recent[-1],
        threshold=0.0,
        seen=f"{recent[-1]:.0%} of the ranks had the same batch as another rank in {samples} samples in a row",
    )
