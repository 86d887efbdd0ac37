"""Rules that tell faults of a training run from the history of its statistics; one pure function each."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bert_toolkit.monitoring.health_history import HealthHistory


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Args:
        step: optimizer step at which it was first seen.
        rule: name of the rule.
        parameters: parameters concerned, empty where the whole run is.
        layers: blocks of these parameters, as the monitoring names them.
        value, threshold: what was measured and what it should not pass.
        seen: the observation in words.
        cause: what usually causes it.
        remedy: what to change.
    """

    step: int
    rule: str
    parameters: tuple[str, ...]
    layers: tuple[str, ...]
    value: float
    threshold: float
    seen: str
    cause: str
    remedy: str

    @property
    def where(self) -> str:
        """The place, short enough for a line."""
        return "whole model"


RULES: list[Callable[[HealthHistory], list[Finding]]] = []
EXPLAINS: dict[str, frozenset[str]] = {}
