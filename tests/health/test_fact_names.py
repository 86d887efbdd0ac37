"""Every fact that a rule asks for is made somewhere: a name that nobody makes is NaN, its rule silent forever."""

import ast
from pathlib import Path

import pytest

import bert_toolkit.health

ROOM = Path(bert_toolkit.health.__file__).parent
RULES = sorted((ROOM / "rules").glob("*.py"))
MAKERS = sorted(ROOM.glob("*.py"))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def texts_of(*nodes: ast.AST) -> set[str]:
    return {inner.value for node in nodes for inner in ast.walk(node) if is_text(inner)}


def asked_for(tree: ast.Module) -> set[str]:
    """Names in `history.fact("…")`, `latest(history, "…", n)`, `start["…"]` and the like, and in loops over names."""
    found = set()
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called.endswith((".fact", "start.get")):
            found |= texts_of(node.args[0])
        elif called in ("latest", "fact_by_place"):
            found |= texts_of(node.args[1])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("start"):
            found |= texts_of(node.slice)
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith("start"):
            found |= texts_of(node.left)
        elif isinstance(node, ast.GeneratorExp) and ".fact(" in ast.unparse(node.elt):
            found |= texts_of(node.generators[0].iter)
        elif isinstance(node, ast.For) and "latest(history, fact" in ast.unparse(node):
            found |= names_of_rows(tree, node.iter)
    return found


def names_of_rows(tree: ast.Module, rows: ast.expr) -> set[str]:
    """First text of each row of a loop over `(name, …)`, which stand there or are appended to a list."""
    if isinstance(rows, ast.Tuple):
        return texts_of(*(row.elts[0] for row in rows.elts))
    appending = f"{ast.unparse(rows)}.append"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == appending]
    return texts_of(*(call.args[0].elts[0] for call in calls))


def said_in(tree: ast.Module) -> set[str]:
    """Every text of a module but its docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {node.value for node in ast.walk(tree) if is_text(node) and id(node) not in docstrings}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_facts_that_rules_ask_for_are_made(path):
    assert asked_for(parsed(path)) <= set().union(*(said_in(parsed(maker)) for maker in MAKERS))


def test_names_are_seen():
    """So the test above would see a misspelled one."""
    assert len(set().union(*(asked_for(parsed(path)) for path in RULES))) > 85
    rule = """
start = history.start
facts.append(("a", "text"))
for fact, limit in facts:
    latest(history, fact, 3)
for fact, limit in (("b", 1), ("c", 2)):
    latest(history, fact, 3)
d, e = (history.fact(name) for name in ("d", "e"))
x = history.fact("f")[0] + latest(history, "g", 2) + start["h"] + history.start.get("i") + fact_by_place(history, "j")
if "k" in start or "l" not in history.start or history.fact("m" if x else "n"):
    pass
"""
    assert asked_for(ast.parse(rule)) == set("abcdefghijklmn")
    assert said_in(ast.parse('"""a"""\nfacts["b"] = 1')) == {"b"}
