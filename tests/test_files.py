"""A file is replaced whole or stays as it was."""

import errno
from pathlib import Path

import pytest

from bert_toolkit.files import replaced_at_once


def test_file_of_before_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with replaced_at_once(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "before"
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_file_of_before_stays_where_writing_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(type(error)), replaced_at_once(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_move_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError), replaced_at_once(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_nothing_was_written(tmp_path):
    with pytest.raises(FileNotFoundError), replaced_at_once(tmp_path / "a.txt"):
        pass


def test_folder_is_made_and_the_mode_is_that_of_any_new_file(tmp_path):
    with replaced_at_once(tmp_path / "deep" / "er" / "a.txt") as partial:
        partial.write_text("x")
    Path(tmp_path / "plain").touch()
    assert (tmp_path / "deep" / "er" / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
