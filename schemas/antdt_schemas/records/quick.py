"""Constructors of records in half of their time.

The one that a frozen class is given sets each field through `object.__setattr__`, which looks the field up by its name;
this one goes to its slot. What it takes, its defaults and its annotations are the same. Must not know any record.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any


def quicken(kinds: Iterable[type[Any]]) -> None:
    """Give these classes, which are frozen dataclasses with slots, such a constructor, each when it is first used."""
    for kind in kinds:
        kind.__init__ = _first(kind, kind.__init__)  # type: ignore[method-assign]


def _first(kind: type[Any], usual: Any) -> Any:
    @wraps(usual)
    def first(self: Any, *args: Any, **named: Any) -> None:
        made = _constructor(kind)
        for name in ("__module__", "__qualname__", "__annotations__", "__defaults__"):
            setattr(made, name, getattr(usual, name))
        kind.__init__ = made  # type: ignore[method-assign]
        made(self, *args, **named)

    return first


def _constructor(kind: type[Any]) -> Any:
    known = fields(kind)
    assert not hasattr(kind, "__post_init__"), kind
    assert all(f.init and not f.kw_only and f.default_factory is MISSING for f in known), kind
    places = {f"_put_{f.name}": getattr(kind, f.name).__set__ for f in known}
    takes = [f.name if f.default is MISSING else f"{f.name}=None" for f in known]
    puts = [f"        _put_{f.name}(self, {f.name})" for f in known]
    head = f"    def __init__({', '.join(['self', *takes])}):"
    text = [f"def make({', '.join(places)}):", head, *(puts or ["        pass"]), "    return __init__"]
    made: dict[str, Any] = {}
    exec("\n".join(text), vars(sys.modules[kind.__module__]), made)
    return made["make"](**places)
