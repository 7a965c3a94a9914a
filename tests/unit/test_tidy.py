"""How large a module and a function may be, and that packages do not know each other in circles.

`LARGE` and `LONG` are a ratchet: what is in them may only shrink, and leaves them as soon as it can.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIDES = ("schemas/antdt_schemas", "streams/antdt_streams", "trainer/antdt")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50

# Modules that are larger: lines.
LARGE: dict[str, int] = {}
# Functions that are longer: lines.
LONG: dict[str, int] = {}
# (package, another one that it knows although that one knows it): to be cut, and never to be added to.
BACK = {("antdt.worker", "antdt.connect")}


@cache
def trees() -> dict[str, tuple[int, ast.Module]]:
    """Path below the root -> lines of a module, and what it says."""
    out = {}
    for side in SIDES:
        for path in sorted((ROOT / side).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            out[str(path.relative_to(ROOT))] = len(text.splitlines()), ast.parse(text)
    return out


def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """Every function by its qualified name, and its lines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{inside}{child.name}"
            assert child.end_lineno is not None
            yield name, child.end_lineno - child.lineno + 1
            yield from functions(child, f"{name}.")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{inside}{child.name}.")
        else:
            yield from functions(child, inside)


def held(found: dict[str, int], listed: dict[str, int], most: int) -> list[str]:
    """What is wrong, as sentences."""
    wrong = []
    for name, lines in sorted(found.items()):
        allowed = listed.get(name, most)
        if lines > allowed:
            wrong.append(f"{name} has {lines} lines, and may have {allowed}: cut it where it falls into parts.")
        elif name in listed and lines <= most:
            wrong.append(f"{name} has {lines} lines: take it off the list.")
        elif lines < allowed and name in listed:
            wrong.append(f"{name} has shrunk to {lines} lines: list it with that.")
    return wrong + [f"{name} is no more: take it off the list." for name in sorted(set(listed) - set(found))]


def test_no_module_is_large() -> None:
    found = {name: lines for name, (lines, _) in trees().items()}
    assert held(found, LARGE, MODULE_LINES_MAX) == []


def test_no_function_is_long() -> None:
    found = {f"{name}:{at}": lines for name, (_, tree) in trees().items() for at, lines in functions(tree)}
    assert held(found, LONG, FUNCTION_LINES_MAX) == []


def test_the_ratchet_only_turns_one_way() -> None:
    listed = {"grown": 60, "shrunk": 60, "done": 60, "gone": 60, "same": 60}
    found = {"grown": 61, "shrunk": 55, "done": 50, "same": 60, "new": 51, "short": 50}
    said = held(found, listed, 50)
    assert [sentence.split()[0] for sentence in said] == ["done", "grown", "new", "shrunk", "gone"]


# -- circles


def module_of(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts[1:]).removesuffix(".__init__")


def package_of(module: str) -> str:
    """Of `antdt_streams.ledger.core.state` that is `antdt_streams.ledger.core`; what lies in none, as `antdt.agent`, is
    a package by itself, and so are the outermost ones, which only hand names on.
    """
    packages = {module_of(path) for path in trees() if path.endswith("__init__.py")}
    inside = module if module in packages else module.rpartition(".")[0]
    return inside if "." in inside else module


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Full names of what a module imports, wherever in it: an import in a function is one all the same."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def known() -> dict[str, set[str]]:
    """Package -> the packages that its modules import."""
    modules = {module_of(path) for path in trees()}
    out: dict[str, set[str]] = {}
    for path, (_, tree) in trees().items():
        package = package_of(module_of(path))
        others = out.setdefault(package, set())
        for name in imports_of(tree):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and package_of(name) != package:
                others.add(package_of(name))
    return out


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of packages, or nothing."""
    done: set[str] = set()

    def walk(package: str, above: list[str]) -> list[str]:
        if package in above:
            return [*above[above.index(package) :], package]
        if package in done:
            return []
        done.add(package)
        for other in sorted(graph.get(package, ())):
            if found := walk(other, [*above, package]):
                return found
        return []

    for package in sorted(graph):
        if found := walk(package, []):
            return found
    return []


def test_packages_do_not_know_each_other_in_circles() -> None:
    found = circle({package: {o for o in others if (package, o) not in BACK} for package, others in known().items()})
    assert not found, " knows ".join(found)
    for package, other in BACK:
        without = {p: {o for o in others if (p, o) not in BACK - {(package, other)}} for p, others in known().items()}
        assert circle(without), f"{package} and {other} no longer know each other in a circle: take them off the list."


@pytest.mark.parametrize(
    ("graph", "expected"),
    [({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]), ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, [])],
)
def test_a_circle_is_found(graph: dict[str, set[str]], expected: list[str]) -> None:
    assert circle(graph) == expected
