"""Only whole checkpoints are resumed."""

from types import SimpleNamespace

import pytest

from bert_toolkit import InputError
from bert_toolkit.checkpoints import (
    CheckpointMarkerCallback,
    checkpoint_to_resume,
    is_whole_checkpoint,
    last_whole_checkpoint,
)


def make_checkpoint(output_dir, step, marked=True):
    folder = output_dir / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "inner" / "weights").write_bytes(b"12345678")
    if marked:
        arguments = SimpleNamespace(output_dir=str(output_dir))
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        CheckpointMarkerCallback().on_save(arguments, state, None)
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
