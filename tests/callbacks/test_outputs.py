"""What people see: event files, loss records, figures, the record file, and a history without hole or double."""

import sys
import types

import numpy as np
import pytest
import torch
from float64_oracle import Classifier, arguments, rows
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback

from bert_toolkit import GradientFlowCallback, UpdateRatioCallback
from bert_toolkit.callbacks.monitored_run import MonitoredRun
from bert_toolkit.callbacks.monitoring_output import MonitoringOutput
from bert_toolkit.callbacks.safe_outputs import SafeOutputs
from bert_toolkit.monitoring import GradientFlowRecord, UpdateRatioRecord
from bert_toolkit.monitoring.record_file import load_records

BLOCKS = ["embeddings", "layer.0", "layer.1", "head"]


def run(folder, attach=False, resume=False, extra=(), callbacks=None, figures=False, **changes):
    kinds = (GradientFlowCallback, UpdateRatioCallback)
    callbacks = callbacks or [kind(every_n_steps=2, figures=figures) for kind in kinds]
    settings = {"max_steps": 8, "report_to": "tensorboard", "save_strategy": "steps", "save_steps": 4, **changes}
    trainer = Trainer(
        Classifier(), arguments(folder, **settings), train_dataset=rows(), callbacks=[*callbacks, *extra]
    )
    if attach:
        for callback in callbacks:
            callback.attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, *callbacks


def events(folder) -> EventAccumulator:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    reader.Reload()
    return reader


def run_folder(folder):
    (found,) = (folder / "runs").iterdir()
    return found


def with_prefix(scalars, prefix):
    return [tag for tag in scalars if tag.startswith(f"{prefix}/")]


def test_one_sub_run_beside_the_run(tmp_path):
    trainer, flow, update = run(tmp_path)
    assert [path.name for path in run_folder(tmp_path).iterdir() if path.is_dir()] == ["monitoring"]
    reader = events(run_folder(tmp_path) / "monitoring")
    scalars = with_prefix(reader.Tags()["scalars"], "gradient_flow")
    for block in BLOCKS:
        for statistic in ("mean", "max", "std", "zero_share"):
            assert f"gradient_flow/{statistic}/{block}" in scalars
    assert len(scalars) == 4 * len(BLOCKS) + 4
    means = [[e.value for e in reader.Scalars(f"gradient_flow/mean/{block}")] for block in BLOCKS]
    for name, summary in (("largest", np.max), ("median", np.median)):
        written = [event.value for event in reader.Scalars(f"gradient_flow/all/{name}_mean")]
        np.testing.assert_allclose(written, summary(means, axis=0), rtol=1e-6)
    assert sorted(scalars)[0].startswith("gradient_flow/all/"), "trackers sort names: the summary stands first"
    at = [parameter.block == "layer.1" and parameter.role == "matrix" for parameter in flow.parameters.values()]
    written = reader.Scalars("gradient_flow/mean/layer.1")
    assert [event.step for event in written] == [1, 2, 4, 6, 8]
    np.testing.assert_allclose([e.value for e in written], [r.mean[at][0] for r in flow.records], rtol=1e-6)
    scalars = with_prefix(reader.Tags()["scalars"], "update_ratio")
    assert sorted(scalars)[:2] == ["update_ratio/all/largest", "update_ratio/all/median"]
    assert sorted(scalars)[2:] == sorted(f"update_ratio/{block}" for block in BLOCKS)
    largest = [e.value for e in reader.Scalars("update_ratio/all/largest")]
    np.testing.assert_allclose(
        largest, np.max([[e.value for e in reader.Scalars(f"update_ratio/{b}")] for b in BLOCKS], 0), rtol=1e-6
    )
    written = reader.Scalars("update_ratio/layer.1")
    np.testing.assert_allclose([e.value for e in written], [r.ratio[at][0] for r in update.records], rtol=1e-6)
    own = events(run_folder(tmp_path))
    assert "train/loss" in own.Tags()["scalars"] and "train/learning_rate" in own.Tags()["scalars"]
    assert not any("gradient_flow" in tag for tag in own.Tags()["scalars"])
    assert len(list(run_folder(tmp_path).rglob("events.out.tfevents.*"))) == 2, "Trainer's and ours"


def test_figures_at_their_steps_in_tensorboard_and_as_files(tmp_path):
    run(tmp_path, figures=True)
    reader = events(run_folder(tmp_path) / "monitoring")
    for single, over_time in (("gradients", "gradients_over_time"), ("update_ratios", "update_ratios_over_time")):
        images = reader.Images(f"monitoring/{single}")
        assert {1, 8} <= {image.step for image in images} <= {1, 2, 4, 6, 8}
        assert images[0].width > 500 and images[0].height > 300
        assert [i.step for i in reader.Images(f"monitoring/{over_time}")][-1] == 8
        for name in (single, over_time):
            pixels = np.asarray(Image.open(tmp_path / "monitoring" / f"{name}.png"))
            assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10, "an empty picture"


def test_without_tensorboard_in_report_to(tmp_path):
    run(tmp_path, report_to="none")
    assert "gradient_flow/mean/layer.0" in events(run_folder(tmp_path) / "monitoring").Tags()["scalars"]


