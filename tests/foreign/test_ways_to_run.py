"""What people do with a trainer and its callbacks: twice, resumed, searched, shared, copied, pickled."""

import copy
import pickle

import pytest
import torch
from float64_oracle import Classifier, arguments, check_gradients, check_update, rows
from transformers import Trainer
from watched_program import StepSpy, complaints_of_the_package, new_callbacks

from bert_toolkit import GradientFlowCallback, TrainingHealthCallback, UpdateRatioCallback, watch


def trainer_with(folder, callbacks=(), model=None, **changes) -> Trainer:
    return Trainer(
        Classifier() if model is None else model,
        arguments(folder, **changes),
        train_dataset=rows(),
        callbacks=list(callbacks),
    )


def check(flow, updates, spy, steps) -> None:
    assert [record.step for record in flow.records] == steps
    for gradients, change in zip(flow.records, updates.records, strict=True):
        check_gradients(gradients, spy.steps[gradients.step].gradients)
        check_update(change, spy.steps[change.step])


def weights_of(trainer) -> dict:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(one, other) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("how", ["callbacks", "watch"])
def test_trained_twice(tmp_path, how):
    """The second training goes on from the weights of the first; its records are its own."""
    alone = trainer_with(tmp_path / "alone")
    alone.train()
    alone.train()
    spy = StepSpy()
    flow, updates, health = new_callbacks()
    if how == "watch":
        trainer = trainer_with(tmp_path / "watched", [spy])
        watching = watch(trainer, 2, health, figures=False)
        flow, updates = watching.gradient_flow, watching.update_ratios
    else:
        trainer = trainer_with(tmp_path / "watched", [flow, updates, health, spy])
    trainer.train()
    check(flow, updates, spy, [1, 2, 4])
    first = flow.records[0].mean.copy()
    trainer.train()
    check(flow, updates, spy, [1, 2, 4])
    assert not (flow.records[0].mean == first).all()
    assert len(health.history) == 4
    assert equal(weights_of(alone), weights_of(trainer))


@pytest.mark.parametrize("how", ["callbacks", "watch"])
def test_resumed(tmp_path, how):
    """A run that is resumed equals one that was never interrupted, in weights and in records."""

    def start(folder, steps):
        spy = StepSpy()
        flow, updates, health = new_callbacks()
        mine = [] if how == "watch" else [flow, updates, health]
        trainer = trainer_with(folder, [*mine, spy], max_steps=steps, save_strategy="steps", save_steps=3)
        if how == "watch":
            watching = watch(trainer, 2, health, figures=False)
            flow, updates = watching.gradient_flow, watching.update_ratios
        return trainer, flow, updates, health, spy

    whole, flow, updates, health, spy = start(tmp_path / "whole", 6)
    whole.train()
    check(flow, updates, spy, [1, 2, 4, 6])
    start(tmp_path / "resumed", 3)[0].train()
    again, later_flow, later_updates, later_health, later_spy = start(tmp_path / "resumed", 6)
    again.train(resume_from_checkpoint=True)
    assert equal(weights_of(whole), weights_of(again))
    assert [record.step for record in later_flow.records] == [1, 2, 4, 6]
    for one, other in zip(flow.records, later_flow.records, strict=True):
        assert (one.mean == other.mean).all() and (one.std == other.std).all()
    for record in later_updates.records:
        if record.step in later_spy.steps:
            check_update(record, later_spy.steps[record.step])
    assert list(later_health.history.step) == list(health.history.step) == [1, 2, 3, 4, 5, 6]


@pytest.mark.foreign
def test_hyperparameter_search(tmp_path):
    """Every trial builds a new model; the callbacks follow it."""
    pytest.importorskip("optuna")
    spy = StepSpy()
    flow, updates, health = new_callbacks()
    seen = []

    class Counting(Trainer):
        def train(self, *args, **kwargs):
            result = super().train(*args, **kwargs)
            check(flow, updates, spy, [1, 2, 4])
            seen.append((self.args.learning_rate, flow.records[-1].step))
            return result

    trainer = Counting(
        model_init=lambda: Classifier(),
        args=arguments(tmp_path),
        train_dataset=rows(),
        eval_dataset=rows()[:8],
        callbacks=[flow, updates, health, spy],
    )
    with complaints_of_the_package() as complaints:
        best = trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
            n_trials=3,
            direction="minimize",
            backend="optuna",
        )
    assert best.objective > 0 and not complaints
    assert len(seen) == 3 and len({rate for rate, _ in seen}) == 3


