"""Kills recipes with SIGKILL, restarts them with the same command, and compares with a run that nobody disturbed.

    python benchmarks/kill_and_resume.py --kills 20

Each recipe trains a tiny model on a small corpus that this script writes, with `--resume_from_checkpoint last` from
the first start on. A kill comes at a seeded random moment: while data are prepared, in a step, in an evaluation, while
a checkpoint is written, or after training while results are written. Equal means, on the CPU with one thread: the loss
and gradient norm of every step and every evaluation, the last checkpoint's weights and optimizer, the final weights,
the predictions, and every array of the monitoring records, bit by bit.

Writes `benchmarks/results/kill_and_resume.json` after each kill, so that a stopped benchmark goes on where it was, and
the table `benchmarks/kill_and_resume.md`.
"""

import argparse
import functools
import json
import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from random import Random
from typing import NoReturn

import numpy as np

from bert_toolkit.provenance import command_line, package_versions
from bert_toolkit.training.checkpoints import is_whole_checkpoint

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PHASES = ("preparation", "step", "evaluation", "checkpoint", "results")
WORDS = [
    "the",
    "dog",
    "cat",
    "king",
    "child",
    "sleeps",
    "runs",
    "sings",
    "waits",
    "old",
    "today",
    "in",
    "house",
    "and",
]


# the recipes and their data


def write_inputs(folder: Path) -> None:
    """A tiny model and a small corpus for each recipe."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    from bert_toolkit.pretraining.vocabulary import train_wordpiece

    random = Random(0)

    def sentence() -> str:
        return " ".join(random.choices(WORDS, k=random.randint(3, 12))) + " ."

    for name, rows in (("in_domain_train", 72), ("in_domain_dev", 20), ("out_of_domain_dev", 20)):
        lines = [f"x\t{i % 2}\t{'*' * (1 - i % 2)}\t{sentence()}" for i in range(rows)]
        (folder / "cola").mkdir(exist_ok=True)
        (folder / "cola" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    for split, posts in (("train", 40), ("test", 10)):
        for group in ("alt.atheism", "sci.space"):
            of_group = folder / "newsgroups" / f"20news-bydate-{split}" / group
            of_group.mkdir(parents=True)
            for number in range(posts):
                (of_group / str(number)).write_text(f"From: {group}\n\n" + "\n".join(sentence() for _ in range(4)))
    documents = ["\n".join(sentence() for _ in range(random.randint(3, 8))) for _ in range(40)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    settings = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    (folder / "settings.json").write_text(json.dumps(settings))
    tokenizer = train_wordpiece(WORDS, vocab_size=200, max_length=64)
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForPreTraining(config).save_pretrained(folder / "model")


def flags(recipe: str, inputs: Path, run: Path) -> dict[str, object]:
    """The command line of a recipe: about 27 steps in three epochs, a checkpoint and an evaluation every four."""
    common = {
        "output_dir": run / "out",
        "resume_from_checkpoint": "last",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "logging_steps": 1,
        "monitor_every": 3,
        "cpu_threads": 1,
        "disable_tqdm": True,
    }
    if recipe == "cola":
        # recipe's own habit: evaluation and checkpoint after each epoch
        of_epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 6}
        special = {"data_dir": inputs / "cola", "model_name_or_path": inputs / "model", "max_length": 16, **of_epochs}
    elif recipe == "newsgroups":
        groups = {"data_dir": inputs / "newsgroups", "categories": ["alt.atheism", "sci.space"]}
        special = {**groups, "model_name_or_path": inputs / "model", "max_length": 48}
    else:
        special = {
            "train_file": inputs / "corpus.txt",
            "config_file": inputs / "settings.json",
            "vocab_size": 200,
            "max_length": 32,
            "cache_dir": run / "cache",
            "processes": 1,
        }
    return {**common, **special}


class Starter:
    """Starts recipes as forks of a process that has imported everything, which takes longer than a run.

    First start and restart of a run come from two such processes, so that nothing that one process keeps for itself,
    such as the seed of its hash tables, can make them equal.
    """

    def __init__(self) -> None:
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings, "MPLBACKEND": "Agg"},
        )

    def run(self, recipe: str, inputs: Path, run: Path, kill: str = "") -> tuple[int, str]:
        """Exit code, negative for a signal, and the end of what was printed."""
        arguments = []
        for name, value in flags(recipe, inputs, run).items():
            arguments += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        log = run / "printed.txt"
        order = {"recipe": str(HERE.parent / "recipes" / f"{recipe}.py"), "kill": kill, "arguments": arguments}
        print(json.dumps({**order, "log": str(log)}), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), log.read_text(errors="replace")[-500:]


def serve() -> None:
    """Forks a process for each order that comes in as a line of JSON, and answers with its exit code."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401

    for recipe in ("cola", "newsgroups", "pretrain"):
        runpy.run_path(str(HERE.parent / "recipes" / f"{recipe}.py"))  # as a module: imports, and does nothing
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(order["log"], "ab") as log:  # noqa: PTH123
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            child(order["recipe"], order["kill"], order["arguments"])
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