def test_tensorboard_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    run(tmp_path)
    assert "update_ratio/head" in events(tmp_path / "elsewhere" / "monitoring").Tags()["scalars"]


class Console(TrainerCallback):
    """A reporter that was there before the callbacks were attached."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_attached_scalars_stand_at_their_step_under_their_names(tmp_path, capsys):
    reporter = Console()
    trainer, flow, update = run(tmp_path, attach=True, extra=[reporter], figures=True, logging_steps=3)
    steps = [1, 2, 4, 6, 8]
    reader = events(run_folder(tmp_path))
    for block in BLOCKS:
        assert [event.step for event in reader.Scalars(f"update_ratio/{block}")] == steps
        assert [event.step for event in reader.Scalars(f"gradient_flow/max/{block}")] == steps
    matrix = flow.records[0].names.index("layers.0.weight")
    written = [event.value for event in reader.Scalars("gradient_flow/mean/layer.0")]
    np.testing.assert_allclose(written, [record.mean[matrix] for record in flow.records], rtol=1e-6)
    assert [event.step for event in reader.Scalars("train/loss")] == [3, 6], "Trainer's own log is as it was"
    assert not any(tag.startswith("train/") and "/" in tag[6:] for tag in reader.Tags()["scalars"])
    assert reader.Images("monitoring/gradients") and reader.Images("monitoring/update_ratios_over_time")
    assert [p.name for p in run_folder(tmp_path).iterdir() if p.is_dir()] == [], "no second writer"
    assert "gradient_flow" not in capsys.readouterr().out, "the printed line stays short"
    for name, records in (("gradient_flow/mean/layer.0", flow.records), ("update_ratio/layer.0", update.records)):
        entries = [entry for entry in trainer.state.log_history if name in entry]
        assert [entry["step"] for entry in entries] == steps
        assert all(type(value) in (float, int) for entry in entries for value in entry.values()), "plain numbers only"
        seen = [logs for logs in reporter.seen if name in logs]
        assert [logs[name] for logs in seen] == [entry[name] for entry in entries], "every reporter has them"
        assert len(entries) == len(records)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3, 6]


def test_attached_without_tensorboard(tmp_path):
    trainer, *_ = run(tmp_path, attach=True, figures=True, report_to="none")
    assert any("gradient_flow/mean/head" in entry for entry in trainer.state.log_history)
    reader = events(run_folder(tmp_path) / "monitoring")
    assert "gradient_flow/mean/head" in reader.Tags()["scalars"] and reader.Images("monitoring/gradients")


def test_attach_adds_a_callback_that_is_not_there_yet(tmp_path):
    trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows())
    callback = GradientFlowCallback(every_n_steps=1, figures=False)
    callback.attach(trainer)
    callback.attach(trainer)
    trainer.train()
    assert len(callback.records) == 4
    assert sum(c is callback for c in trainer.callback_handler.callbacks) == 1


def test_scalars_per_parameter(tmp_path):
    callbacks = [
        GradientFlowCallback(every_n_steps=2, per_parameter_scalars=True, figures=False),
        UpdateRatioCallback(every_n_steps=2, per_parameter_scalars=True, figures=False),
    ]
    trainer, flow, update = run(tmp_path, callbacks=callbacks)
    reader = events(run_folder(tmp_path) / "monitoring")
    for i, name in enumerate(flow.records[0].names):
        written = reader.Scalars(f"gradient_flow/max/{name}")
        np.testing.assert_allclose([e.value for e in written], [r.max[i] for r in flow.records], rtol=1e-6)


def test_first_steps_are_sampled_densely(tmp_path):
    assert [step for step in range(1, 151) if GradientFlowCallback().is_sampled(step)] == [
        *(1, 2, 5, 10, 20, 50),
        *(100, 150),
    ]
    assert [step for step in range(1, 26) if UpdateRatioCallback(8).is_sampled(step)] == [1, 2, 5, 8, 16, 24]
    assert [step for step in range(1, 7) if UpdateRatioCallback(1).is_sampled(step)] == [1, 2, 3, 4, 5, 6]
    _, flow, update = run(
        tmp_path, callbacks=[GradientFlowCallback(50, figures=False), UpdateRatioCallback(50, figures=False)]
    )
    assert [r.step for r in flow.records] == [r.step for r in update.records] == [1, 2, 5]


def test_learning_rates_are_recorded(tmp_path):
    callbacks = [UpdateRatioCallback(1, figures=False)]
    _, update = run(tmp_path, callbacks=callbacks, lr_scheduler_type="linear", warmup_steps=4)
    rates = [0.0, 0.0025, 0.005, 0.0075, 0.01, 0.0075, 0.005, 0.0025]
    np.testing.assert_allclose([record.learning_rate for record in update.records], rates, atol=1e-12)
    assert {record.peak_learning_rate for record in update.records} == {0.01}, "known from the first step on"


def test_without_figures_nothing_is_drawn(tmp_path):
    callbacks = [GradientFlowCallback(every_n_steps=1, figures=False)]
    run(tmp_path, callbacks=callbacks)
    assert events(run_folder(tmp_path) / "monitoring").Tags()["images"] == []
    assert sorted(p.name for p in (tmp_path / "monitoring").iterdir()) == ["gradient_flow.npz", "run.json"]


def test_figures_and_scalars_reach_wandb_when_it_is_the_tracker(tmp_path, monkeypatch):
    logged = []
    wandb = types.ModuleType("wandb")
    wandb.run = object()
    wandb.Image = lambda pixels: ("image", pixels.shape)
    wandb.log = logged.append
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    from matplotlib.figure import Figure

    for step, wanted in ((3, True), (4, False)):
        watched = MonitoredRun(Classifier(), None, tmp_path, wandb=wanted)
        output = MonitoringOutput("gradient_flow", GradientFlowRecord, True, SafeOutputs("Gradient flow"), watched)
        output.write_figures(step, {"gradients": Figure})
        output.write_scalars(step, lambda: {"gradient_flow/max/head": 0.5})
        output.close()
    assert [sorted(entry) for entry in logged] == [
        ["monitoring/gradients", "train/global_step"],
        ["gradient_flow/max/head", "train/global_step"],
    ]
    assert logged[0]["train/global_step"] == 3 and logged[0]["monitoring/gradients"][0] == "image"


@pytest.mark.parametrize(
    ("name", "kind"), [("gradient_flow", GradientFlowRecord), ("update_ratio", UpdateRatioRecord)]
)
def test_record_file_holds_what_the_callback_holds(tmp_path, name, kind):
    _, flow, update = run(tmp_path)
    records = flow.records if kind is GradientFlowRecord else update.records
    saved = load_records(tmp_path / "monitoring" / f"{name}.npz", kind)
    assert len(saved) == len(records) == 5
    for one, other in zip(saved, records, strict=True):
        assert_equal(one, other)
    assert not list((tmp_path / "monitoring").glob("*.partial"))


class Crash(TrainerCallback):
    """Ends the process' training without on_train_end, as a crash does."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt


