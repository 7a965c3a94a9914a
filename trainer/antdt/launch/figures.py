"""Metrics of a launch: which of its workers run, what they are at, and how they have ended.

Owns a child process that serves them, and a pipe to it: a launcher has no threads. What does not fit into the pipe is
dropped, as the next line says all of it anew. Must not know why a worker is started again.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkProcess
from time import monotonic
from typing import Any

from antdt_schemas import figures
from antdt_schemas.exporting import Exporter, Where
from antdt_schemas.figures import Family, Kind, Metric

from antdt.host import whereabouts
from antdt.host.child import in_child
from antdt.launch.slots import Slots, State

EVERY_S = 1.0
PR_SET_NAME, NAME = 15, "antdt-metrics"  # as `ps` calls it: 15 bytes at most

WORKERS = Metric("antdt_launch_workers", Kind.GAUGE, "Workers and servers of this launch by what they are.", ("state",))
PHASES = Metric("antdt_launch_phase", Kind.GAUGE, "Those that run by what they are at.", ("phase",))
RESTARTS = Metric("antdt_worker_restarts_total", Kind.COUNTER, "How often this launch has started one again.")
ENDS = Metric(
    "antdt_worker_exits_total",
    Kind.COUNTER,
    "How those that ended have: exit status, negative for a signal.",
    ("status",),
)
STEP = Metric("antdt_launch_step", Kind.GAUGE, "Newest step that a worker of this launch is in.")


class Shown:
    """The launcher's end of it. Without a port nothing is done."""

    def __init__(self, where: Where, job: str) -> None:
        where.check()
        self._where, self._job = where, job
        self._child: ForkProcess | None = None
        self._handle, self._told_s = -1, 0.0

    @property
    def handles(self) -> list[int]:
        return [self._handle] if self._handle >= 0 else []

    def begin(self, closes: Sequence[int]) -> None:
        """closes: descriptors that are the launcher's alone."""
        if self._where.port is None:
            return
        reading, self._handle = os.pipe()
        os.set_blocking(self._handle, False)
        others = [self._handle, *closes]
        self._child = in_child(lambda: _serve(self._where, self._job, reading, others))
        os.close(reading)

    def tell(self, slots: Slots, pages: Mapping[str, whereabouts.Page]) -> None:
        """Now and then what is so now. Cheap: call it as often as you like."""
        if self._handle < 0 or monotonic() - self._told_s < EVERY_S:
            return
        self._told_s = monotonic()
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._handle, json.dumps(standing(slots, pages)).encode() + b"\n")

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join()
            os.close(self._handle)
            self._child, self._handle = None, -1


def standing(slots: Slots, pages: Mapping[str, whereabouts.Page]) -> dict[str, Any]:
    """What a launch is worth in numbers, ready for JSON."""
    states = Counter(slot.state.value for slot in slots.slots.values())
    phases = Counter(pages[name].phase.name.lower() for name, slot in slots.slots.items() if slot.lives)
    return {
        "workers": {state.value: states[state.value] for state in State},
        "phases": {phase.name.lower(): phases[phase.name.lower()] for phase in whereabouts.At},
        "restarts": sum(slot.restarts for slot in slots.slots.values()),
        "ends": {str(code): count for code, count in sorted(slots.ends.items())},
        "step": max(page.numbers[whereabouts.STEP] for page in pages.values()),
    }


def families(told: Mapping[str, Any]) -> Iterable[Family]:
    yield WORKERS, {(state,): count for state, count in told["workers"].items()}
    yield PHASES, {(phase,): count for phase, count in told["phases"].items()}
    yield ENDS, {(status,): count for status, count in told["ends"].items()}
    yield RESTARTS.of(told["restarts"])
    yield STEP.of(told["step"])


def _serve(where: Where, job: str, reading: int, closes: Sequence[int]) -> None:
    """The life of the child: until the launcher ends, or its end of the pipe is closed."""
    for handle in closes:
        os.close(handle)
    ctypes.CDLL(None).prctl(PR_SET_NAME, NAME.encode())
    logging.basicConfig(format="antdt launch: %(message)s", level=logging.INFO, force=True)
    newest: dict[str, Any] = {}
    told_s, changed = monotonic(), threading.Lock()

    def found() -> Iterable[Family]:
        with changed:
            said, age_s = dict(newest), monotonic() - told_s
        return [figures.LOOP_AGE.of(age_s), *(families(said) if said else ())]

    if Exporter(job, "launch", found).serve(where) is None:
        return
    with os.fdopen(reading) as lines:
        for line in lines:
            with changed:
                newest, told_s = json.loads(line), monotonic()
