"""A full disk is one line, whoever writes, and costs nothing that was saved before.

The system's limit of a file's size stands for the disk: it stops every writer, in the same way and as any user.
"""

import hashlib
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bert_toolkit.training.checkpoints import is_whole_checkpoint
from bert_toolkit.training.full_disk import full_disk_reason

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of file sizes")
TOP = Path(__file__).parents[2]
WRITERS = {
    "safetensors": "from safetensors.torch import save_file; save_file({'a': torch.zeros(9999)}, path)",
    "torch": "torch.save({'a': torch.zeros(9999)}, path)",
    "numpy": "import numpy; numpy.savez(path, a=numpy.zeros(9999))",
    "figure": "from matplotlib.figure import Figure; Figure((9, 9)).savefig(path, dpi=300)",
    "text": "open(path, 'w').write('a' * 9999)",
    "events": """
from torch.utils.tensorboard import SummaryWriter
writer = SummaryWriter(path, max_queue=1)
for step in range(9999):
    writer.add_scalar('a' * 99, 1.0, step)
""",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_is_recognized(writer, tmp_path):
    code = f"""
import os, resource, sys, threading, torch
from bert_toolkit.training.full_disk import full_disk_reason
import matplotlib.figure, safetensors.torch, numpy, torch.utils.tensorboard
threading.excepthook = lambda failure: None
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = {str(tmp_path / "written")!r}
try:
    exec({WRITERS[writer]!r})
except Exception as error:
    sys.stderr.write(f"REASON {{full_disk_reason(error)}}")
    os._exit(0)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOP)
    reason = process.stderr.split("REASON ")[-1]
    assert "File too large" in reason or "PyTorch could not write a file" in reason, process.stderr[-2000:]


def test_other_errors_are_not():
    for error in (OSError(2, "No such file"), RuntimeError("size mismatch"), KeyError("x"), ValueError("os error 28")):
        assert full_disk_reason(error) is None
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = OSError(28, "No space left on device", "model.bin")
    assert full_disk_reason(wrapped) == "No space left on device: model.bin"


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_watching_on_a_full_disk_warns_and_training_goes_on(tmp_path):
    """In a script of one's own, which has no `run_recipe` around it and no TensorBoard of Trainer's."""
    code = f"""
import resource, torch, bert_toolkit
from transformers import Trainer, TrainingArguments
class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)
    def forward(self, x, labels):
        return {{"loss": torch.nn.functional.cross_entropy(self.layer(x), labels)}}
rows = [{{"x": torch.full((6,), i % 7.0), "labels": i % 3}} for i in range(64)]
settings = {{"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 20}}
trainer = Trainer(Line(), TrainingArguments({str(tmp_path / "run")!r}, **settings), train_dataset=rows)
bert_toolkit.watch(trainer, 1, report={find_spec("plotly") is not None})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
trainer.train()
print("ENDED AT", trainer.state.global_step)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOP)
    assert process.returncode == 0 and "ENDED AT 20" in process.stdout, process.stderr[-2000:]
    assert "Traceback" not in process.stderr, process.stderr[-2000:]
    warnings = [line for line in process.stderr.splitlines() if "File too large" in line]
    outputs = ("Gradient flow: no scalars in TensorBoard", "Update ratios: no record file", "Training health: no file")
    assert all(sum(line.startswith(output) for line in warnings) == 1 for output in outputs), warnings


@pytest.mark.launch
def test_recipe_on_a_full_disk(tmp_path, cola_dir, tiny_bert_dir):
    def run(kilobytes, **changes):
        settings = {
            "data_dir": cola_dir,
            "model_name_or_path": tiny_bert_dir,
            "output_dir": tmp_path / "run",
            "per_device_train_batch_size": 8,
            "save_strategy": "steps",
            "save_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "cpu_threads": 1,
            **changes,
        }
        flags = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in settings.items())
        command = f"ulimit -f {kilobytes}; exec {shlex.quote(sys.executable)} recipes/cola.py {flags}"
        environment = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=TOP, env=environment)

    first = run("unlimited", max_steps=4)
    assert first.returncode == 0, first.stderr[-2000:]
    whole = tmp_path / "run" / "checkpoint-4"
    before = contents(whole)

    full = run(100, max_steps=8, resume_from_checkpoint="last")  # the weights of this model need more
    assert full.returncode == 2, full.stderr[-2000:]
    assert "Traceback" not in full.stderr
    last = full.stderr.splitlines()[-1]
    assert last.startswith("error: a file could not be written") and "--resume_from_checkpoint last" in last
    assert is_whole_checkpoint(whole) and contents(whole) == before

    again = run("unlimited", max_steps=8, resume_from_checkpoint="last")
    assert again.returncode == 0, again.stderr[-2000:]
    assert is_whole_checkpoint(tmp_path / "run" / "checkpoint-8")
