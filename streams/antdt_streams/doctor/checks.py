"""What a check is, and how one is carried out: within its time, and whatever becomes of it.

Owns the words of a result. Must not know what anybody looks at. A check only looks: it writes no record, creates no
topic, and leaves no file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError
from antdt_schemas.reaching import within

Item = TypeVar("Item")
T = TypeVar("T")


class Level(StrEnum):
    """FAULT: a job would not run. UNKNOWN: it could not be looked at."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    UNKNOWN = "not looked at"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and what mends it where something is wrong."""

    level: Level
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.level in (Level.OK, Level.UNKNOWN), f"{self.found}: what mends it?"


def ok(found: str) -> Finding:
    return Finding(Level.OK, found)


def warning(found: str, fix: str) -> Finding:
    return Finding(Level.WARNING, found, fix)


def fault(found: str, fix: str) -> Finding:
    return Finding(Level.FAULT, found, fix)


def unknown(why: str) -> Finding:
    return Finding(Level.UNKNOWN, why)


@dataclass
class Setup:
    """What is looked at. connection: None where the settings cannot be read, or nobody says where a broker is.

    named: somebody says where the broker is; if not, `antdt up` would start one. absent: why a check cannot be made, by
    what it needs; checks write into it. roles: whose rights are asked for, empty: whichever this client has. shared:
    what one check has found and others need.
    """

    environ: Mapping[str, str]
    data: Path
    connection: Connection | None = None
    named: bool = False
    job: str = ""
    roles: Sequence[str] = ()
    absent: dict[str, str] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> Connection:
        """For checks that need a broker."""
        assert self.connection is not None
        return self.connection


@dataclass(frozen=True, slots=True)
class Check:
    """looks_at: for people. needs: of `Setup.absent`; with one of them missing it is not made. bound_s: its time."""

    name: str
    looks_at: str
    look: Callable[[Setup], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    bound_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    check: Check
    findings: tuple[Finding, ...]


def examine(checks: Iterable[Check], setup: Setup) -> Iterator[Result]:
    """Each check's result as soon as it is there. None of them ends this, and none takes longer than its bound."""
    for check in checks:
        missing = next((setup.absent[need] for need in check.needs if need in setup.absent), None)
        if missing is not None:
            yield Result(check, (unknown(missing),))
            continue
        late = unknown(f"it did not come to an end within {check.bound_s:g} s")
        yield Result(check, within(check.bound_s, partial(_looked, check, setup), (late,)))


def _looked(check: Check, setup: Setup) -> tuple[Finding, ...]:
    """A refusal of ours is a fault with its own words; anything else that goes wrong says that it could not look."""
    try:
        return tuple(check.look(setup))
    except AntdtError as error:
        return (of_error(error),)
    except Exception as error:  # noqa: BLE001  one check must not end the others
        return (unknown(f"{type(error).__name__}: {error}"),)


def each(items: Sequence[Item], ask: Callable[[Item], T], seconds: float) -> list[T | None]:
    """What was found of each, all at once; None where it took longer."""
    boxes: list[list[T]] = [[] for _ in items]

    def one(item: Item, box: list[T]) -> None:
        box.append(ask(item))

    pairs = zip(items, boxes, strict=True)
    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    until_s = monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until_s - monotonic()))
    return [box[0] if box else None for box in boxes]


def of_error(error: AntdtError) -> Finding:
    """What a command would end with, and its hint."""
    said = str(error)
    if error.hint:
        return fault(said.removesuffix(error.hint).strip(), error.hint)
    return fault(said, "change what it names")
