"""A live figure: one picture below the cell that trains, in a real kernel, which is newer after every sample."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from float64_oracle import Classifier

from bert_toolkit import GradientFlowCallback, InputError, UpdateRatioCallback, watch_loop
from bert_toolkit.callbacks import live_figure

HERE = Path(__file__).parent

SET_UP = """
import base64, io
from float64_oracle import Classifier, arguments, rows
from transformers import Trainer
import bert_toolkit
from bert_toolkit.callbacks import live_figure

live_figure._TIME_FRACTION = {fraction}

def train():
    trainer = Trainer(Classifier(), arguments("run", max_steps=8), train_dataset=rows())
    watching = bert_toolkit.watch(trainer, every_n_steps=2, health=False)
    watching.update_ratios.live("update_ratios", "update_ratios_over_time")
    trainer.train()
    print("trained")
    return watching.update_ratios

def as_drawn_now(callback, name):
    file = io.BytesIO()
    callback.figure(name).savefig(file, format="png")
    return base64.b64encode(file.getvalue()).decode()
"""
SAMPLES = 5  # steps 1, 2, 4, 6 and 8


def executed(folder, monkeypatch, *cells, fraction="float('inf')"):
    """The outputs of each cell as they stand at the end, and the kinds of messages in their order."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    seen = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, cell_index):
            if cell_index:
                text = message["content"].get("text", "").strip()
                seen.append((cell_index, text or message["msg_type"]))
            return super().process_message(message, cell, cell_index)

    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = [SET_UP.format(fraction=fraction), *cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code])
    Client(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    of_displays = ("display_data", "update_display_data", "trained")
    return [cell.outputs for cell in notebook.cells], [each for each in seen if each[1] in of_displays]


def pictures(outputs):
    return [
        output["data"]["image/png"].replace("\n", "") for output in outputs if "image/png" in output.get("data", {})
    ]


def texts(outputs):
    return "".join(output.get("text", "") for output in outputs).split()


@pytest.mark.launch
def test_one_picture_each_is_newer_after_every_sample(tmp_path, monkeypatch):
    names = ("update_ratios", "update_ratios_over_time")
    now = "; ".join(f"print(as_drawn_now(ratios, {name!r}))" for name in names)
    outputs, seen = executed(tmp_path, monkeypatch, "ratios = train()", now, "train();")
    shown = pictures(outputs[1])
    assert len(shown) == 2, "one picture for each name, whatever the number of samples"
    assert shown == texts(outputs[2]), "they end as what the records say"
    of_first = [kind for cell, kind in seen if cell == 1]
    assert of_first.count("display_data") == 2
    # of every further sample and once more at the end of the run, all before the cell goes on
    assert of_first.count("update_display_data") == 2 * SAMPLES and of_first[-1] == "trained"
    # another training shows pictures of its own; those of the first stay
    assert len(pictures(outputs[3])) == 2
    assert [kind for cell, kind in seen if cell == 3].count("display_data") == 2


@pytest.mark.launch
def test_without_time_to_draw_the_first_sample_and_the_end_are_shown(tmp_path, monkeypatch):
    loop = """
import torch
from bert_toolkit import watch_loop

model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows(8)]) for key in ("input_ids", "labels")}
with watch_loop(model, optimizer, every_n_steps=2, health=False, output_dir="loop") as watching:
    watching.gradient_flow.live("gradients")
    for _ in range(8):
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
print("trained")
"""
    now = "print(as_drawn_now(watching.gradient_flow, 'gradients'))"
    outputs, seen = executed(tmp_path, monkeypatch, loop, now, fraction=0)
    assert pictures(outputs[1]) == texts(outputs[2])
    assert [kind for _, kind in seen] == ["display_data", "update_display_data", "trained"]


def test_outside_a_notebook_one_line_says_what_to_do_instead(monkeypatch):
    for callback, name in ((GradientFlowCallback(), "gradients"), (UpdateRatioCallback(), "update_ratios_over_time")):
        with pytest.raises(InputError, match="needs a notebook, this is a script or a terminal; .*TensorBoard"):
            callback.live(name)
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(InputError, match="needs a notebook, and IPython is not installed"):
        GradientFlowCallback().live("gradients")


@pytest.mark.launch
def test_terminal_of_ipython_is_no_notebook(tmp_path):
    pytest.importorskip("IPython")
    code = "import bert_toolkit; bert_toolkit.GradientFlowCallback().live('gradients')"
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "-c", code]
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(HERE.parents[1])}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "InputError: a live figure needs a notebook, this is a script or a terminal" in process.stdout


def test_unknown_figure_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(live_figure, "check_notebook", lambda: None)
    with pytest.raises(InputError, match="Gradient flow draws gradients, gradients_over_time, got 'updates'"):
        GradientFlowCallback().live("updates")


def test_picture_that_fails_ends_no_training(monkeypatch, caplog, tmp_path):
    import torch

    monkeypatch.setattr(live_figure, "check_notebook", lambda: None)
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(live_figure.LiveFigure, "show", lambda *_, **__: 1 / 0)
    with watch_loop(model, optimizer, 1, health=False, output_dir=tmp_path, figures=False) as watching:
        watching.gradient_flow.live("gradients")
        for _ in range(3):
            model(torch.ones(2, 5, dtype=torch.long), torch.zeros(2, dtype=torch.long))["loss"].backward()
            optimizer.step()
    assert [record.step for record in watching.gradient_flow.records] == [1, 2, 3]
    assert caplog.text.count("Gradient flow: no live figures from here on, training goes on") == 1
