"""What a notebook asks of the callbacks: tables, figures, and findings as HTML."""

import numpy as np
import pytest
import torch
from float64_oracle import Classifier, arguments, rows
from transformers import Trainer

import bert_toolkit
from bert_toolkit import GradientFlowCallback, InputError, TrainingHealthCallback, UpdateRatioCallback


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run whose optimizer does not hold the first layer."""
    model = Classifier()
    held = [p for name, p in model.named_parameters() if not name.startswith("layers.0")]
    optimizer = torch.optim.AdamW(held, lr=1e-2)
    folder = tmp_path_factory.mktemp("watched")
    trainer = Trainer(model, arguments(folder, max_steps=12), train_dataset=rows(), optimizers=(optimizer, None))
    watching = bert_toolkit.watch(trainer, every_n_steps=3, health=TrainingHealthCallback(2))
    trainer.train()
    return watching


@pytest.mark.parametrize("name", ["gradient_flow", "update_ratios"])
def test_table_has_every_number_of_every_record(watched, name):
    callback = getattr(watched, name)
    table = callback.to_dataframe()
    assert len(table) == sum(len(record.names) for record in callback.records)
    for record in callback.records:
        of_step = table[table.step == record.step].set_index("parameter")
        assert tuple(of_step.index) == record.names
        for field, value in vars(record).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(of_step[field], value)
            elif field in ("clip_coefficient", "learning_rate", "skipped"):
                assert (of_step[field] == value).all()
    assert table.block[table.parameter == "layers.1.weight"].unique().tolist() == ["layer.1"]
    assert table.role[table.parameter == "layers.1.weight"].unique().tolist() == ["matrix"]


def test_table_of_findings(watched):
    table = watched.health.to_dataframe().set_index("rule")
    assert table.loc["not_updated", "severity"] == "error"
    assert "optimizer" in table.loc["not_updated", "remedy"]
    assert {"step", "seen", "cause", "samples", "last_step", "symptom_of"} <= set(table.columns)
    assert TrainingHealthCallback().to_dataframe().empty


def test_figures_by_name(watched):
    for callback, names in (
        (watched.gradient_flow, ("gradients", "gradients_over_time")),
        (watched.update_ratios, ("update_ratios", "update_ratios_over_time")),
    ):
        for name in names:
            assert callback.figure(name).axes, name
    with pytest.raises(
        InputError, match="Update ratios draws update_ratios, update_ratios_over_time, got 'gradients'"
    ):
        watched.update_ratios.figure("gradients")
    with pytest.raises(InputError, match="recorded nothing yet"):
        GradientFlowCallback().figure("gradients")
    assert UpdateRatioCallback().to_dataframe().empty


def test_findings_and_verdict_as_html(watched):
    shown = watched.health._repr_html_()
    assert "1 fault in" in shown and "not updated (error, step" in shown and "let Trainer build it" in shown
    (finding,) = watched.health.findings
    assert "layers.0.weight" in finding._repr_html_()
    hostile = type(finding)(**{**vars(finding), "seen": "<script>", "parameters": ("<b>",)})
    assert "<script>" not in hostile._repr_html_() and "&lt;b&gt;" in hostile._repr_html_()
    assert "not watched" in TrainingHealthCallback()._repr_html_()