def test_batch_size_that_shrinks(tmp_path):
    """`auto_find_batch_size` starts the training anew after it ran out of memory."""

    class Hungry(Classifier):
        def forward(self, input_ids, labels):
            if len(input_ids) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(input_ids, labels)

    spy = StepSpy()
    flow, updates, health = new_callbacks()
    trainer = trainer_with(
        tmp_path, [flow, updates, health, spy], Hungry(), auto_find_batch_size=True, per_device_train_batch_size=8
    )
    with complaints_of_the_package() as complaints:
        trainer.train()
    assert not complaints
    check(flow, updates, spy, [1, 2, 4])


def test_two_trainers_share_callbacks_one_after_the_other(tmp_path):
    """The records are those of the training that ran last."""
    flow, updates, health = new_callbacks()
    spies = [StepSpy(), StepSpy()]
    trainers = [
        trainer_with(tmp_path / str(layers), [flow, updates, health, spy], Classifier(layers))
        for layers, spy in zip((2, 3), spies, strict=True)
    ]
    for trainer, spy in zip(trainers, spies, strict=True):
        trainer.train()
        check(flow, updates, spy, [1, 2, 4])
    trainers[0].train()
    check(flow, updates, spies[0], [1, 2, 4])
    for folder in ("2", "3"):
        assert (tmp_path / folder / "monitoring" / "training_health.jsonl").exists()


def pickled(callback):
    return pickle.loads(pickle.dumps(callback))


@pytest.mark.parametrize(
    ("kind", "when", "twin"),
    [
        (GradientFlowCallback, "fresh", copy.deepcopy),
        (GradientFlowCallback, "fresh", pickled),
        (GradientFlowCallback, "used", copy.deepcopy),
        (GradientFlowCallback, "used", pickled),
        (UpdateRatioCallback, "fresh", copy.deepcopy),
        (UpdateRatioCallback, "fresh", pickled),
        (UpdateRatioCallback, "used", copy.deepcopy),
        (UpdateRatioCallback, "used", pickled),
        (TrainingHealthCallback, "fresh", copy.deepcopy),
        (TrainingHealthCallback, "fresh", pickled),
        (TrainingHealthCallback, "used", copy.deepcopy),
        (TrainingHealthCallback, "used", pickled),
    ],
)
def test_copies(tmp_path, kind, when, twin):
    """A copy watches a training of its own and leaves the original alone."""
    callback = kind(every_n_steps=2)
    if when == "used":
        trainer_with(tmp_path / "first", [callback], max_steps=2).train()
    other = twin(callback)
    assert other.every_n_steps == 2
    before = len(callback.records) if when == "used" else 0
    spy = StepSpy()
    with complaints_of_the_package() as complaints:
        trainer_with(tmp_path / "second", [other, spy]).train()
    assert not complaints
    assert (len(callback.records) if when == "used" else 0) == before
    if kind is TrainingHealthCallback:
        assert list(other.history.step) == [1, 2, 4]
        return
    assert [record.step for record in other.records] == [1, 2, 4]
    for record in other.records:
        if kind is GradientFlowCallback:
            check_gradients(record, spy.steps[record.step].gradients)
        else:
            check_update(record, spy.steps[record.step])


@pytest.mark.parametrize("twin", [copy.deepcopy, pickled])
def test_copy_of_what_watches_a_trainer(tmp_path, twin):
    """A callback that `watch` attached can be copied, as model-selection libraries copy callbacks."""
    trainer = trainer_with(tmp_path)
    watching = watch(trainer, 2, figures=False)
    other = twin(watching.gradient_flow)
    assert other is not watching.gradient_flow and other.every_n_steps == 2
