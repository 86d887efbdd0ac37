"""Start-up of a recipe: number of processes, threads, output directory."""

import os
import stat

import pytest
import torch

from bert_toolkit import InputError
from bert_toolkit.training.launching import check_world_size, prepare_output_dir, prepare_processes, use_cpu_threads


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="several processes were asked for but the launcher started one"):
        prepare_processes()


def test_processes_that_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched but 1 take part"):
        check_world_size(1)
    check_world_size(2)


@pytest.mark.parametrize(
    ("omp", "processes", "expected"), [("1", "1", 4), (None, "2", 2), ("3", "1", None), ("1", "8", 1)]
)
def test_cores_are_shared_among_processes(monkeypatch, omp, processes, expected):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    use_cpu_threads(None, torch.device("cpu"))
    assert chosen == ([] if expected is None else [expected])


def test_finished_run_is_not_overwritten_without_the_flag(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds a finished run .*--overwrite_output_dir"):
        prepare_output_dir(tmp_path, overwrite=False, resume=False)
    assert (tmp_path / "results.json").exists()


def test_unfinished_run_is_not_overwritten_without_the_flag(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(InputError, match="holds an unfinished run .*--resume_from_checkpoint last"):
        prepare_output_dir(tmp_path, overwrite=False, resume=False)


def test_overwriting_removes_the_earlier_run_and_nothing_else(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "x").write_text("x")
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "my_notes.txt").write_text("mine")
    prepare_output_dir(tmp_path, overwrite=True, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["my_notes.txt"]


def test_resuming_keeps_what_is_there(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    prepare_output_dir(tmp_path, overwrite=False, resume=True)
    assert (tmp_path / "checkpoint-10").exists()


def test_output_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a directory"):
        prepare_output_dir(tmp_path / "file", overwrite=False, resume=False)


def test_output_dir_that_cannot_be_written_is_refused(tmp_path):
    if os.geteuid() == 0:  # root may write everywhere but below a file and in /proc
        with pytest.raises(InputError, match="is not writable"):
            prepare_output_dir("/proc/self/fdinfo/run", overwrite=False, resume=False)
        return
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match="is not writable"):
        prepare_output_dir(tmp_path / "run", overwrite=False, resume=False)


def test_overwrite_and_resume_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="exclude each other"):
        prepare_output_dir(tmp_path, overwrite=True, resume=True)
