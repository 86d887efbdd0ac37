"""What is built is complete: the wheel that the sdist gives, alone in an empty environment, has all that it needs."""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
BUILT_FROM = ("bert_toolkit", "setup.cfg", "pyproject.toml", "docs/package.md", "LICENSE")

pytestmark = pytest.mark.slow


def build(kind: str, source: Path, target: Path) -> Path:
    """Calls setuptools as pip and build do, with the setuptools that is installed here."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return target / printed.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a copy of the source, and the wheel that is built from nothing but the sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (source / name).parent.mkdir(exist_ok=True)
            shutil.copy(TOP / name, source / name)
    sdist = build("sdist", source, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked, folder)


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """An environment that holds the wheel, and beside it the packages that it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(built[1])]
    subprocess.run([str(interpreter), *install], check=True)
    # A path in a .pth file comes after the environment's own packages, and .pth files over there, such as the one
    # of an editable installation, are not read
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def test_index_accepts_the_metadata(built):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0 and process.stdout.count("PASSED") == 2, process.stdout


def test_every_file_of_the_package_is_in_the_wheel(built):
    files = {
        path.relative_to(TOP).as_posix()
        for path in (TOP / "bert_toolkit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(built[1]) as wheel:
        in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == files


def test_metadata_names_the_extras_and_the_license(built):
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert "Name: bert_toolkit\n" in metadata or "Name: bert-toolkit\n" in metadata
    for extra in ("recipes", "offline", "report", "search", "test"):
        assert f"Provides-Extra: {extra}\n" in metadata
    assert "Description-Content-Type: text/markdown\n" in metadata


def test_installed_wheel_loads_sample_model_and_metrics(python, tmp_path):
    code = """
import json, bert_toolkit
from transformers import AutoConfig, AutoModel
from bert_toolkit.data.cola import load_cola
from bert_toolkit.metrics.evaluate_modules import __path__ as modules
import evaluate
corpus = load_cola("sample")
config = AutoConfig.for_model("toolkit_bert", vocab_size=50, hidden_size=48, num_hidden_layers=1)
model = AutoModel.from_config(config)
model.save_pretrained("saved")
accuracy = evaluate.load(f"{list(modules)[0]}/flat_accuracy.py")
print(json.dumps({
    "file": bert_toolkit.__file__,
    "rows": [len(corpus.train), len(corpus.validation), len(corpus.test)],
    "model": type(AutoModel.from_pretrained("saved")).__name__,
    "accuracy": accuracy.compute(predictions=[1, 0], references=[1, 1]),
}))
"""
    process = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    seen = json.loads(process.stdout.splitlines()[-1])
    assert Path(seen["file"]).is_relative_to(python.parents[1])
    assert seen["rows"] == [1440, 300, 280]
    assert seen["model"] == "ToolkitBertModel"
    assert list(seen["accuracy"].values()) == [0.5]


def test_command_of_the_installed_wheel_runs(python, tmp_path):
    for command in ([str(python), "-m", "bert_toolkit.predict"], [str(python.parent / "bert-toolkit"), "report"]):
        process = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert process.returncode == 0 and "usage" in process.stdout, process.stderr[-3000:]
