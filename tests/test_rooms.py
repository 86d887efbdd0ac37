"""Which room of the package may import which: downwards only, so that a room can be read without those above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bert_toolkit"

# From the ground up. A room may import every room of the lines above its own, no other of its own line, and itself.
FLOORS = (
    {"errors", "files", "ignored_label", "processes"},
    {"hub", "provenance"},
    {"model", "monitoring", "data", "pretraining"},
    {"metrics", "health"},
    {"run_page"},
    {"callbacks"},
    {"training"},
    {"reporting"},
    {"predict", "__main__"},
)
# Narrower than the floors allow: these files are copied beside checkpoints and run there without the package.
ALONE = {"model"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Rooms that a file imports, also inside functions and under TYPE_CHECKING; `__init__` for the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            place = path.relative_to(PACKAGE.parent).parent.parts
            place = place[: len(place) - node.level + 1]
            modules = [".".join([*place, *([node.module] if node.module else [])])]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        if isinstance(node, ast.ImportFrom) and modules == ["bert_toolkit"]:
            modules = [f"bert_toolkit.{alias.name}" for alias in node.names]
        for parts in (module.split(".") for module in modules):
            if parts[0] == "bert_toolkit":
                inside = parts[1:2] and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists())
                found.add(parts[1] if inside else "__init__")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE) != Path("__init__.py"))


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


@pytest.mark.parametrize("room", sorted(set().union(*FLOORS)))
def test_imports_run_downwards(room):
    (floor,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    allowed = {room} if room in ALONE else {room}.union(*FLOORS[:floor])
    wrong = {
        str(path.relative_to(PACKAGE)): sorted(imports_of(path) - allowed)
        for path in FILES
        if room_of(path) == room and imports_of(path) - allowed
    }
    assert not wrong


def test_imports_are_seen(tmp_path, monkeypatch):
    """So the test above would see them."""
    folder = tmp_path / "bert_toolkit" / "data"
    folder.mkdir(parents=True)
    for name in ("training", "errors"):
        (tmp_path / "bert_toolkit" / f"{name}.py").touch()
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "bert_toolkit")
    (folder / "a.py").write_text(
        "from typing import TYPE_CHECKING\nimport bert_toolkit.errors\nfrom .b import c\n"
        "if TYPE_CHECKING:\n    from bert_toolkit.training.x import y\n"
        "def f():\n    from bert_toolkit import Finding\n"
    )
    assert imports_of(folder / "a.py") == {"errors", "data", "training", "__init__"}
    (folder / "a.py").write_text("from bert_toolkit import training\nfrom .. import errors\n")
    assert imports_of(folder / "a.py") == {"training", "errors"}
