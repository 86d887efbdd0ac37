"""Folders of text files by class."""

import gzip
import os

import pytest
from sklearn.datasets import load_files

from bert_toolkit.data.class_folders import read_class_folders
from bert_toolkit.errors import InputError


def build(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_rows_are_those_of_scikit_learn(tmp_path):
    build(tmp_path, {"b/2.txt": "two\nlines", "a/1": "one", "b/10.txt": "ten ü"})
    expected = load_files(tmp_path, encoding="utf-8")
    build(tmp_path, {".git/x": "", "a/.DS_Store": b"\xff", "README": "beside the classes"})
    (table,) = read_class_folders(tmp_path).values()
    assert table.columns["label"] == ["a", "b", "b"]
    texts = {table.place(row): text for row, text in enumerate(table.columns["text"])}
    assert texts == dict(zip(expected.filenames, expected.data, strict=True))
    labels = {table.place(row): label for row, label in enumerate(table.columns["label"])}
    names = [expected.target_names[number] for number in expected.target]
    assert labels == dict(zip(expected.filenames, names, strict=True))


def test_what_systems_and_editors_leave_is_passed_over(tmp_path):
    left = [
        ".DS_Store",
        "._1",
        "a/.DS_Store",
        "a/._1",
        "a/Thumbs.db",
        "b/desktop.ini",
        "b/~$2",
        "__MACOSX/a",
        ".git/x",
    ]
    build(tmp_path, {"a/1": "one", "b/2": "two", ".ipynb_checkpoints/1": "x", **dict.fromkeys(left, b"\0\xff")})
    assert read_class_folders(tmp_path)["train"].columns == {"text": ["one", "two"], "label": ["a", "b"]}


def test_files_may_be_packed_or_in_any_marked_encoding(tmp_path):
    build(tmp_path, {"a/1.txt.gz": gzip.compress("naïve".encode()), "b/2": "日本\r\n語".encode("utf-16")})
    assert read_class_folders(tmp_path)["train"].columns["text"] == ["naïve", "日本\r\n語"]


def test_splits_are_recognized(tmp_path):
    build(tmp_path, {"train/a/1": "1", "train/b/2": "2", "Test/a/3": "3", "dev/b/4": "4", "README": "not a class"})
    tables = read_class_folders(tmp_path)
    assert {split: table.columns["text"] for split, table in tables.items()} == {
        "train": ["1", "2"],
        "test": ["3"],
        "validation": ["4"],
    }


def test_class_named_train_is_a_class(tmp_path):
    build(tmp_path, {"train/1": "1", "plane/2": "2"})
    assert read_class_folders(tmp_path)["train"].columns["label"] == ["plane", "train"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": "text"}, "holds no folders: expected one folder of text files for each class"),
        ({"a/1": "x", "b/.hidden": "x"}, "b holds no files"),
        ({"a/1": "x", "b/c/2": "x"}, "c is no file: the folder of a class may hold text files only"),
        ({"a/1": "x", "b/2": " \n"}, "2 is empty"),
        ({"a/1": "x", "b/2": b"\xff"}, "2:1 is not utf-8"),
        ({"a/1": "x", "b/2": b"\xff\xfe"}, "2 is empty"),
        ({"a/1": "x", "b/2": b"a\nb\x00"}, "2:2 holds a NUL"),
        ({"train/a/1": "x", "unsup/2": "x"}, "holds `train` and beside it 'unsup'"),
        ({"train/a/1": "x", "dev/a/2": "x", "val/a/3": "x"}, "two folders for validation: remove or rename 'val'"),
        ({"a\nb/1": "x"}, r"a name with characters that cannot be shown, 'a\\nb'"),
    ],
)
def test_refused(tmp_path, files, message):
    with pytest.raises(InputError, match=message) as caught:
        read_class_folders(build(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_names_that_are_not_utf_8(tmp_path):
    build(tmp_path, {"a/1": "x"})
    try:
        (tmp_path / os.fsdecode(b"\xff")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match="characters that cannot be shown"):
        read_class_folders(tmp_path)


def test_encoding(tmp_path):
    build(tmp_path, {"a/1": "naïve".encode("latin-1")})
    assert read_class_folders(tmp_path, "latin-1")["train"].columns["text"] == ["naïve"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    build(tmp_path, {"a/1": "x"})
    os.mkfifo(tmp_path / "a" / "2")
    with pytest.raises(InputError, match="2 is no file"):
        read_class_folders(tmp_path)
