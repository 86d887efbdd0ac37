"""Every program; importing this registers them all."""

from benchmarks.fault_injection.healthy_programs import (  # noqa: F401
    adapters,
    games_and_margins,
    language_models,
    optimizers,
    precision,
    preferences,
    regressions,
    rows_and_labels,
    sentence_encoders,
    sequence_to_sequence,
    sequences_and_graphs,
    sound_and_series,
    text_classification,
    token_tasks,
    vision,
)
from benchmarks.fault_injection.healthy_programs.program import PROGRAMS

__all__ = ["PROGRAMS"]
