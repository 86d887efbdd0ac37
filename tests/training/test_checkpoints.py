"""Only whole checkpoints are resumed, one is always left, and SIGTERM leaves one more."""

import os
import signal
import threading

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from bert_toolkit import InputError
from bert_toolkit.training.checkpoints import (
    CheckpointMarkerCallback,
    checkpoint_to_resume,
    is_whole_checkpoint,
    last_whole_checkpoint,
    resume_callbacks,
)
from bert_toolkit.training.length_grouped_rows import LengthGroupedRows


def make_checkpoint(output_dir, step, marked=True):
    folder = output_dir / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "inner" / "weights").write_bytes(b"12345678")
    if marked:
        state = TrainerState(global_step=step)
        CheckpointMarkerCallback().on_save(TrainingArguments(str(output_dir), use_cpu=True), state, None)
    return folder


def test_marked_checkpoint_is_whole(tmp_path):
    assert is_whole_checkpoint(make_checkpoint(tmp_path, 1))


def test_checkpoint_killed_before_its_marker_is_not_whole(tmp_path):
    assert not is_whole_checkpoint(make_checkpoint(tmp_path, 1, marked=False))


@pytest.mark.parametrize("damage", ["cut", "missing", "marker-cut"])
def test_damaged_checkpoint_is_not_whole(tmp_path, damage):
    folder = make_checkpoint(tmp_path, 1)
    if damage == "cut":
        (folder / "inner" / "weights").write_bytes(b"123")
    elif damage == "missing":
        (folder / "inner" / "weights").unlink()
    else:
        (folder / "checkpoint_files.json").write_text('{"inner/weights": ')
    assert not is_whole_checkpoint(folder)


def test_last_is_the_highest_whole_step(tmp_path):
    for step in (5, 10, 100):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 200, marked=False)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-100"
    assert checkpoint_to_resume(tmp_path, "last") == str(tmp_path / "checkpoint-100")


def test_last_without_any_checkpoint_starts_afresh(tmp_path):
    assert checkpoint_to_resume(tmp_path, "last") is None
    assert checkpoint_to_resume(tmp_path, None) is None


def test_named_folder_must_be_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match="holds no trainer_state.json"):
        checkpoint_to_resume(tmp_path, str(tmp_path))
    assert checkpoint_to_resume(tmp_path, str(make_checkpoint(tmp_path, 3, marked=False))).endswith("checkpoint-3")


def test_named_checkpoint_that_is_cut_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, 3)
    (folder / "inner" / "weights").write_bytes(b"")
    with pytest.raises(InputError, match="not whole"):
        checkpoint_to_resume(tmp_path, str(folder))


