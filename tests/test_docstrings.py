"""Docstrings of the package say what goes in, what comes out and what is raised, all in one form.

Left out, and why:

- names with an underscore, and what stands in a function: nobody outside reads their docstrings;
- dunder methods: Python says what they take and return. What `__init__` takes and raises stands in the class;
- Trainer's events `on_...(args, state, control, ...)`: transformers says what they take and return;
- `health/rules`: docstrings of rules are the sections of a page, see `tools/training_health_page.py`, and what stands
  beside them are the questions that rules ask, in their words;
- fields with a `help` text: it says in `--help` what they are;
- overloads: the function that they are overloads of is documented.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bert_toolkit"
Function = ast.FunctionDef | ast.AsyncFunctionDef
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Examples")
ENTRY = re.compile(r" {4}(\S[^:]*):\s+(.*)")
TRAINERS_EVENT = ["self", "args", "state", "control"]
NOTHING = ("None", "NoReturn", "Iterator[None]")
RETURNING = {"function": ("Return", "Yield"), "property": ("The ", "A ", "An ", "Whether ")}


def decorators_of(node: Function | ast.ClassDef) -> set[str]:
    """Names of decorators, without what they are attributes of and without their arguments."""
    calls = [decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list]
    return {ast.unparse(call).split(".")[-1] for call in calls}


def parameters_of(function: Function) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    stars = [star for star in (arguments.vararg, arguments.kwarg) if star is not None]
    return [argument.arg for argument in [*named, *stars]]


def is_exempt(function: Function) -> bool:
    return (
        function.name.startswith("_")
        or bool(decorators_of(function) & {"overload", "setter"})
        or (function.name.startswith("on_") and parameters_of(function)[:4] == TRAINERS_EVENT)
    )


def documented() -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public classes, functions and methods, each with the place where it stands."""
    for path in sorted(set(PACKAGE.rglob("*.py")) - set((PACKAGE / "health" / "rules").rglob("*.py"))):
        bodies = [ast.parse(path.read_text(encoding="utf-8")).body]
        while bodies:
            for node in bodies.pop():
                place = f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 1)}"
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    bodies.append(node.body)
                    yield place, node
                elif isinstance(node, Function) and not is_exempt(node):
                    yield place, node


def sections_of(node: ast.AST) -> dict[str, list[str]]:
    """Lines of each section of a docstring; the key '' has what stands before the first."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in (ast.get_docstring(node) or "").splitlines():  # type: ignore[arg-type]
        if line.removesuffix(":") in SECTIONS:
            name = line.removesuffix(":")
            sections[name] = []
        else:
            sections[name].append(line)
    return sections


def entries_of(node: ast.AST, *names: str) -> dict[str, str]:
    """Name -> text of the entries of sections such as Args; `a, b: ...` is an entry of both."""
    sections = sections_of(node)
    matches = [ENTRY.fullmatch(line) for name in names for line in sections.get(name, [])]
    return {key.strip("`* "): match[2] for match in matches if match for key in match[1].split(",")}


def errors_raised_in(nodes: list[ast.AST]) -> set[str]:
    """Classes of errors that leave these nodes, without functions in them and without errors caught where raised."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).split(".")[-1]
            found |= {name} if name[:1].isupper() else set()  # others are functions that make an error
        inner = errors_raised_in(list(ast.iter_child_nodes(node)))
        if isinstance(node, ast.Try):
            types = ["Exception" if each.type is None else ast.unparse(each.type) for each in node.handlers]
            caught = set(re.findall(r"\w+", " ".join(types)))
            in_body = errors_raised_in(list(node.body))
            inner -= in_body if "Exception" in caught else in_body & caught
            inner |= errors_raised_in([*node.handlers, *node.orelse, *node.finalbody])
        found |= inner
    return found


def raised_by(function: Function) -> set[str]:
    return errors_raised_in(list(function.body))


def constructors_of(node: ast.ClassDef) -> list[Function]:
    names = ("__init__", "__post_init__")
    return [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name in names]


DOCUMENTED = list(documented())
FUNCTIONS = [(place, node) for place, node in DOCUMENTED if isinstance(node, Function)]
CLASSES = [(place, node) for place, node in DOCUMENTED if isinstance(node, ast.ClassDef)]


def test_the_package_is_found() -> None:
    assert len(FUNCTIONS) > 300 and len(CLASSES) > 50


def test_everything_public_has_a_docstring() -> None:
    assert [f"{place} {node.name}" for place, node in DOCUMENTED if not ast.get_docstring(node)] == []


def test_parameters_are_documented() -> None:
    missing = []
    for place, function in FUNCTIONS:
        unnamed = set(parameters_of(function)) - {"self", "cls"} - set(entries_of(function, "Args"))
        missing += [f"{place} {function.name}: {name}" for name in sorted(unnamed)]
    assert missing == []


def test_documented_parameters_exist() -> None:
    unknown = []
    for place, function in FUNCTIONS:
        known = set(parameters_of(function))
        unknown += [f"{place} {function.name}: {name}" for name in entries_of(function, "Args") if name not in known]
    assert unknown == []


def test_constructor_arguments_are_documented_in_the_class() -> None:
    missing = []
    for place, node in CLASSES:
        wanted = {name for each in constructors_of(node) for name in parameters_of(each)} - {"self", "kwargs"}
        if {"dataclass", "NamedTuple"} & (decorators_of(node) | {ast.unparse(base) for base in node.bases}):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            told = [
                each for each in fields if "ClassVar" in ast.unparse(each.annotation) or "'help':" in ast.unparse(each)
            ]
            wanted |= {ast.unparse(each.target) for each in fields if each not in told}
        public = {name for name in wanted if not name.startswith("_")}
        unnamed = public - set(entries_of(node, "Args", "Attributes"))
        missing += [f"{place} {node.name}: {name}" for name in sorted(unnamed)]
    assert missing == []


def test_what_is_returned_is_documented() -> None:
    missing = []
    for place, function in FUNCTIONS:
        returned = "None" if function.returns is None else ast.unparse(function.returns).strip("'\"")
        kind = "property" if decorators_of(function) & {"property", "cached_property"} else "function"
        sections = sections_of(function)
        is_said = (sections[""] or [""])[0].startswith(RETURNING[kind]) or {"Returns", "Yields"} & set(sections)
        if returned not in NOTHING and not is_said:
            missing.append(f"{place} {function.name}: {sections[''][:1]}")
    assert missing == []


def test_what_is_raised_is_documented() -> None:
    missing = []
    for place, node in DOCUMENTED:
        raising = constructors_of(node) if isinstance(node, ast.ClassDef) else [node]
        named = {name for each in [node, *raising] for name in entries_of(each, "Raises")}
        unnamed = {name for each in raising for name in raised_by(each)} - named
        missing += [f"{place} {node.name}: {name}" for name in sorted(unnamed)]
    assert missing == []


@pytest.mark.parametrize("section", ["Args", "Attributes", "Raises", "Returns", "Yields"])
def test_entries_begin_with_a_capital_letter(section: str) -> None:
    small = []
    for place, node in DOCUMENTED:
        first = sections_of(node).get(section, [])[:1]
        texts = {"": "".join(first).strip()} if section in ("Returns", "Yields") else entries_of(node, section)
        small += [f"{place} {node.name}: {name}" for name, text in texts.items() if text[:1].islower()]
    assert small == []
