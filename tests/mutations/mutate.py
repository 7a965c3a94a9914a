"""Taking a rule out of our own code: a piece of a function's text is replaced, and every reference to it follows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

Check = Callable[[], object]


@dataclass(frozen=True)
class Edit:
    """In this function, `old` (which occurs exactly once) becomes `new`."""

    function: Any
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """A rule of the protocol that is taken out, and what notices: a check that passes with it and fails without."""

    rule: str
    name: str
    edits: tuple[Edit, ...]
    check: Check


@contextmanager
def taken_out(edits: tuple[Edit, ...]) -> Iterator[None]:
    """Our code without the rule."""
    functions = {id(edit.function): getattr(edit.function, "__func__", edit.function) for edit in edits}
    before = {key: function.__code__ for key, function in functions.items()}
    try:
        for key, function in functions.items():
            function.__code__ = _changed(function, [e for e in edits if id(e.function) == key])
        yield
    finally:
        for key, function in functions.items():
            function.__code__ = before[key]


def _changed(function: Any, edits: list[Edit]) -> Any:
    text = inspect.getsource(function)
    for edit in edits:
        assert text.count(edit.old) == 1, f"{edit.old!r} is {text.count(edit.old)} times in {function.__qualname__}"
        text = text.replace(edit.old, edit.new)
    scope: dict[str, Any] = {}
    # A method keeps its indentation; one that says super() must know that it is in a class.
    block = "" if text[0] != " " else "class Class:\n" if function.__closure__ else "if True:\n"
    source = "from __future__ import annotations\n" + block + text
    exec(compile(source, function.__code__.co_filename, "exec"), function.__globals__, scope)
    made = (vars(scope["Class"]) if "Class" in scope else scope)[function.__name__]
    return getattr(getattr(made, "fget", made), "__func__", getattr(made, "fget", made)).__code__


def fails(check: Check) -> str:
    """What the check has to say; an empty text if it passes. Whatever goes wrong is noticed."""
    try:
        check()
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return ""
