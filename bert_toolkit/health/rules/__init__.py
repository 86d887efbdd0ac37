"""The rules of training health, one file per family; to add one, write a function with the decorator `rule`.

A rule gets the history up to now and returns a finding for what is wrong at the newest sample, or None. Thresholds
are keyword arguments. "Benchmark" names benchmarks/fault_injection as a threshold's source: healthy and broken
trainings lie clearly on its two sides there.
"""

# isort: off
# Families in the order in which causes come before symptoms.
from bert_toolkit.health.rules import settings, protocol, replicas, data, labels, token_targets, masks, losses, mode  # noqa: F401
from bert_toolkit.health.rules import weights, pretrained, attention, flow  # noqa: F401
from bert_toolkit.health.rules import precision, participation, scale, gradients, evaluation, outcome  # noqa: F401
from bert_toolkit.health.rules.registry import RULES, Rule

# isort: on

__all__ = ["RULES", "Rule"]
