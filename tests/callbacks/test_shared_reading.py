"""Callbacks that sample the same step read gradients and parameters once, and each still has its own numbers."""

import numpy as np
import pytest
import torch
from float64_oracle import Classifier, arguments, rows, train
from transformers import Trainer, TrainerCallback

from bert_toolkit import GradientFlowCallback, TrainingHealthCallback, UpdateRatioCallback
from bert_toolkit.monitoring import gradient_flow, update_ratios


@pytest.fixture
def reads(monkeypatch):
    counts = {"absolute_rows": 0, "local_norms": 0, "update_rows": 0}
    for module in (gradient_flow, update_ratios):
        for name in counts:
            if hasattr(module, name):
                original = getattr(module, name)

                def counted(*args, name=name, original=original, **kwargs):
                    counts[name] += 1
                    return original(*args, **kwargs)

                monkeypatch.setattr(module, name, counted)
    return counts


def three(**changes):
    return [
        TrainingHealthCallback(every_n_steps=2),
        GradientFlowCallback(every_n_steps=2, figures=False),
        UpdateRatioCallback(every_n_steps=2, figures=False, **changes),
    ]


def test_one_read_per_sampled_step_for_three_callbacks(tmp_path, reads):
    train(tmp_path, three())  # 4 steps, of which 1, 2 and 4 are sampled
    assert reads == {"absolute_rows": 3, "local_norms": 3, "update_rows": 3}


def test_steps_that_not_all_sample_are_read_as_each_needs_them(tmp_path, reads):
    health = TrainingHealthCallback(every_n_steps=3)  # 1, 3
    ratios = UpdateRatioCallback(every_n_steps=4, figures=False)  # 1, 2, 4
    train(tmp_path, [health, ratios])
    assert reads == {"absolute_rows": 2, "local_norms": 2, "update_rows": 4}
    assert health.history.step.tolist() == [1, 3] and [r.step for r in ratios.records] == [1, 2, 4]


def test_values_are_those_of_each_callback_alone(tmp_path):
    together = three()
    train(tmp_path / "together", together)
    for position, callback in enumerate(three()):
        train(tmp_path / "alone", [callback])
        if isinstance(callback, TrainingHealthCallback):
            np.testing.assert_array_equal(callback.history.gradient, together[0].history.gradient)
            # The model is so small that a sample of its updates is all of them.
            np.testing.assert_array_equal(callback.history.ratio, together[0].history.ratio)
            np.testing.assert_array_equal(callback.history.learning_rate, together[0].history.learning_rate)
            continue
        for one, other in zip(callback.records, together[position].records, strict=True):
            for field, value in vars(one).items():
                np.testing.assert_array_equal(value, getattr(other, field), err_msg=field)


def test_health_takes_the_exact_record_where_there_is_one(tmp_path):
    health, _, ratios = three()
    train(tmp_path, [health, ratios], model=Classifier(width=80))  # 6,400 elements: a sample is less than all
    matrix = health.history.names.index("layers.0.weight")
    exact = [record.ratio[record.names.index("layers.0.weight")] for record in ratios.records]
    assert health.history.ratio[:, matrix].tolist() == exact
    alone = TrainingHealthCallback(every_n_steps=2)
    train(tmp_path, [alone], model=Classifier(width=80))
    assert alone.history.ratio[:, matrix].tolist() != exact
    np.testing.assert_allclose(alone.history.ratio[:, matrix], exact, rtol=0.1)


def test_one_callback_without_gradients_does_not_disturb_the_others(tmp_path, caplog):
    model = Classifier()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callbacks = three()
    trainer = Trainer(
        model,
        arguments(tmp_path, max_grad_norm=0.0),
        train_dataset=rows(),
        callbacks=callbacks,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    )
    trainer._get_grad_norm = lambda *a, **k: None
    trainer.train()
    assert len([r for r in caplog.records if "no parameter has a gradient" in r.getMessage()]) == 1
    assert [record.step for record in callbacks[2].records] == [1, 2, 4]
    assert [finding.rule for finding in callbacks[0].findings] == ["gradients_cleared"]


def test_parameters_added_and_removed_while_training(tmp_path):
    class Grow(TrainerCallback):
        def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
            if state.global_step == 2:
                model.extra = torch.nn.Linear(4, 4)
                optimizer.add_param_group({"params": list(model.extra.parameters())})
            if state.global_step == 5:
                del model.extra

    class Still(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            return [group["lr"] for group in self.optimizer.param_groups]

    callbacks, model = [Grow(), *three()], Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(tmp_path, callbacks, model, (optimizer, Still(optimizer)), max_steps=8)
    _, health, flow, ratios = callbacks
    assert [r.step for r in flow.records] == [r.step for r in ratios.records] == [1, 2, 4, 6, 8]
    assert ["extra.weight" in record.names for record in ratios.records] == [False, False, True, False, False]
    assert ["extra.weight" in record.missing for record in flow.records] == [False, False, True, False, False]
    assert health.history.step.tolist() == [6, 8], "the history of another set of parameters is not mixed in"
    saved = np.load(tmp_path / "monitoring" / "update_ratio.npz", allow_pickle=False)
    assert "extra.weight" in saved["names"]