class Line(torch.nn.Module):
    """The smallest model that Trainer trains; its dropout needs the random state of the checkpoint."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x, labels=None, length=None):
        values = self.layer(torch.nn.functional.dropout(x, 0.5, self.training))[:, 0]
        return {"loss": (values - labels).square().mean(), "logits": values}


ROWS = [{"x": [float(i % 3), float(i % 5), 1.0, i / 20], "labels": float(i % 4), "length": i % 7} for i in range(20)]


class Watch(TrainerCallback):
    """Calls `act` at an event once the step is reached."""

    def __init__(self, event, step, act):
        self.step, self.act = step, act
        setattr(self, event, self.look)

    def look(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def make_trainer(output_dir, *callbacks, **settings):
    """Five steps an epoch, two epochs."""
    torch.manual_seed(0)
    settings = {"save_steps": 4, "save_total_limit": 2, "num_train_epochs": 2, **settings}
    arguments = TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=4,
        learning_rate=0.1,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    rows = Dataset.from_list(ROWS)
    train = rows
    if arguments.train_sampling_strategy == "sequential":
        train = LengthGroupedRows(rows, rows["length"][:], arguments.train_batch_size)
    callbacks = [*callbacks, *resume_callbacks()]
    return Trainer(Line(), arguments, train_dataset=train, eval_dataset=rows.select(range(6)), callbacks=callbacks)


def course(trainer):
    """All that was logged at each step, without what depends on the clock or on where this call began."""
    timed = ("runtime", "per_second", "train_loss", "total_flos")
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in timed)}
        for entry in trainer.state.log_history
    ]


def checkpoints(output_dir):
    return sorted(path.name for path in output_dir.glob("checkpoint-*"))


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("event", "step", "settings", "saved"),
    [
        ("on_step_begin", 2, {}, 3),
        ("on_step_begin", 4, {"eval_strategy": "epoch", "save_strategy": "epoch"}, 5),
        ("on_step_begin", 4, {"eval_strategy": "epoch", "save_strategy": "no"}, 5),
        ("on_step_begin", 5, {"eval_strategy": "steps", "eval_steps": 3}, 6),
        ("on_evaluate", 3, {"eval_strategy": "steps", "eval_steps": 3}, 4),
        ("on_save", 4, {}, 5),
        ("on_step_begin", 7, {"train_sampling_strategy": "sequential"}, 8),
        ("on_step_begin", 9, {"eval_strategy": "epoch"}, 10),
        ("on_epoch_end", 10, {"eval_strategy": "epoch", "save_strategy": "epoch"}, 10),
    ],
    ids=[
        "step",
        "end-of-epoch",
        "no-saving",
        "evaluation-due",
        "in-evaluation",
        "while-saving",
        "grouped",
        "last",
        "very-last",
    ],
)
def test_sigterm_saves_and_the_resumed_run_equals_an_uninterrupted_one(tmp_path, capsys, event, step, settings, saved):
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        make_trainer(tmp_path / "run", Watch(event, step, terminate), **settings).train()
    signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 143
    last = [line for line in capsys.readouterr().err.splitlines() if line][-1]
    assert last.startswith(f"stopped by SIGTERM: everything up to step {saved} is saved in {tmp_path / 'run'}")
    assert last_whole_checkpoint(tmp_path / "run").name == f"checkpoint-{saved}"

    resumed = make_trainer(tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=checkpoint_to_resume(tmp_path / "run", "last"))
    assert resumed.state.global_step == 10
    ours, theirs = ([entry for entry in course(t) if len(entry) > 2] for t in (resumed, whole))
    assert ours == theirs
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_signal_is_answered_as_before_once_training_has_ended(tmp_path):
    answers = []
    before = signal.signal(signal.SIGTERM, lambda *_: answers.append("mine"))
    try:
        make_trainer(tmp_path, max_steps=1).train()
        terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert answers == ["mine"]


def test_training_in_another_thread_says_that_it_gets_no_signal(tmp_path, caplog):
    thread = threading.Thread(target=make_trainer(tmp_path, max_steps=1).train)
    thread.start()
    thread.join()
    assert "only Python's main thread gets signals" in caplog.text
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-1"


def test_old_checkpoints_go_only_when_the_new_one_is_marked(tmp_path, monkeypatch):
    """A kill between Trainer's saving and the mark must not leave the run without any checkpoint."""
    seen = []
    mark = CheckpointMarkerCallback.on_save

    def look(self, args, state, control, **kwargs):
        seen.append((checkpoints(tmp_path), last_whole_checkpoint(tmp_path)))
        mark(self, args, state, control, **kwargs)

    monkeypatch.setattr(CheckpointMarkerCallback, "on_save", look)
    trainer = make_trainer(tmp_path, save_steps=2, save_total_limit=1)
    trainer.train()
    assert seen[1] == (["checkpoint-2", "checkpoint-4"], tmp_path / "checkpoint-2")
    assert len(seen) == 5 and all(whole is not None for _, whole in seen[1:])
    assert checkpoints(tmp_path) == ["checkpoint-10"]
    assert trainer.args.save_total_limit == 1


def test_best_checkpoint_is_kept_as_trainer_keeps_it(tmp_path):
    settings = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    for limit in (1, 2, 3, None):
        ours = make_trainer(tmp_path / f"ours-{limit}", save_total_limit=limit, **settings)
        theirs = make_trainer(tmp_path / f"theirs-{limit}", save_total_limit=limit, **settings)
        theirs.remove_callback(CheckpointMarkerCallback)
        ours.train()
        theirs.train()
        assert ours.state.best_global_step == theirs.state.best_global_step
        assert checkpoints(tmp_path / f"ours-{limit}") == checkpoints(tmp_path / f"theirs-{limit}")


def test_what_a_kill_left_half_written_goes_first(tmp_path):
    for step in (2, 4):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 6, marked=False)
    arguments = TrainingArguments(str(tmp_path), save_total_limit=2, use_cpu=True)
    callback = CheckpointMarkerCallback()
    callback.on_train_begin(arguments, TrainerState(global_step=4), None)
    make_checkpoint(tmp_path, 5, marked=False)
    callback.on_save(arguments, TrainerState(global_step=5), None)
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-5"]
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-5"


def test_going_back_to_an_earlier_checkpoint_unmarks_the_later_ones(tmp_path):
    for step in (2, 4, 6):
        make_checkpoint(tmp_path, step)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    CheckpointMarkerCallback().on_train_begin(arguments, TrainerState(global_step=2), None)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert checkpoint_to_resume(tmp_path, "last") == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("marker", ["[]", "3", "[" * 3000, "{}", '{"trainer_state.json": "2"}'])
def test_strange_marker_is_no_mark(tmp_path, marker):
    folder = make_checkpoint(tmp_path, 2)
    (folder / "checkpoint_files.json").write_text(marker)
    assert not is_whole_checkpoint(folder)
