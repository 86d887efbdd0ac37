"""`watch(trainer)` and `callbacks=[...]` do the same and write the same."""

import numpy as np
import pytest
from float64_oracle import Classifier, arguments, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer

import bert_toolkit
from bert_toolkit import GradientFlowCallback, InputError, TrainingHealthCallback, UpdateRatioCallback, watch


def run(folder, how, **changes):
    settings = {"max_steps": 12, "report_to": "tensorboard", "save_strategy": "steps", "save_steps": 6, **changes}
    callbacks = []
    if how == "callbacks":
        callbacks = [GradientFlowCallback(5), UpdateRatioCallback(5), TrainingHealthCallback()]
    trainer = Trainer(Classifier(), arguments(folder, **settings), train_dataset=rows(), callbacks=callbacks)
    watching = watch(trainer, every_n_steps=5) if how == "watch" else None
    trainer.train()
    if watching is not None:
        callbacks = [watching.gradient_flow, watching.update_ratios, watching.health]
    return trainer, callbacks


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for file in sorted((folder / "runs").rglob("events.out.tfevents.*")):
        reader = EventAccumulator(str(file), size_guidance={"scalars": 0})
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            if not tag.startswith("train/train_"):  # seconds and speed
                found[tag] = [(event.step, event.value) for event in reader.Scalars(tag)]
    return found


def test_same_scalars_at_the_same_steps_and_same_files(tmp_path):
    _, by_hand = run(tmp_path / "callbacks", "callbacks")
    trainer, watched = run(tmp_path / "watch", "watch")
    one, other = scalars(tmp_path / "callbacks"), scalars(tmp_path / "watch")
    assert one == other
    assert [step for step, _ in one["update_ratio/head"]] == [1, 2, 5, 10]
    names = [sorted(path.name for path in (tmp_path / way / "monitoring").iterdir()) for way in ("callbacks", "watch")]
    assert names[0] == names[1]
    assert {"gradient_flow.npz", "update_ratio.npz", "training_health.jsonl", "gradients.png"} < set(names[0])
    for name in ("gradient_flow.npz", "update_ratio.npz", "training_health.npz"):
        files = [np.load(tmp_path / way / "monitoring" / name) for way in ("callbacks", "watch")]
        assert files[0].files == files[1].files
        for array in files[0].files:
            np.testing.assert_array_equal(files[0][array], files[1][array], err_msg=f"{name} {array}")
    assert by_hand[2].verdict == watched[2].verdict


def test_one_tensorboard_run(tmp_path):
    run(tmp_path, "watch")
    assert len(list((tmp_path / "runs").rglob("events.out.tfevents.*"))) == 1


def test_weights_are_bit_equal_to_those_of_a_training_that_nobody_watches(tmp_path):
    trainers = [run(tmp_path / how, how)[0] for how in ("nobody", "watch", "callbacks")]
    weights = [dict(trainer.model.named_parameters()) for trainer in trainers]
    for name, values in weights[0].items():
        assert all((values == other[name]).all() for other in weights[1:]), name


def test_callbacks_that_are_there_are_taken(tmp_path):
    flow = GradientFlowCallback(3, figures=False)
    trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows(), callbacks=[flow])
    watching = watch(trainer)
    assert watching.gradient_flow is flow and watch(trainer).health is watching.health
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(GradientFlowCallback) == kinds.count(UpdateRatioCallback) == 1
    assert kinds.count(TrainingHealthCallback) == 1


def test_without_health_and_with_health_of_ones_own(tmp_path):
    trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows())
    assert watch(trainer, health=False).health is None
    assert not any(isinstance(c, TrainingHealthCallback) for c in trainer.callback_handler.callbacks)
    own = TrainingHealthCallback(every_n_steps=3, on_finding="stop")
    assert watch(trainer, health=own).health is own


def test_health_that_the_trainer_has_already(tmp_path):
    own = TrainingHealthCallback(3)
    trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows(), callbacks=[own])
    for health in (False, True, own):
        assert watch(trainer, health=health).health is own
    before = list(trainer.callback_handler.callbacks)
    with pytest.raises(InputError, match="health must be True, False or the .* got a second one, .*: leave one"):
        watch(trainer, health=TrainingHealthCallback(3))
    assert trainer.callback_handler.callbacks == before
    assert sum(isinstance(callback, TrainingHealthCallback) for callback in before) == 1


def test_zero_steps_are_health_alone(tmp_path):
    trainer = Trainer(Classifier(), arguments(tmp_path, max_steps=4), train_dataset=rows())
    watching = watch(trainer, every_n_steps=0)
    assert watching.gradient_flow is watching.update_ratios is None
    trainer.train()
    assert watching.health.history.step.tolist() == [1]
    files = {path.name for path in (tmp_path / "monitoring").iterdir()}
    assert files == {"run.json", "training_health.jsonl", "training_health.npz"}
    flow = GradientFlowCallback(3, figures=False)
    trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows(), callbacks=[flow])
    watching = watch(trainer, every_n_steps=0, health=False)
    assert watching.gradient_flow is flow and watching.update_ratios is watching.health is None


@pytest.mark.parametrize("settings", [{"every_n_steps": -1}, {"mode": "fast"}])
def test_wrong_arguments_change_nothing(tmp_path, settings):
    trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows())
    before = list(trainer.callback_handler.callbacks)
    with pytest.raises(InputError):
        watch(trainer, **settings)
    assert trainer.callback_handler.callbacks == before


def test_it_is_a_public_name():
    assert bert_toolkit.watch is watch and "watch" in bert_toolkit.__all__
