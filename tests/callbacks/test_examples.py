"""The examples in the docstrings of callbacks and monitors run and give what they say."""

import doctest
import importlib
from importlib.util import find_spec

import pytest
import torch
from float64_oracle import Classifier, arguments, rows
from transformers import PrinterCallback, Trainer

import bert_toolkit

if find_spec("deepspeed") is not None:  # its first import prints a line, which would be taken for an example's
    importlib.import_module("deepspeed")

MODULES = [
    "callbacks.gradient_flow",
    "callbacks.update_ratios",
    pytest.param("callbacks.run_report", marks=pytest.mark.skipif(find_spec("plotly") is None, reason="needs plotly")),
    "callbacks.training_health",
    "callbacks.trainer_watch",
    "callbacks.loop_watch",
    "callbacks.safe_outputs",
    "monitoring.gradient_flow",
    "monitoring.guarded_hooks",
    "monitoring.update_ratios",
    "monitoring.step_reading",
    "metrics.pretraining_scores",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path):
    """What an example takes as given: somebody's trainer, or somebody's model and batches."""

    def make_trainer(callbacks=()):
        trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows(), callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        return trainer

    def make_batches():
        return [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(4)]

    given = {
        "bert_toolkit": bert_toolkit,
        "torch": torch,
        "folder": str(tmp_path),
        "make_trainer": make_trainer,
        "make_model": lambda: torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)),
        "make_batches": make_batches,
    }
    options = doctest.ELLIPSIS
    module = importlib.import_module(f"bert_toolkit.{name}")
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=options)
    for example in finder.find(module, extraglobs=given):
        runner.run(example)
    assert runner.tries > 0 and runner.failures == 0
