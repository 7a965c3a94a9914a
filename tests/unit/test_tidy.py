"""How large a module and a function may be, and that packages do not know each other in circles.

`LARGE` and `LONG` are a ratchet: what is in them may only shrink, and leaves them as soon as it can.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SIDES = ("schemas/antdt_schemas", "streams/antdt_streams", "trainer/antdt")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50

# Modules that are larger: lines.
LARGE: dict[str, int] = {}
# Functions that are longer: lines.
LONG: dict[str, int] = {}


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


# -- where tensors are made

FACTORIES = ("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm")
FACTORIES += ("tensor", "zeros")


def test_tensors_of_ours_are_where_they_are_whatever_the_default_device_is() -> None:
    """A script that calls torch.set_default_device("cuda") must not move what is sent, compared and written."""
    found = [
        f"{name}:{call.lineno}"
        for name, (_, tree) in trees().items()
        if name.startswith("trainer/antdt/") and "/examples/" not in name
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and (call.func.value.id, call.func.attr) in [("torch", factory) for factory in FACTORIES]
        and not any(word.arg == "device" for word in call.keywords)
    ]
    assert found == [], "say device="


# -- circles

OUTERMOST = tuple(Path(side).name for side in SIDES)


@cache
def modules() -> grimp.ImportGraph:
    """Which module imports which, wherever in it: an import in a function is one all the same."""
    return grimp.build_graph(*OUTERMOST, cache_dir=None)


def known(graph: grimp.ImportGraph, within: str) -> dict[str, set[str]]:
    """The packages of one package (of "" the outermost ones) -> those of them that they import. Each stands for all
    that is in it. What lies in none is one more, by the name of the package; but in the outermost ones each module
    stands for itself, as these only hand names on.
    """

    def package_of(module: str) -> str:
        child = ".".join(module.split(".")[: within.count(".") + 2 if within else 1])
        return child if within in ("", *OUTERMOST) or graph.find_children(child) else within

    out: dict[str, set[str]] = {}
    inside = {m for m in graph.modules if f"{m}.".startswith(f"{within}." if within else "")}
    for module in inside:
        others = {package_of(m) for m in graph.find_modules_directly_imported_by(module) & inside}
        out.setdefault(package_of(module), set()).update(others - {package_of(module)})
    return out


def circle(knows: dict[str, set[str]]) -> list[str]:
    """One circle of packages, or nothing."""
    try:
        TopologicalSorter(knows).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


def packages() -> list[str]:
    return ["", *sorted(m for m in modules().modules if modules().find_children(m))]


@pytest.mark.parametrize("within", packages())
def test_packages_do_not_know_each_other_in_circles(within: str) -> None:
    found = circle(known(modules(), within))
    assert not found, " knows ".join(found)


def graph_of(*imports: tuple[str, str]) -> grimp.ImportGraph:
    graph = grimp.ImportGraph()
    for pair in imports:
        for name in pair:
            for end in range(1, len(name.split(".")) + 1):
                graph.add_module(".".join(name.split(".")[:end]))
        graph.add_import(importer=pair[0], imported=pair[1])
    return graph


@pytest.mark.parametrize(
    ("within", "imports", "expected"),
    [
        ("antdt", [("antdt.a.x", "antdt.b.x"), ("antdt.b.y", "antdt.a.y")], {"antdt.a", "antdt.b"}),
        # By way of a package below, of a module that lies in none, and of three.
        ("antdt", [("antdt.a.x", "antdt.b.x"), ("antdt.b.in.y", "antdt.a.y")], {"antdt.a", "antdt.b"}),
        ("antdt", [("antdt.a.x", "antdt.loose"), ("antdt.loose", "antdt.a.y")], {"antdt.a", "antdt.loose"}),
        ("antdt", [("antdt.a.x", "antdt.b.x"), ("antdt.b.x", "antdt.c.x"), ("antdt.c.y", "antdt.a.y")], {"antdt.c"}),
        ("antdt.a", [("antdt.a.in.x", "antdt.a.y"), ("antdt.a.z", "antdt.a.in.x")], {"antdt.a", "antdt.a.in"}),
        ("", [("antdt.a", "antdt_streams.a"), ("antdt_streams.b", "antdt.b")], {"antdt", "antdt_streams"}),
        # Modules of one package are not packages.
        ("antdt.a", [("antdt.a.x", "antdt.a.y"), ("antdt.a.y", "antdt.a.x")], set()),
        ("antdt", [("antdt.a.x", "antdt.b.x"), ("antdt.a.x", "antdt.c.x"), ("antdt.b.x", "antdt.c.x")], set()),
    ],
)
def test_a_circle_is_found(within: str, imports: list[tuple[str, str]], expected: set[str]) -> None:
    found = circle(known(graph_of(*imports), within))
    assert set(found) >= expected
    assert bool(found) == bool(expected)
