"""`evaluate.Metric` modules that need no network; import this package only where `evaluate` is used.

Use them as objects, `MatthewsCorrelation().compute(predictions=..., references=...)`, inside `evaluate.combine`, or by
`evaluate.load` with the path of a file of this folder: each is a complete module.
"""

from bert_toolkit.metrics.evaluate_modules.flat_accuracy import FlatAccuracy
from bert_toolkit.metrics.evaluate_modules.matthews_correlation import MatthewsCorrelation

__all__ = ["FlatAccuracy", "MatthewsCorrelation"]
