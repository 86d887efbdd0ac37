"""Every command that a page shows runs in a copy of the repository, with flags after it that make it small.

The commands of a page follow one another in one folder, as a reader would type them, so that what needs the output of
an earlier one gets it. docs/classify.md needs no flags and runs in recipes/test_classify_page.py.
"""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_documentation import PAGES, ROOT

FINE_TUNING = "--max_train_samples 64 --num_train_epochs 1 --cpu_threads 1"
PAIRS = "--max_steps 2 --eval_steps 1 --max_length 64 --held_out_pairs 32 --processes 1 --cpu_threads 1"
PAIRS += " --cache_dir corpora"
COLA = "--threads 1 --precisions fp32"
# A command that holds the text on the left is run with what stands on the right after it
SMALL = {
    "printf": "",
    "bert-toolkit report runs/": "",
    "recipes/classify.py": FINE_TUNING,
    "recipes/cola.py": FINE_TUNING,
    "recipes/newsgroups.py": FINE_TUNING,
    "recipes/pretrain.py": PAIRS,
    "recipes/question_answering.py": FINE_TUNING,
    "recipes/token_classification.py": FINE_TUNING,
    "tensorboard --logdir": "--inspect",  # tells what it would show, and ends
    "make style quality test": "PYTEST_ADDOPTS='-n0 tests/test_errors.py'",
    "tools/sample/grammar.py": "",
    "tools/training_health_page.py": "",
    "benchmarks/cola_finetuning.py speed": f"{COLA} --rows 32 --rounds 1",
    "benchmarks/cola_finetuning.py select": f"{COLA} --epochs 1 --learning_rates 1e-4",
    "benchmarks/cola_finetuning.py quality": f"{COLA} --epochs 1 --seeds 1",
    "benchmarks/collator_throughput.py": "--rounds 1 --seconds 0.05 --batch_sizes 32",
    "benchmarks/pretraining_data.py": (
        "--megabytes 1 2 --processes 1 --tokenized_megabytes 1 --workers 0 1 --seconds 0.2 --rounds 1"
    ),
    "benchmarks.fault_injection.healthy_programs": "--only three_steps --steps 2",
    "benchmarks.fault_injection run": "--only minilm/missing_from_optimizer --seeds 0",
    "benchmarks/kill_and_resume.py": "--recipes cola --kills 1",
    "benchmarks/monitoring_overhead.py": "--size minilm --batch_size 1 --length 8 --rounds 1",
    "benchmarks/monitoring_scale.py": "--sizes 22 --rounds 1",
    "benchmarks/pretraining_step.py": "--sizes 2/128/2/16 --steps 1 --rounds 1 --threads 1",
    "benchmarks/sample_baselines.py": "--seeds",  # none: the scores of the simple models only
}
# A command that holds the text on the left is not run here, for the reason on the right
NOT_RUN = {
    "bert_toolkit report RUN": "RUN stands for the folder of a run; tests/run_page runs it",
    "bert_toolkit.health RUN": "RUN stands for the folder of a run; tests/health/test_command.py runs it",
    "--bf16 --dropout 0 --compile": "needs a CUDA device; tests/model has what of it runs on a CPU",
    "silent_errors run": "minutes of training; tests/benchmarks/test_silent_errors.py runs two of its errors",
    "fault_injection.deform run": "hours of training; tests/benchmarks/test_deform.py runs two of its mutants",
    "fault_injection.cure run": "an hour of training; tests/benchmarks/test_cure.py follows the advice for one fault",
    "fault_injection pictures": "draws from the histories of every fault and control: ten minutes of training",
}
SHOWN = re.compile(r"^```(\w*)\n(.*?)^```|`((?:[^`\n]|\n(?!\n))+)`", re.MULTILINE | re.DOTALL)
PROGRAM = r"(accelerate|python3?|torchrun|tensorboard|make|pytest|pip|bash|\.venv/bin/\w+) "
# In a sentence a command is what names a script, a module or a folder of logs; captions leave the launcher out
IN_A_SENTENCE = re.compile(r"(accelerate|python3?|torchrun|tensorboard) .*(\.py\b|-m \w|--logdir)|recipes/\w+\.py --")


def shown(page: Path) -> tuple[list[str], list[str]]:
    """The commands of a page in their order, and the blocks that show what a program prints."""
    text, commands, printed = page.read_text(encoding="utf-8"), [], []
    found = SHOWN.findall(text)
    assert text.count("```") == 2 * sum(bool(block) for _, block, _ in found), (
        f"{page.name}: a block is not recognized"
    )
    for language, block, span in found:
        if block and (language in ("bash", "sh") or not language and re.match(PROGRAM, block)):
            lines = block.replace("\\\n", "").splitlines()
            commands += [line.split(" # ")[0].strip() for line in lines if line and not line.startswith("#")]
        elif block:
            assert language in ("", "python"), f"{page.name}: nothing runs blocks in {language}"
            printed += [block] if not language else []
        elif IN_A_SENTENCE.match(span):
            line = " ".join(span.split())
            commands.append(f"accelerate launch {line}" if line.startswith("recipes/") else line)
    return list(dict.fromkeys(commands)), printed


