"""A real Trainer gets the same batches with any number of workers and processes, and after a resume in mid-epoch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from record_batches import STEP_PAIRS, record_batches  # noqa: E402

SCRIPT = Path(__file__).with_name("record_batches.py")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return record_batches(tmp_path_factory.mktemp("one"), {"per_device_train_batch_size": STEP_PAIRS})


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_epochs_differ(uninterrupted):
    per_epoch = len(uninterrupted) // 3
    rows = [
        {row.tobytes() for batch in uninterrupted[e * per_epoch : (e + 1) * per_epoch] for row in batch}
        for e in range(3)
    ]
    assert not rows[0] & rows[1] and not rows[1] & rows[2] and not rows[0] & rows[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4},
        {"dataloader_num_workers": 4},
        {"remove_unused_columns": False},
    ],
    ids=str,
)
def test_workers_do_not_change_batches(uninterrupted, tmp_path, settings):
    batches = record_batches(tmp_path, {"per_device_train_batch_size": STEP_PAIRS, **settings})
    assert same(batches, uninterrupted)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resume_in_mid_epoch_continues_the_batches(uninterrupted, tmp_path, epoch, workers):
    per_epoch = len(uninterrupted) // 3
    step = epoch * per_epoch + per_epoch // 2
    settings = {
        "per_device_train_batch_size": STEP_PAIRS,
        "dataloader_num_workers": workers,
    }
    record_batches(tmp_path, {**settings, "save_strategy": "steps", "save_steps": step, "max_steps": step})
    resumed = record_batches(tmp_path, settings, str(tmp_path / f"checkpoint-{step}"))
    assert same(resumed, uninterrupted[step:])


def test_accumulation_takes_the_same_pairs(uninterrupted, tmp_path):
    half = {"per_device_train_batch_size": STEP_PAIRS // 2, "gradient_accumulation_steps": 2}
    batches = record_batches(tmp_path, half)
    assert sorted_rows(batches) == sorted_rows(uninterrupted)


def sorted_rows(batches):
    """Rows without their padding, which depends on how the pairs of a step are cut into batches."""
    rows = []
    for batch in batches:
        width = (batch.shape[1] - 1) // 3
        ids, labels, types = (batch[:, i * width : (i + 1) * width] for i in range(3))
        for row in range(len(batch)):
            length = int((ids[row] != 0).sum())
            rows.append((*ids[row, :length], *labels[row, :length], *types[row, :length], batch[row, -1]))
    return sorted(rows)


@pytest.mark.launch
@pytest.mark.parametrize("checkpoint", [False, True], ids=["whole", "resumed in epoch 2"])
def test_two_processes_share_the_batches_of_one(uninterrupted, tmp_path, checkpoint):
    settings = {"per_device_train_batch_size": STEP_PAIRS // 2, "dataloader_num_workers": 1}
    step = 0
    arguments = []
    if checkpoint:
        step = len(uninterrupted) // 3 + 2
        launch(tmp_path, {**settings, "save_strategy": "steps", "save_steps": step, "max_steps": step})
        arguments = [str(tmp_path / "run" / f"checkpoint-{step}")]
    launch(tmp_path, settings, *arguments)
    ranks = []
    for rank in range(2):
        with np.load(tmp_path / f"batches.{rank}.npz") as stored:
            ranks.append([stored[f"arr_{i}"] for i in range(len(stored.files))])
    steps = len(uninterrupted) - step
    assert [len(rank) for rank in ranks] == [steps, steps]
    last_of_epoch = len(uninterrupted) // 3
    for number, pair in enumerate(zip(*ranks, strict=True), start=step):
        if (number + 1) % last_of_epoch:  # Accelerate fills up the last batch of an epoch from its beginning
            assert sorted_rows(pair) == sorted_rows([uninterrupted[number]])


def launch(folder, settings, *arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(SCRIPT),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, str(folder / "batches.npz"), json.dumps(settings), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert process.returncode == 0, process.stderr[-3000:]
