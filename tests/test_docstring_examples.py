"""Examples in docstrings say what happens: each is run, and what people meet first has one.

Those that take the reader's training as given are run in callbacks/test_examples.py.
"""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import bert_toolkit

MODULES = sorted(module.name for module in pkgutil.walk_packages(bert_toolkit.__path__, "bert_toolkit."))
MET_FIRST = [
    "ClassificationMetrics",
    "DataCollatorForPreTraining",
    "GradientFlowCallback",
    "GradientFlowMonitor",
    "NextSentencePairs",
    "ReportCallback",
    "TokenizedDocuments",
    "ToolkitBertConfig",
    "ToolkitBertForPreTraining",
    "ToolkitBertForSequenceClassification",
    "ToolkitBertModel",
    "TrainingHealthCallback",
    "UpdateRatioCallback",
    "UpdateRatioMonitor",
    "flat_accuracy",
    "matthews_correlation",
    "watch",
    "watch_loop",
]
ELSEWHERE = ("bert_toolkit.callbacks.", "bert_toolkit.monitoring.", "bert_toolkit.metrics.pretraining_scores")
WITH_EXAMPLES = [
    name
    for name in MODULES
    if not name.startswith(ELSEWHERE) and ">>>" in inspect.getsource(importlib.import_module(name))
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_show(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
        runner.run(test, out=report.append)
    assert runner.tries and not runner.failures, "".join(report)


@pytest.mark.parametrize("name", MET_FIRST)
def test_what_people_meet_first_has_an_example(name: str) -> None:
    (docstring, *_) = doctest.DocTestFinder(recurse=False).find(getattr(bert_toolkit, name), name)
    assert docstring.examples
