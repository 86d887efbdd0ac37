"""Whatever goes wrong in a monitor: one warning, that output is off, all others go on, and training is the same."""

import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from float64_oracle import Classifier, arguments, check_gradients, rows
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback

from bert_toolkit import (
    GradientFlowCallback,
    GradientFlowMonitor,
    TrainingHealthCallback,
    UpdateRatioMonitor,
    watch,
    watch_loop,
)
from bert_toolkit.callbacks import monitoring_output
from bert_toolkit.health.forward_statistics import ForwardWatch
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.monitoring import gradient_flow

STEPS = 6


class Reporter(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen = [*getattr(self, "seen", []), *logs]


def run(folder, watched=True, reporter=None, health=True):
    args = arguments(folder, max_steps=STEPS, report_to="tensorboard", save_strategy="steps", save_steps=3)
    trainer = Trainer(Classifier(), args, train_dataset=rows(), callbacks=[reporter] if reporter else [])
    watching = watch(trainer, every_n_steps=2, health=health) if watched else None
    trainer.train()
    return trainer, watching


def disk_full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def wrong(*args, **kwargs):
    raise TypeError("of an unknown kind")


class BrokenReporter(Reporter):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs and "train_loss" not in logs:
            raise KeyError("loss")
        super().on_log(args, state, control, logs, **kwargs)


# what breaks, by (owner, name, how); what is off for it, by (callback, output) as the warning says it
FAULTS = {
    "record file": [(monitoring_output, "save_records", disk_full), ("Gradient flow", "record file")],
    "PNG": [("matplotlib.figure.Figure", "savefig", disk_full), ("Update ratios", "PNG files")],
    "figure": [(GradientFlowCallback, "figure_of", wrong), ("Gradient flow", "figures")],
    "image in TensorBoard": [(SummaryWriter, "add_image", disk_full), ("Update ratios", "figures in TensorBoard")],
    "W&B": ["wandb", ("Gradient flow", "scalars in W&B")],
    "reporter": [BrokenReporter, ("Gradient flow", "scalars for BrokenReporter")],
    "gradients": [(GradientFlowMonitor, "start", wrong), ("Gradient flow", "measurements")],
    "end of backward": [(gradient_flow, "local_norms", wrong), ("Gradient flow", "measurements")],
    "copy": [(UpdateRatioMonitor, "before_step", wrong), ("Update ratios", "measurements")],
    "update": [(UpdateRatioMonitor, "after_step", wrong), ("Update ratios", "measurements")],
    "forward hook of health": [(ForwardWatch, "_look", wrong), ("Training health", "measurements")],
    "judge": [(HealthJudge, "judge", wrong), ("Training health", "measurements")],
    "samples of health": [(HealthHistory, "save", disk_full), ("Training health", "file of samples")],
    "verdict": [(HealthJudge, "verdict", wrong), ("Training health", "verdict")],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    trainer, _ = run(tmp_path_factory.mktemp("plain"), watched=False)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_output_fails_in_turn(tmp_path, monkeypatch, caplog, plain, fault):
    broken, (owner, output) = FAULTS[fault]
    reporter = Reporter()
    if broken == "wandb":
        module = types.ModuleType("wandb")
        module.run, module.log, module.Image = object(), disk_full, lambda pixels: pixels
        monkeypatch.setitem(sys.modules, "wandb", module)
        monkeypatch.setattr(
            monitoring_output.MonitoringOutput, "_running_wandb", lambda self: module if self.is_main else None
        )
    elif broken is BrokenReporter:
        reporter = BrokenReporter()
    elif isinstance(broken[0], str):
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, broken[1], broken[2])
    else:
        monkeypatch.setattr(*broken)
    with caplog.at_level(logging.WARNING, logger="bert_toolkit"):
        trainer, watching = run(tmp_path, reporter=reporter)
    losses, weights = plain
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == losses
    assert all(torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters())
    told = [record.getMessage() for record in caplog.records if "from here on" in record.getMessage()]
    assert len([line for line in told if line.startswith(f"{owner}: no {output} from here on")]) == 1
    assert len(told) == len(set(told)), "each output tells it once"
    assert all("training goes on" in line for line in told)
    assert not any(p._post_accumulate_grad_hooks for p in trainer.model.parameters())
    # What has not failed is there.
    if output != "measurements":
        assert [record.step for record in watching.gradient_flow.records] == [1, 2, 4, 6]
        assert [record.step for record in watching.update_ratios.records] == [1, 2, 4, 6]
    files = {path.name for path in (tmp_path / "monitoring").iterdir()}
    assert "training_health.jsonl" in files
    if "record file" not in output:
        assert files & {"gradient_flow.npz", "update_ratio.npz"}


def test_writer_that_fails_takes_the_scalars_of_no_one_else(tmp_path, monkeypatch, caplog):
    original = SummaryWriter.add_scalar

    def add_scalar(self, tag, *args, **kwargs):
        return disk_full() if tag.startswith("gradient_flow/") else original(self, tag, *args, **kwargs)

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    reporter = Reporter()
    run(tmp_path, reporter=reporter)
    assert caplog.text.count("no scalars in TensorBoard from here on") == 1
    assert "gradient_flow/mean/head" in reporter.seen and "update_ratio/head" in reporter.seen


def test_folder_that_cannot_be_made(tmp_path, caplog, plain):
    (tmp_path / "monitoring").write_text("a file is in the way")
    trainer, watching = run(tmp_path)
    assert all(torch.equal(p, plain[1][name]) for name, p in trainer.model.named_parameters())
    assert len(watching.gradient_flow.records) == 4
    assert (tmp_path / "monitoring").read_text() == "a file is in the way"
    told = [record.getMessage() for record in caplog.records if "from here on" in record.getMessage()]
    assert {line.split(" from here on")[0] for line in told} == {
        "Gradient flow: no record file",
        "Gradient flow: no PNG files",
        "Update ratios: no record file",
        "Update ratios: no PNG files",
        "Training health: no record of the run",
        "Gradient flow: no record of the run",
        "Update ratios: no record of the run",
        "Training health: no file of findings",
        "Training health: no file of samples",
    }
    assert len(told) == 9


def test_function_that_gets_findings_may_fail(tmp_path, caplog):
    class Cut(Classifier):
        def forward(self, input_ids, labels):
            hidden = self.embed(input_ids).mean(1)
            hidden = hidden + torch.relu(self.layers[0](hidden)).detach()
            logits = self.head(self.norm(hidden))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    health = TrainingHealthCallback(every_n_steps=1, on_finding=wrong)
    trainer = Trainer(Cut(), arguments(tmp_path, max_steps=20), train_dataset=rows(), callbacks=[health])
    trainer.train()
    assert trainer.state.global_step == 20 and health.findings
    assert "on_finding failed" in caplog.text and "of an unknown kind" in caplog.text


class WithComplex(Classifier):
    """Has a parameter of a kind whose statistics nobody defined."""

    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.ones(5, dtype=torch.complex64))

    def forward(self, input_ids, labels):
        output = super().forward(input_ids, labels)
        output["loss"] = output["loss"] + self.phase.abs().sum() * 1e-3
        return output


