"""Start-up of a recipe: flags, files of settings, number of processes, output directory."""

import json
import os
import stat
from dataclasses import MISSING, dataclass, field, fields

import pytest
import torch
from transformers import TrainingArguments

from bert_toolkit import InputError
from bert_toolkit.training.launching import (
    check_world_size,
    claim_output_dir,
    parse_arguments,
    prepare_processes,
    use_cpu_threads,
)


@dataclass
class RecipeArguments:
    max_length: int = field(default=64, metadata={"help": "length"})
    data_dir: str | None = None
    words: list[str] | None = None


DEFAULTS = {"output_dir": "runs/x", "learning_rate": None, "per_device_train_batch_size": 32}


def parse(*arguments):
    return parse_arguments([RecipeArguments, TrainingArguments], DEFAULTS, arguments)


def test_defaults_of_the_recipe_apply():
    recipe, arguments = parse()
    assert (recipe.max_length, arguments.learning_rate, arguments.per_device_train_batch_size) == (64, None, 32)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_command_line_beats_settings_file_beats_defaults(tmp_path, suffix):
    path = tmp_path / f"settings{suffix}"
    # 2e-5 without a dot is a string to YAML
    text = {
        ".yaml": "learning_rate: 2e-5\nmax_length: 32\nper_device_train_batch_size: 8\n",
        ".json": '{"learning_rate": 2e-5, "max_length": 32, "per_device_train_batch_size": 8}',
    }[suffix]
    path.write_text(text)
    recipe, arguments = parse(str(path), "--max_length", "16")
    assert (recipe.max_length, arguments.learning_rate, arguments.per_device_train_batch_size) == (16, 2e-5, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_lenght", "3"], r"unknown argument `--max_lenght`; did you mean `--max_length`\?"),
        (["--max_length", "many"], r"argument --max_length.*invalid int value: 'many'"),
        (["surplus"], r"unknown argument `surplus`"),
        (["absent.yaml"], r"cannot read the settings file absent.yaml: No such file"),
        (["--lr_scheduler_type", "zigzag"], r"lr_scheduler_type.*zigzag"),
    ],
    ids=["misspelt", "not-a-number", "surplus", "no-file", "refused-value"],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_lenght: 3", "unknown setting `max_lenght`; did you mean `max_length`"),
        ("- 1\n- 2", "must hold `flag: value` pairs, got list"),
        ("a: [", "not valid YAML or JSON"),
    ],
)
def test_bad_settings_files_are_one_line(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        parse(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_length: [1, 2]", "setting `max_length` must be int, got a list"),
        ("max_length: 64.0", "setting `max_length` must be int, got float"),
        ("max_length: true", "setting `max_length` must be int, got bool"),
        ("max_length: null", "setting `max_length` must be int, got NoneType"),
        ("max_length: 2024-01-01", "setting `max_length` must be int, got date"),
        ("max_length: many", "argument --max_length.*invalid int value: 'many'"),
        ("1: 2", "unknown setting `1`"),
        ("? [a]\n: 1", "not valid YAML or JSON"),
        ("[" * 3000, "not valid YAML or JSON"),
        (r'"max\Llength": 1', "unknown setting `max length`"),  # a line separator
    ],
    ids=["list", "float", "bool", "none", "date", "word", "key", "list-as-key", "deep", "line-separator"],
)
def test_settings_of_the_wrong_type_are_one_line(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        parse(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_settings_may_be_what_the_command_line_cannot_say(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "learning_rate: null\ndata_dir: null\nwords: one\nreport_to: [tensorboard, wandb]\nwarmup_steps: 10\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    recipe, arguments = parse(str(path))
    assert (arguments.learning_rate, recipe.data_dir, recipe.words) == (None, None, ["one"])
    assert arguments.report_to == ["tensorboard", "wandb"]
    assert (arguments.warmup_steps, arguments.lr_scheduler_kwargs) == (10, {"num_cycles": 2})


def test_every_default_of_the_trainer_is_a_setting_of_its_type(tmp_path):
    """What the check of types takes for wrong must not be what TrainingArguments itself declares."""
    defaults = {f.name: f.default for f in fields(TrainingArguments) if f.init and f.default is not MISSING}
    plain = {name: value for name, value in defaults.items() if type(value) in (int, float, bool, type(None))}
    assert len(plain) > 60
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(plain))
    _, arguments = parse(str(path))
    assert arguments.seed == defaults["seed"]


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


def test_threads_must_be_positive():
    with pytest.raises(InputError, match="`cpu_threads` must be at least 1, got 0"):
        use_cpu_threads(0, torch.device("cpu"))


def test_finished_run_is_not_overwritten_without_the_flag(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds a finished run .*--overwrite_output_dir"):
        claim_output_dir(tmp_path, overwrite=False, resume=False)
    assert (tmp_path / "results.json").exists()


def test_unfinished_run_is_not_overwritten_without_the_flag(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(InputError, match="holds an unfinished run .*--resume_from_checkpoint last"):
        claim_output_dir(tmp_path, overwrite=False, resume=False)


def test_overwriting_removes_the_earlier_run_and_nothing_else(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "x").write_text("x")
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "my_notes.txt").write_text("mine")
    claim_output_dir(tmp_path, overwrite=True, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["my_notes.txt"]


def test_resuming_keeps_what_is_there(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    claim_output_dir(tmp_path, overwrite=False, resume=True)
    assert (tmp_path / "checkpoint-10").exists()


def test_output_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a directory"):
        claim_output_dir(tmp_path / "file", overwrite=False, resume=False)


def test_output_dir_that_cannot_be_written_is_refused(tmp_path):
    if os.geteuid() == 0:  # root may write everywhere but below a file and in /proc
        with pytest.raises(InputError, match="is not writable"):
            claim_output_dir("/proc/self/fdinfo/run", overwrite=False, resume=False)
        return
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match="is not writable"):
        claim_output_dir(tmp_path / "run", overwrite=False, resume=False)


def test_overwrite_and_resume_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="exclude each other"):
        claim_output_dir(tmp_path, overwrite=True, resume=True)
