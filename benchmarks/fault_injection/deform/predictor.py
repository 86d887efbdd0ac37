"""The catalogue's own pre-trained predictor, beside training health on the same runs."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

from defaultplusplus import DEFaultPlusCallback
from defaultplusplus.diagnosis import load_pretrained
from defaultplusplus.extraction.metrics.structural import StructuralMetrics
from defaultplusplus.processing import RuntimeNormalizer
from pandas.errors import PerformanceWarning


@cache
def weights(scope: str) -> tuple[Any, Any]:
    """Normalizer and model that ship with the package."""
    return RuntimeNormalizer.load(scope), load_pretrained(scope)


class WhatItCan(StructuralMetrics):
    """Its structural metrics, where they can be taken.

    0.4.1 takes the wide half of BERT's feed-forward part for the whole, fails to subtract its input from it, and loses
    all other features of the step along with it.
    """

    def collect(self, **kwargs: Any) -> dict[str, float]:
        """Nothing where the whole feed-forward part was not found."""
        try:
            return super().collect(**kwargs)
        except RuntimeError:
            return {}


class Predictor:
    """Collects features as the package's own pipeline does, and asks its model.

    Args:
        scope: `encoder` or `decoder`.

    Attributes:
        callback: For Trainer.
    """

    def __init__(self, scope: str) -> None:
        # Its callback reports each step that it cannot read as an error of the log and goes on
        logging.getLogger("defaultplusplus").setLevel(logging.CRITICAL)
        self.scope = scope
        self.callback = DEFaultPlusCallback(arch=scope)

    def repair(self) -> None:
        """Keep one metric from taking all others along; call it once training has begun."""
        for module in self.callback.extractor.collector._modules if self.callback.extractor else ():
            if type(module) is StructuralMetrics:
                module.__class__ = WhatItCan

    def note(self, inputs: dict[str, Any], outputs: Any) -> None:
        """Show it a step."""
        self.repair()
        self.callback.capture_inputs(dict(inputs))
        self.callback.capture_outputs(outputs)

    def verdict(self) -> dict[str, Any] | None:
        """Probability of a fault and the component, None where it has no features of the run."""
        features = self.callback.feature_vector
        if not features:
            return None
        normalizer, model = weights(self.scope)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PerformanceWarning)  # one for each of its thousand columns
            diagnosis = model.predict(normalizer.encode(features, mode="raw"))
        return {
            "faulty": diagnosis.is_faulty,
            "probability": round(diagnosis.detection_prob, 3),
            "component": diagnosis.category,
            "features": normalizer.coverage(features)[0],
        }
