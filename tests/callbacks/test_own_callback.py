"""The template of docs/callbacks.md is a whole callback: values, file, scalars, figure, resume, and no trace."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from float64_oracle import Classifier, Spy, arguments, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer

from bert_toolkit import watch_loop
from bert_toolkit.monitoring.record_file import load_records

PAGE = Path(__file__).parents[2] / "docs" / "callbacks.md"


@pytest.fixture
def template():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (text,) = (block for block in blocks if "class StepSizeCallback" in block)
    code = text.split("\ntrainer = ")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 40, "a template that fits on a screen"
    # Dataclasses look their module up by name.
    namespace = {"__name__": __name__}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace["StepSizeCallback"], namespace["StepSizeRecord"]


def test_template(tmp_path, template):
    kind, record_class = template
    callback, spy = kind(every_n_steps=2), Spy()
    args = arguments(tmp_path, report_to="tensorboard", save_strategy="steps", save_steps=2)
    trainer = Trainer(Classifier(), args, train_dataset=rows(), callbacks=[callback, spy])
    callback.attach(trainer)
    trainer.train()
    assert [record.step for record in callback.records] == [1, 2, 4]
    for record in callback.records:
        step = spy.steps[record.step]
        for name, size in zip(record.names, record.size, strict=True):
            update = (step.after[name].double() - step.before[name].double()).norm()
            assert size == pytest.approx(float(update / step.gradients[name].double().norm()), rel=1e-5)
    saved = load_records(tmp_path / "monitoring" / "step_size.npz", record_class)
    np.testing.assert_array_equal(saved[-1].size, callback.records[-1].size)
    assert (tmp_path / "monitoring" / "step_sizes.png").exists()
    (folder,) = (tmp_path / "runs").iterdir()
    reader = EventAccumulator(str(folder))
    reader.Reload()
    assert [event.step for event in reader.Scalars("step_size/layer.0")] == [1, 2, 4]

    resumed = kind(every_n_steps=2)
    again = Trainer(Classifier(), args, train_dataset=rows(), callbacks=[resumed])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [record.step for record in resumed.records] == [1, 2, 4]
    plain = Trainer(Classifier(), arguments(tmp_path / "plain"), train_dataset=rows())
    plain.train()
    for name, values in plain.model.named_parameters():
        assert torch.equal(values, dict(trainer.model.named_parameters())[name])


def test_template_in_a_loop(tmp_path, template):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    callback = template[0](every_n_steps=2)
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    with watch_loop(model, optimizer, health=False, output_dir=tmp_path, figures=False, callbacks=[callback]):
        for _ in range(4):
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [record.step for record in callback.records] == [1, 2, 4]
