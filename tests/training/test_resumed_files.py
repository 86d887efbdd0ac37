"""A checkpoint that cannot be resumed is refused in one line, and nothing of it or of the others is changed."""

import hashlib
import re
import shutil
import zipfile

import pytest
import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bert_toolkit import InputError
from bert_toolkit.training.checkpoints import resume_callbacks
from bert_toolkit.training.trainer_run import train_and_save

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
ROWS = [{"input_ids": torch.tensor([2, 5 + i % 20, 3]), "labels": i % 2} for i in range(32)]


def trainer(output_dir, resume=None, model=None, **settings):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(output_dir),
        resume_from_checkpoint=resume,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        **{"save_steps": 3, **settings},
    )
    model = model or BertForSequenceClassification(BertConfig(**SIZES))
    return Trainer(model, arguments, train_dataset=ROWS, callbacks=resume_callbacks())


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("whole") / "run"
    train_and_save(trainer(output_dir))
    return output_dir


@pytest.fixture
def run(whole_run, tmp_path):
    return shutil.copytree(whole_run, tmp_path / "run")


def contents(output_dir):
    files = (path for path in output_dir.glob("checkpoint-*/*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path):
    """Changes one byte and not the size, as a bad disk does; the marker of the checkpoint does not see it."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    data[data.index(content) + len(content) // 2] ^= 0xFF
    path.write_bytes(data)


def test_undamaged_checkpoint_is_resumed(run):
    resumed = trainer(run, str(run / "checkpoint-6"))
    train_and_save(resumed)
    assert resumed.state.global_step == 8


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"])
@pytest.mark.parametrize("how", ["one byte", "cut", "empty", "text"])
def test_damaged_archives(run, name, how):
    path = run / "checkpoint-6" / name
    if name == "scaler.pt":  # as Trainer writes it in fp16, which needs a GPU
        torch.save(torch.amp.GradScaler("cpu").state_dict(), path)
    if how == "one byte":
        flip(path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-30], "empty": b"", "text": b"\x80\x04K\x01."}[how])
        (run / "checkpoint-6" / "checkpoint_files.json").unlink()  # sizes would tell already
    before = contents(run)
    with pytest.raises(InputError, match=f"{name} is damaged.*pass an earlier one") as caught:
        train_and_save(trainer(run, str(run / "checkpoint-6")))
    assert "\n" not in str(caught.value)
    assert contents(run) == before
    train_and_save(trainer(run, str(run / "checkpoint-3")))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"global_step": 6, "no_such_field": 1}', "\x80\x81"])
def test_damaged_state(run, text):
    path = run / "checkpoint-6" / "trainer_state.json"
    path.write_text(text, encoding="latin-1")
    (run / "checkpoint-6" / "checkpoint_files.json").unlink()
    before = contents(run)
    with pytest.raises(InputError, match=r"trainer_state.json is damaged"):
        train_and_save(trainer(run, str(run / "checkpoint-6")))
    assert contents(run) == before


def test_damaged_weights(run):
    path = run / "checkpoint-6" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (run / "checkpoint-6" / "checkpoint_files.json").unlink()
    with pytest.raises(InputError, match="weights in .* are damaged"):
        train_and_save(trainer(run, str(run / "checkpoint-6")))


def test_last_passes_over_what_is_damaged_and_says_so(run, capsys):
    flip(run / "checkpoint-8" / "optimizer.pt")
    (run / "checkpoint-6" / "model.safetensors").write_bytes(b"cut")
    resumed = trainer(run, "last")
    began = []
    resumed.add_callback(Began(began))
    train_and_save(resumed)
    assert began == [3] and resumed.state.global_step == 8
    first, second = capsys.readouterr().err.splitlines()[:2]
    goes_on = f"; the training goes on from {run / 'checkpoint-3'}"
    assert re.fullmatch(rf"warning: .*checkpoint-8/optimizer.pt is damaged: .*{re.escape(goes_on)}", first)
    assert second == f"warning: {run / 'checkpoint-6'} is damaged: files that it lists are missing or cut{goes_on}"


def test_last_where_all_are_damaged_is_refused_and_changes_nothing(run):
    for folder in run.glob("checkpoint-*"):
        (folder / "trainer_state.json").write_text("{")
    before = contents(run)
    with pytest.raises(InputError, match="no checkpoint in .* is whole .*checkpoint-3 is damaged.*begin anew with"):
        train_and_save(trainer(run, "last"))
    assert contents(run) == before


def test_last_where_none_was_finished_begins_anew_and_says_so(run, capsys):
    for folder in run.glob("checkpoint-*"):
        (folder / "checkpoint_files.json").unlink()
    train_and_save(trainer(run, "last", max_steps=1))
    assert "checkpoint-8 was never finished; the training begins anew" in capsys.readouterr().err


class Began(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


OTHERS = {
    "wider": (
        BertForSequenceClassification,
        {"hidden_size": 32},
        "embeddings.* has the shape .*16.* in this one .*32",
    ),
    "more classes": (
        BertForSequenceClassification,
        {"num_labels": 5},
        r"classifier.bias has the shape \[2\], in this one \[5\]",
    ),
    "deeper": (BertForSequenceClassification, {"num_hidden_layers": 3}, "it lacks bert.encoder.layer.2"),
    "shallower": (
        BertForSequenceClassification,
        {"num_hidden_layers": 1},
        "layer.1.*, which it has, is not in this one",
    ),
    "another head": (BertForPreTraining, {}, "classifier.*, which it has, is not in this one"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_checkpoint_of_another_model(run, other):
    kind, changes, message = OTHERS[other]
    before = contents(run)
    with pytest.raises(InputError, match=f"holds another model: .*{message}"):
        train_and_save(trainer(run, "last", kind(BertConfig(**{**SIZES, **changes}))))
    assert contents(run) == before


def test_tied_weights_that_are_saved_once_are_not_missing(tmp_path):
    def pre_training(resume=None):
        rows = [{**row, "labels": row["input_ids"], "next_sentence_label": 0} for row in ROWS]
        made = trainer(tmp_path, resume, BertForPreTraining(BertConfig(**SIZES)))
        made.train_dataset = rows
        return made

    train_and_save(pre_training())
    train_and_save(pre_training(str(tmp_path / "checkpoint-3")))


def test_optimizer_of_another_kind_is_one_line(run):
    with pytest.raises(InputError, match="cannot go on from .*checkpoint-8: .*resume with the flags"):
        resumed = trainer(run, "last", weight_decay=0.1)
        resumed.create_optimizer()
        resumed.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
        train_and_save(resumed)


def test_errors_of_the_training_itself_stay_as_they_are(run):
    resumed = trainer(run, str(run / "checkpoint-3"))
    resumed.compute_loss = lambda *args, **kwargs: torch.zeros(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="scalar"):
        train_and_save(resumed)