def sets_up(command: str) -> bool:
    return command.startswith(("python3 -m venv", ".venv/bin/", "pip install -c"))


def runnable() -> dict[str, list[str]]:
    """What is run for each page; a benchmark needs nothing of its page, so that it runs for the first one only."""
    of_pages: dict[str, list[str]] = {}
    for name, (commands, _) in SHOWN_ON.items():
        earlier = {command for others in of_pages.values() for command in others if "benchmarks/" in command}
        left_out = [command for command in commands if sets_up(command) or any(key in command for key in NOT_RUN)]
        of_pages[name] = [command for command in commands if command not in (*earlier, *left_out)]
    return of_pages


SHOWN_ON = {page.relative_to(ROOT).as_posix(): shown(page) for page in PAGES if page.name != "classify.md"}
RUNNABLE = runnable()
OF_README = set(SHOWN_ON["README.md"][1])  # test_documentation.py compares these
TOLD_BY_THE_NOTEBOOK = "docs/first-hundred-steps.md"


def test_every_command_is_run_or_has_a_reason():
    commands = {command for commands, _ in SHOWN_ON.values() for command in commands}
    assert len(commands) >= 30
    for command in commands:
        found = [key for key in NOT_RUN if key in command] or [key for key in SMALL if key in command]
        assert sets_up(command) or len(found) == 1, f"{command}: in {found or 'neither table'}"
    unused = [key for key in (*SMALL, *NOT_RUN) if not any(key in command for command in commands)]
    assert not unused
    for name, (_, printed) in SHOWN_ON.items():
        prints = RUNNABLE[name] or name == TOLD_BY_THE_NOTEBOOK or set(printed) <= OF_README
        assert prints, f"nothing prints the blocks of {name}"


def test_the_page_on_the_first_hundred_steps_quotes_the_notebook():
    """Its code, and what training health said there, line by line."""
    notebook = json.loads((ROOT / "notebooks" / "first_hundred_steps.ipynb").read_text(encoding="utf-8"))
    sources = "".join("".join(cell["source"]) + "\n" for cell in notebook["cells"])
    said = html.unescape(re.sub(r"<[^>]+>", " ", json.dumps(notebook)))
    for block in SHOWN_ON[TOLD_BY_THE_NOTEBOOK][1]:
        if block.startswith("Training health, step"):
            step, rule = re.match(r"Training health, step (\d+): (.*)", block).groups()
            assert f"{rule} (error, step {step} to" in said
            lines = [line.split(maxsplit=1)[1] for line in block.splitlines()[1:]]
            assert len(lines) == 4 and all(line in said for line in lines), block
        elif not block.startswith("bert-toolkit report"):
            assert all(line.strip() in sources for line in block.splitlines()), block


def test_set_up_is_what_ci_runs():
    """test_commands.py compares README's two commands to the letter; here every part on any page."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [command for commands, _ in SHOWN_ON.values() for command in commands if sets_up(command)]
    assert len(commands) >= 4
    for part in {part for command in commands for part in command.split(" && ")}:
        assert part in ci or part in ci.replace(",test]", "]"), part


@pytest.fixture
def copy_of_the_repository(tmp_path, cola_dir, newsgroups_archive, tiny_bert_dir):
    """The repository without earlier results, and what the pages take as given in its top folder."""
    for name in ("bert_toolkit", "benchmarks", "docs", "recipes", "tests", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("Makefile", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir()
    shutil.copytree(cola_dir, tmp_path / "path" / "to" / "cola" / "raw")
    shutil.copy(newsgroups_archive, tmp_path / "path" / "to")
    shutil.copytree(tiny_bert_dir, tmp_path / "google-bert" / "bert-base-uncased")
    documents = tmp_path / "my_documents"
    documents.mkdir()
    for number in range(8):
        (documents / f"{number}.txt").write_text("The old king waits. Every child sings today. A cat runs. " * 8)
    return tmp_path


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.parametrize("name", [name for name, commands in RUNNABLE.items() if commands])
def test_commands_of_a_page_run(name, copy_of_the_repository):
    top = copy_of_the_repository
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = ""
    for command in RUNNABLE[name]:
        (flags,) = (flags for key, flags in SMALL.items() if key in command)
        process = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{command} {flags}"],
            cwd=top,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(top), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert process.returncode == 0, f"{command} {flags}\n{process.stdout[-3000:]}"
        printed += process.stdout
    for block in SHOWN_ON[name][1]:
        assert block in printed or block in OF_README or name == TOLD_BY_THE_NOTEBOOK
