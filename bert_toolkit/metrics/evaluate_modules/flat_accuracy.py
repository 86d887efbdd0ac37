"""Accuracy as an `evaluate.Metric`; also `evaluate.load("<path of this file>")`."""

import datasets
import evaluate

from bert_toolkit.metrics import flat_accuracy

INPUTS = """
Args:
    predictions: class ids `(examples,)`, or logits `(examples, classes)`
    references: class ids `(examples,)`; -100 is not scored
Returns:
    `{"accuracy": float}`
"""


class FlatAccuracy(evaluate.Metric):
    """Accuracy by `bert_toolkit.metrics.flat_accuracy`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fraction of labeled positions whose class is predicted right.",
            citation="",
            inputs_description=INPUTS,
            # float64 also for class ids: an int64 column would silently cut 0.5 down to class 0
            features=[
                datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}),
                datasets.Features(
                    {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("float64")}
                ),
            ],
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"accuracy": flat_accuracy(predictions, references)}