def test_unknown_kind_of_parameter(tmp_path, caplog):
    model = WithComplex()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    with watch_loop(model, optimizer, every_n_steps=1, output_dir=tmp_path):
        for _ in range(3):
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    told = [record.getMessage() for record in caplog.records if "from here on" in record.getMessage()]
    assert sorted(line.split(":")[0] for line in told) == ["Gradient flow", "Training health", "Update ratios"]


def test_parameter_with_a_partial_placement_gives_one_notice(tmp_path, caplog):
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(3, 2, bias=False)
        model.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh, [Partial()]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        callback = GradientFlowCallback(every_n_steps=1, figures=False)
        with watch_loop(
            model, optimizer, every_n_steps=1, health=False, output_dir=tmp_path, callbacks=[callback], figures=False
        ) as watching:
            for _ in range(2):
                model.weight.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Partial()])
                optimizer.step()
        assert watching.step == 2
    finally:
        distributed.destroy_process_group()
    told = [record.getMessage() for record in caplog.records if "partial placement" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("Update ratios"), "gradients of that kind are summed"
    assert [record.mean.tolist() for record in callback.records] == [[1.0], [1.0]]


def test_sparse_gradients_are_read_exactly(tmp_path, caplog):
    class Sparse(Classifier):
        def __init__(self):
            super().__init__(width=80)
            weight = self.embed.weight.detach().clone()
            self.embed = nn.Embedding(30, 80, sparse=True)
            self.embed.weight.data.copy_(weight)

    model, seen = Sparse(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch_loop(model, optimizer, 1, TrainingHealthCallback(1), tmp_path, figures=False) as watching:
        for row in rows()[:3]:
            for _ in range(2):  # accumulated: the same rows occur several times
                model(row["input_ids"][None], torch.tensor([row["labels"]]))["loss"].backward()
            seen.append({n: p.grad.to_dense().clone() for n, p in model.named_parameters()})
            assert model.embed.weight.grad.is_sparse
            before = model.embed.weight.detach().clone()
            optimizer.step()
            ratio = float((model.embed.weight.detach() - before).double().norm() / before.double().norm())
            optimizer.zero_grad()
    for record, gradients in zip(watching.gradient_flow.records, seen, strict=True):
        check_gradients(record, gradients)
        assert record.clip_coefficient == 1.0
    embedding = watching.update_ratios.records[-1].names.index("embed.weight")
    assert watching.update_ratios.records[-1].ratio[embedding] == pytest.approx(ratio, rel=1e-6)
    assert len(watching.health.history) == 3 and "from here on" not in caplog.text


def test_sparse_gradients_are_not_made_dense():
    values = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    indices = torch.tensor([[7, 10**11]])
    shape = (10**12, 2)  # 8 TB if it were dense
    gradient = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
    pending = gradient_flow.absolute_rows([gradient], [gradient_flow.local_tensor(gradient)])
    count, mean, largest, std, zeros = (float(v[0]) for v in gradient_flow.absolute_statistics(pending.read()))
    assert count == 2 * 10**12 and largest == 3.0
    assert mean == pytest.approx(6 / count) and zeros == 1 - 3 / count
    assert std == pytest.approx(np.sqrt(14 / count), rel=1e-6)


@pytest.mark.launch
@pytest.mark.parametrize(
    "what, gradients, updates",
    [("has no memory", [1, 2, 4, 6], [1, 2]), ("refuses", [], [])],  # the third sample fails, or none is taken
)
def test_one_process_that_cannot_measure_stops_all_and_training_goes_on(tmp_path, what, gradients, updates):
    script = Path(__file__).parent / "failing_rank_worker.py"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path), what], env=environment, capture_output=True, text=True, timeout=300
    )
    answers = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank*.json"))]
    assert len(answers) == 2, done.stderr[-2000:]
    assert [answer["steps"] for answer in answers] == [6, 6]
    assert [answer["updates"] for answer in answers] == [updates, updates]
    assert [answer["gradients"] for answer in answers] == [gradients, gradients]
    assert "another process has failed to measure" in done.stderr
