"""What a recipe prints survives terminals that lack its characters or are narrow."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "classify.py"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        pytest.param({"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow),
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "20"},
    ],
    ids=["ascii", "cp1252", "C locale", "C locale without UTF-8", "narrow"],
)
def test_class_names_of_any_script(environment, tmp_path, tiny_bert_dir):
    folder = tmp_path / "accented é and space"
    folder.mkdir()
    # where names of files are not UTF-8, a recipe refuses to write into a folder whose name is
    output_dir = tmp_path / "run" if "PYTHONUTF8" in environment else folder / "run"
    names = ("好", "плохо")
    lines = [f"the dog sleeps today\t{names[i % 2]}" for i in range(20)]
    (folder / "data.tsv").write_text("text\tlabel\n" + "\n".join(lines), encoding="utf-8")
    flags = {
        "train_data": folder / "data.tsv", "model_name_or_path": tiny_bert_dir, "output_dir": output_dir,
        "max_steps": 2, "cpu_threads": 1, "max_length": 16, "monitor_every": 1,
    }  # fmt: skip
    command = [
        sys.executable,
        str(RECIPE),
        *(str(word) for name, value in flags.items() for word in (f"--{name}", value)),
    ]
    process = subprocess.run(
        command, capture_output=True, env={**os.environ, **environment, "ACCELERATE_USE_CPU": "true"}
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert b"Test scores by class" in b" ".join(process.stdout.split())
    assert names[1] in (output_dir / "predictions.tsv").read_text(encoding="utf-8")
    if environment.get("PYTHONIOENCODING") == "ascii":
        assert b"?????" in process.stdout


def test_file_whose_name_is_no_text(tmp_path, tiny_bert_dir):
    """Names of files are bytes: this one is in latin-1."""
    data = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tsv")
    Path(data).write_text("text\tlabel\n" + "the dog sleeps\ta\na cat runs\tb\n" * 10)
    command = [sys.executable, str(RECIPE), "--train_data", data, "--model_name_or_path", str(tiny_bert_dir)]
    few = ["--max_steps", "2", "--cpu_threads", "1", "--max_length", "16", "--output_dir"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    process = subprocess.run([*command, *few, str(tmp_path / "run")], capture_output=True, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    assert data in json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["data"]
    assert "caf\\udce9.tsv:" in (tmp_path / "run" / "predictions.tsv").read_text(encoding="utf-8")
    process = subprocess.run([*command, *few, data.removesuffix(".tsv")], capture_output=True, env=environment)
    assert process.returncode == 2
    assert b"error: `output_dir` must be text in UTF-8" in process.stderr


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPE.parent.glob("*.py")))
def test_help_in_a_narrow_terminal_of_the_c_locale(recipe):
    command = [sys.executable, str(RECIPE.parent / f"{recipe}.py"), "--help"]
    process = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C", "COLUMNS": "60"})
    assert process.returncode == 0, process.stderr[-3000:]
    lines = process.stdout.decode().splitlines()
    assert lines[0] == f"usage: {recipe}.py [settings.yaml] [--flag value ...]" and len(lines) > 40
    # but for commands and files, which are shown whole, and names that are longer than a line
    too_long = [line for line in lines[1:] if len(line) > 60 and " " in line.strip()]
    assert all(re.match(r" {4}\S", line) for line in too_long), too_long
    assert process.stderr.decode().count("\n") <= 1, "a library may have a word to say"