# the process of a recipe, which notes its phases and may kill itself in one


class Phases:
    """Counts and times the phases of a run; kills the process `delay` seconds into the chosen one.

    Args:
        kill: `phase:number:delay`, or nothing.
    """

    def __init__(self, kill: str):
        phase, number, delay = kill.split(":") if kill else ("", "0", "0")
        self.victim, self.delay = (phase, int(number)), float(delay)
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.begun: dict[str, float] = {}

    def begin(self, phase: str) -> None:
        self.begun[phase] = time.perf_counter()
        if (phase, len(self.seconds[phase])) == self.victim:
            # from a thread, so that it can come anywhere: between two writes of a file as well as between two files
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def end(self, phase: str) -> None:
        self.seconds[phase].append(time.perf_counter() - self.begun.pop(phase))

    def around(self, owner: type, method: str, phase: str) -> None:
        """A call of the method is the phase."""
        self.at(owner, method, before=lambda: self.begin(phase), after=lambda: self.end(phase))

    def at(self, owner: type, method: str, before=lambda: None, after=lambda: None) -> None:
        """Does something before and after each call of the method."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def wrapped(*arguments, **named):
            before()
            result = original(*arguments, **named)
            after()
            return result

        setattr(owner, method, wrapped)


def child(recipe: str, kill: str, arguments: list[str]) -> NoReturn:
    from transformers import Trainer
    from transformers.trainer_callback import CallbackHandler

    phases = Phases(kill)
    phases.at(Trainer, "train", before=lambda: phases.end("preparation"), after=lambda: phases.begin("results"))
    phases.around(Trainer, "training_step", "step")
    phases.around(Trainer, "evaluate", "evaluation")
    # from Trainer's first file to the mark that the checkpoint is whole
    phases.at(Trainer, "_save_checkpoint", before=lambda: phases.begin("checkpoint"))
    phases.at(CallbackHandler, "on_save", after=lambda: phases.end("checkpoint"))
    sys.argv = [recipe, *arguments]
    phases.begin("preparation")
    status = 1
    try:
        runpy.run_path(recipe, run_name="__main__")
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    if status == 0:
        phases.end("results")
        output = Path(arguments[arguments.index("--output_dir") + 1])
        (output.parent / "phases.json").write_text(json.dumps(phases.seconds))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# what a run leaves


def course(run: Path) -> list[dict]:
    """Everything that was logged at each step, without times."""
    timed = ("runtime", "per_second", "flos", "train_loss", "seconds", "mfu", "tokens")
    state = json.loads((last_checkpoint(run) / "trainer_state.json").read_text())
    return [
        {key: value for key, value in entry.items() if not any(word in key.lower() for word in timed)}
        for entry in state["log_history"]
    ]


def last_checkpoint(run: Path) -> Path:
    return max((run / "out").glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))


def arrays(run: Path) -> dict[str, np.ndarray]:
    """Weights, optimizer states and monitoring records, by name."""
    import torch
    from safetensors.numpy import load_file

    found = {}
    for folder in (run / "out", last_checkpoint(run)):
        for name, array in load_file(folder / "model.safetensors").items():
            found[f"{folder.name} {name}"] = array
    optimizer = torch.load(last_checkpoint(run) / "optimizer.pt", weights_only=True)
    for number, state in optimizer["state"].items():
        for name, tensor in state.items():
            found[f"optimizer {number} {name}"] = tensor.numpy()
    for file in sorted((run / "out" / "monitoring").glob("*.npz")):
        with np.load(file, allow_pickle=False) as records:
            for name in records.files:
                found[f"{file.name} {name}"] = records[name]
    return found


def scores(run: Path) -> dict:
    """Numbers of results.json that do not depend on the clock."""
    results = json.loads((run / "out" / "results.json").read_text())
    timed = ("seconds", "second", "command", "tokens", "padding", "mfu", "versions", "samples", "log_history", "flops")
    return {key: value for key, value in results.items() if not any(word in key.lower() for word in timed)}


def differences(whole: Path, resumed: Path) -> list[str]:
    """What is not bit-equal, in words."""
    found = []
    theirs, ours = course(whole), course(resumed)
    if theirs != ours:
        step = next((a["step"] for a, b in zip(theirs, ours, strict=False) if a != b), "the end")
        found.append(f"log from step {step}: {len(ours)} entries, expected {len(theirs)}")
    theirs, ours = arrays(whole), arrays(resumed)
    if theirs.keys() != ours.keys():
        found.append(f"arrays {sorted(theirs.keys() ^ ours.keys())}")
    for name in theirs.keys() & ours.keys():
        if theirs[name].dtype != ours[name].dtype or theirs[name].tobytes() != ours[name].tobytes():
            found.append(name)
    theirs, ours = scores(whole), scores(resumed)
    found += [f"results.json {key}" for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)]
    for name in ("predictions.tsv", "monitoring/training_health.jsonl"):
        file = whole / "out" / name
        if file.exists() and file.read_text() != (resumed / "out" / name).read_text():
            found.append(name)
    return sorted(found)


# the benchmark


def choose_moment(random: Random, number: int, seconds: dict[str, list[float]]) -> tuple[str, int, float]:
    """Phases take turns; the moment within one is uniform over the time that it took."""
    phase = PHASES[number % len(PHASES)]
    which = random.randrange(len(seconds[phase]))
    return phase, which, random.uniform(0, seconds[phase][which])


def one_kill(recipe: str, number: int, inputs: Path, whole: Path, work: Path, starters: list[Starter]) -> dict:
    run = work / f"{recipe}-{number}"
    seconds = json.loads((whole / "phases.json").read_text())
    phase, which, delay = choose_moment(Random(f"{recipe}/{number}"), number, seconds)
    while True:
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        status, printed = starters[0].run(recipe, inputs, run, f"{phase}:{which}:{delay:.6f}")
        if status != 0:
            break
        delay /= 2  # the run was faster than the undisturbed one and ended before the moment came
    outcome = {"recipe": recipe, "kill": number, "phase": phase, "which": which, "delay_seconds": round(delay, 6)}
    if status != -signal.SIGKILL:
        return {**outcome, "killed": False, "differences": [f"failed before it was killed: {printed}"]}
    left = sorted((run / "out").glob("checkpoint-*"), key=lambda folder: int(folder.name[11:]))
    half_written = [folder.name for folder in left if not is_whole_checkpoint(folder)]
    outcome |= {"killed": True, "checkpoints_left": [folder.name for folder in left], "half_written": half_written}
    status, printed = starters[1].run(recipe, inputs, run)
    if status != 0:
        return {**outcome, "differences": [f"did not resume: {printed}"]}
    outcome["differences"] = differences(whole, run)
    if not outcome["differences"]:
        shutil.rmtree(run)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["cola", "newsgroups", "pretrain"])
    parser.add_argument("--kills", type=int, default=20, help="of each recipe")
    parser.add_argument("--output", type=Path, default=RESULTS / "kill_and_resume.json")
    parser.add_argument("--work_dir", type=Path, help="for the runs; default: a temporary folder")
    options = parser.parse_args()
    starters = [Starter(), Starter()]
    done = json.loads(options.output.read_text())["kills"] if options.output.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work_dir or Path(temporary)
        inputs = work / "inputs"
        if not inputs.exists():
            inputs.mkdir(parents=True)
            write_inputs(inputs)
        for recipe in options.recipes:
            whole = work / f"{recipe}-whole"
            finished = {kill["kill"] for kill in done if kill["recipe"] == recipe}
            waiting = [number for number in range(options.kills) if number not in finished]
            if waiting and not (whole / "phases.json").exists():
                shutil.rmtree(whole, ignore_errors=True)
                whole.mkdir()
                status, printed = starters[0].run(recipe, inputs, whole)
                if status != 0:
                    sys.exit(f"the undisturbed run of {recipe} failed: {printed}")
            for number in waiting:
                kill = one_kill(recipe, number, inputs, whole, work, starters)
                print(json.dumps(kill), flush=True)
                done.append(kill)
                report = {"command": command_line(), "machine": platform.processor() or platform.machine()}
                report |= {"versions": package_versions(), "kills": done}
                options.output.write_text(json.dumps(report, indent=1) + "\n")
    page = HERE / f"{options.output.stem}.md"
    page.write_text(table(done, command_line()))
    print(page.read_text())


def table(kills: list[dict], command: str) -> str:
    recipes = list(dict.fromkeys(kill["recipe"] for kill in kills))
    lines = [
        "Runs that were killed and came out bit-equal to an undisturbed one, of all that were killed there.",
        "",
        f"| killed | {' | '.join(recipes)} |",
        f"|---|{'---|' * len(recipes)}",
    ]
    names = {
        "preparation": "while data were prepared",
        "step": "in a step",
        "evaluation": "in an evaluation",
        "checkpoint": "while a checkpoint was written",
        "results": "after training, while results were written",
    }
    for phase, words in (*names.items(), (None, "**all**")):
        cells = []
        for recipe in recipes:
            these = [kill for kill in kills if kill["recipe"] == recipe and phase in (None, kill["phase"])]
            cells.append(f"{sum(not kill['differences'] for kill in these)} / {len(these)}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    half_written = sum(bool(kill.get("half_written")) for kill in kills)
    lines += ["", f"{half_written} of the kills left a checkpoint half written; none of these was resumed."]
    return "\n".join([*lines, "", f"Command: `{command}`", ""])


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        main()
