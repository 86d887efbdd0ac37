"""Whatever an input holds, its error is one line that a terminal shows as it is."""

import pickle

import pytest

from bert_toolkit.errors import LONGEST_MESSAGE, InputError, reason_of


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("naïve 日本 'a  b'", "naïve 日本 'a  b'"),
        ("first\n  second\r\n\n\tthird\n", "first second third"),
        ("a\u0085b\u2028c\x0bd\x1ce", "a b c d e"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("half \ud800 a character", "half \\ud800 a character"),
    ],
    ids=["kept", "lines", "rare-line-ends", "control-characters", "surrogate"],
)
def test_message_is_one_line_that_can_be_printed(message, shown):
    assert str(InputError(message)) == shown
    assert str(InputError(message)).isprintable()


def test_message_of_any_length_keeps_beginning_and_end():
    message = str(InputError(f"bad.csv: {'x' * 100_000}: remove it"))
    assert len(message) == LONGEST_MESSAGE
    assert message.startswith("bad.csv: xxx") and message.endswith("xxx: remove it")


def test_error_passes_between_processes():
    error = pickle.loads(pickle.dumps(InputError("a\nb")))
    assert type(error) is InputError and str(error) == "a b"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "/a/b"), "No space left on device"),
        (OSError("Not a gzipped file"), "Not a gzipped file"),
        (ValueError("\n first line \nsecond"), "first line"),
        (KeyError("name"), "'name'"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("\n"), "RuntimeError"),
    ],
    ids=["of-the-system", "own-text", "lines", "key", "empty", "blank"],
)
def test_reason_is_one_line(error, reason):
    assert reason_of(error) == reason
