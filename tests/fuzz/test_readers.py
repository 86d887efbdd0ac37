"""Every reader takes a damaged file or refuses it in one line: no other error, no hang, nothing left behind.

Inputs are numbered. What fails names its number and the command that runs it alone; `-m slow` runs many more.
"""

import os
import shutil
import signal
from pathlib import Path
from random import Random

import pytest
from reader_targets import TARGETS

from bert_toolkit.errors import InputError

CPU_SECONDS = 5  # of the process, so that a loaded machine does not look like a hang


def outcome(name: str, number: int, folder: Path) -> str:
    """`accepted` or `refused`; anything else is an AssertionError with all that is needed to see it again."""
    target = TARGETS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target.write(folder, Random(f"{name}/{number}"))
    before = contents_of(folder)
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        target.read(folder)
        result = "accepted"
    except InputError as error:
        result = "refused"
        assert len(str(error).splitlines()) == 1, f"more than a line: {error!r}"
        assert len(str(error)) < 3000, "an error of one line is not a page"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert contents_of(folder) == before, "a reader leaves nothing behind and changes nothing"
    return result


def contents_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def cpu_limit():
    def stop(signal_number, frame):
        raise AssertionError(f"no answer after {CPU_SECONDS} seconds of CPU time")

    previous = signal.signal(signal.SIGPROF, stop)
    yield
    signal.signal(signal.SIGPROF, previous)


def run(name: str, numbers: range, tmp_path: Path) -> None:
    results = {"accepted": 0, "refused": 0}
    for number in numbers:
        try:
            results[outcome(name, number, tmp_path / "input")] += 1
        except Exception as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\n"
                f"see it again: FUZZ_INPUT={name}:{number} python -m pytest tests/fuzz/test_readers.py -k one_input"
            ) from error
    print(f"{name}: {results}")
    assert min(results.values()) > 0.02 * len(numbers), f"the damage is too light or too heavy: {results}"


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_accepted_or_refused(name, tmp_path, cpu_limit):
    run(name, range(TARGETS[name].count), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_much_more_damaged_input_is_accepted_or_refused(name, tmp_path, cpu_limit):
    count = TARGETS[name].count
    run(name, range(count, 20 * count), tmp_path)


@pytest.mark.skipif("FUZZ_INPUT" not in os.environ, reason="set FUZZ_INPUT=reader:number to see one input again")
def test_one_input(tmp_path, cpu_limit):
    name, _, number = os.environ["FUZZ_INPUT"].rpartition(":")
    outcome(name, int(number), tmp_path / "input")


def test_an_ordinary_run_has_ten_thousand_inputs():
    assert sum(target.count for target in TARGETS.values()) >= 10_000


def test_the_same_number_gives_the_same_input(tmp_path):
    for name, target in TARGETS.items():
        seen = []
        for folder in (tmp_path / f"{name}-1", tmp_path / f"{name}-2"):
            folder.mkdir()
            target.write(folder, Random(f"{name}/7"))
            seen.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        assert seen[0] == seen[1], name
