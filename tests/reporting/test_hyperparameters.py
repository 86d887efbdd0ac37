"""TensorBoard's own readers find hyper-parameters and final scores in the one run that Trainer wrote."""

import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from transformers import Trainer, TrainingArguments

from bert_toolkit.reporting.hyperparameters import write_hyperparameters


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.fixture
def trained(tmp_path):
    def train(report_to):
        rows = [{"x": torch.full((4,), float(i)), "labels": i % 2} for i in range(16)]
        settings = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 3e-4, "seed": 5}
        arguments = TrainingArguments(str(tmp_path), report_to=report_to, max_steps=4, logging_steps=1, **settings)
        trainer = Trainer(Line(), arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        trainer.evaluate()
        return trainer

    return train


def test_one_run_has_curves_hyperparameters_and_scores(trained, tmp_path):
    scores = {"accuracy": 0.75, "undefined": math.nan}
    write_hyperparameters(trained("tensorboard"), {"model": "a line", "steps": 4}, scores)
    (run,) = {path.parent for path in tmp_path.rglob("events.*")}
    read = EventAccumulator(str(run)).Reload()
    assert "train/loss" in read.Tags()["scalars"] and "eval/loss" in read.Tags()["scalars"]
    (final,) = read.Scalars("final/accuracy")
    assert (final.step, final.value) == (4, 0.75)

    def content(tag):
        return read.SummaryMetadata(tag).plugin_data.content

    started = metadata.parse_session_start_info_plugin_data(content(metadata.SESSION_START_INFO_TAG)).hparams
    assert started["learning_rate"].number_value == 3e-4 and started["seed"].number_value == 5
    assert started["lr_scheduler_type"].string_value == "linear" and started["model"].string_value == "a line"
    experiment = metadata.parse_experiment_plugin_data(content(metadata.EXPERIMENT_TAG))
    assert [info.name.tag for info in experiment.metric_infos] == ["final/accuracy"]
    assert metadata.parse_session_end_info_plugin_data(content(metadata.SESSION_END_INFO_TAG)).status == 1, "success"


def test_without_tensorboard_nothing_is_written(trained, tmp_path):
    write_hyperparameters(trained("none"), {}, {"accuracy": 0.75})
    assert not list(tmp_path.rglob("events.*"))