def test_resumed_history_has_no_hole_and_no_double(tmp_path):
    _, *whole = run(tmp_path / "whole", save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "crashed", save_steps=3, extra=[Crash()])
    _, *resumed = run(tmp_path / "crashed", save_steps=3, resume=True)
    for expected, found in zip(whole, resumed, strict=True):
        assert [r.step for r in found.records] == [1, 2, 4, 6, 8]
        for one, other in zip(expected.records, found.records, strict=True):
            assert_equal(one, other)


def test_resume_drops_records_after_the_checkpoint(tmp_path):
    run(tmp_path)  # complete: its file holds records up to step 8
    _, flow, update = run(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert [r.step for r in flow.records] == [r.step for r in update.records] == [1, 2, 4, 6, 8]


def test_resume_without_the_earlier_file_says_so(tmp_path, caplog):
    run(tmp_path)
    (tmp_path / "monitoring" / "gradient_flow.npz").write_bytes(b"cut off")
    (tmp_path / "monitoring" / "update_ratio.npz").unlink()
    _, flow, update = run(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert [r.step for r in flow.records] == [r.step for r in update.records] == [6, 8]
    assert len([r for r in caplog.records if "history starts at step 5" in r.getMessage()]) == 2


def test_second_training_with_the_same_callback_starts_anew(tmp_path):
    trainer, flow, update = run(tmp_path)
    trainer.train()
    assert [r.step for r in flow.records] == [r.step for r in update.records] == [1, 2, 4, 6, 8]


def test_interrupted_training_leaves_no_hooks(tmp_path):
    class Interrupt(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    flow = GradientFlowCallback(every_n_steps=1, figures=False)
    trainer = Trainer(Classifier(), arguments(tmp_path), train_dataset=rows(), callbacks=[Interrupt(), flow])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Interrupt)
    trainer.train()
    assert not any(p._post_accumulate_grad_hooks for p in trainer.model.parameters())


def test_findings_of_training_health_are_marked(tmp_path):
    class Health(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            file = tmp_path / "monitoring" / "training_health.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text(
                '{"event": "finding", "step": 4, "parameters": ["layers.0.weight"]}\n{"event": "verdict"}\n'
            )

    _, flow, _ = run(tmp_path, extra=[Health()])
    assert flow.finding_markers() == [(4, "layers.0.weight")]
    _, flow, _ = run(tmp_path)
    assert flow.finding_markers() == [], "a file of an earlier run says nothing about this one"


def assert_equal(one, other) -> None:
    for field, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(other, field), err_msg=field)
        else:
            assert value == getattr(other, field) or (
                value != value and getattr(other, field) != getattr(other, field)
            )


def test_torch_generator_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    callback = UpdateRatioCallback(every_n_steps=1, mode="sampled", figures=False)
    from transformers import TrainerState

    args, state, model = arguments(tmp_path), TrainerState(max_steps=1), Classifier(width=80)
    for event in ("on_train_begin", "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step"):
        getattr(callback, event)(args, state, None, model=model)
    state.global_step = 1
    callback.on_step_end(args, state, None, model=model)
    assert len(callback.records) == 1
    torch.testing.assert_close(torch.rand(3), expected)
