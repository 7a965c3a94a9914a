"""A page of a job that lies in memory: no broker, no clock, but the very server, and the projections that feed it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.container import LogEntry
from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Assignment, Cause, Decision, Effect, NodeClass, NodeMeasurement, Verdict
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, STEPS
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES
from antdt_streams.views.glance import Glance, View
from antdt_streams.views.projection import Feed
from antdt_streams.web.actions import Actions
from antdt_streams.web.live import Live
from antdt_streams.web.server import Page, application
from antdt_streams.web.viewers import Viewers
from antdt_streams.web.watched import Watched

from tests.helpers import zombie

JOB = "memory"
NOWHERE = Connection("localhost:9")
BEGUN_MS = 1_700_000_000_000


def step_batch(worker: str, first: int, steps: int, compute_s: float, wait_s: float, plan: int = 0) -> Any:
    columns = ((0.002,) * steps, (compute_s,) * steps, (0.004,) * steps, (wait_s,) * steps)
    numbers = tuple(range(first, first + steps))
    return records.StepBatch(
        worker, f"{worker}.0.x", 1, "n", "", 0, 0, numbers, (32,) * steps, (plan,) * steps, *columns
    )


def node(worker: str, ms: float, kind: NodeClass = NodeClass.HEALTHY) -> NodeMeasurement:
    return NodeMeasurement(worker, f"{worker}.0.x", "worker", kind, 0.0, ms / 1e3, 0.05, 0.0, 32, 6, 0)


def measurement(nodes: Iterable[NodeMeasurement], window: int = 7) -> records.Measurement:
    return records.Measurement(
        Cause(0, 9, 0), window, False, 1, 5 * window, 1, tuple(nodes), False, (), 0.0, 0, 9, "allreduce", 0.1, 640.0
    )


def decision(plan: int, shares: dict[str, int], cause: int, effect: Effect | None = None, **other: Any) -> Decision:
    action = Action.NONE if effect else other.pop("action", Action.ADJUST_BS)
    assignments = tuple(Assignment(worker, size, 1) for worker, size in shares.items())
    reason = other.pop("reason", f"w1 needs 3.0x the median time, says plan {plan}")
    return Decision(Cause(0, cause, 0), plan, action, assignments, 1.0, 0, other.pop("target", ""), "nd", 1, reason,
                    0.4, cause, cause, effect=effect)  # fmt: skip


def effect_of(cause: int, plan: int) -> Effect:
    return Effect(Cause(0, cause, 0), Action.ADJUST_BS, plan, "", 0.4, 0.37, 0.02, 4, 40, 1.5, Verdict.HELPED)


def told(workers: int, steps: int = 32) -> Iterator[tuple[Any, Any, int, int]]:
    """Topic, record, offset, time of each record of a job in which w1 is slow."""
    for number in range(workers):
        compute_s = 0.12 if number == 1 else 0.04 + 0.000001 * number
        yield STEPS, step_batch(f"w{number}", 1, steps, compute_s, 0.126 - compute_s), number, BEGUN_MS + number
    nodes = (node(f"w{n}", 3.75 if n == 1 else 1.25, NodeClass.PERSISTENT if n == 1 else NodeClass.HEALTHY)
             for n in range(workers))  # fmt: skip
    yield MEASUREMENTS, measurement(nodes), 4, BEGUN_MS + 60_000
    yield DECISIONS, decision(1, {"w0": 40, "w1": 24}, 3), 0, BEGUN_MS + 61_000
    yield DECISIONS, decision(1, {}, 4, effect_of(3, 1)), 1, BEGUN_MS + 62_000
    yield DECISIONS, decision(2, {"w0": 44, "w1": 20}, 5), 2, BEGUN_MS + 63_000


def glance_of(workers: int = 2, entries: int | None = None, steps: int = 32) -> Glance:
    """What is known after so many entries of a log of two steps."""
    fold = Fold(cached=False)
    found = Glance(JOB, fold)
    log = zombie.log(haunted=True)[0][:entries]
    Feed(*found.projections, fold=fold).entries(LogEntry(n, BEGUN_MS + 1000 * n, payload) for n, payload in log)
    for topic, record, offset, time_ms in told(workers, steps):
        for projection in found.projections:
            projection.on_record(topic, record, offset, time_ms)
    return found


class StillFollow:
    """A follow that has read all that there is."""

    def __init__(self) -> None:
        self.changed, self.current, self.changes, self.failure = threading.Condition(), threading.Event(), 1, None
        self.sources: list[Any] = []
        self.current.set()


class MemoryLive(Live):
    """A job in memory. `at` reads the same log up to an entry."""

    workers = 2

    def run(self) -> None:
        self.top = glance_of(self.workers)  # type: ignore[assignment]
        self.top.follow = StillFollow()  # type: ignore[union-attr]
        services = {name: {"answers": True, "behind": 0, "said": "answers"} for name in SERVICES}
        self.health = {"as_of_ms": BEGUN_MS, "services": services, "dead_letters": {"count": 0, "newest": None}}
        self.begun.set()

    def at(self, offset: int, view: View) -> dict[str, Any]:
        assert self.top is not None
        end = self.top.newest.offset
        if offset > end:
            raise UsageError(f"The log of job {self.job} has no entry at offset {offset}: it has {end + 1}, from 0 on.")
        found = glance_of(self.workers, offset + 1).document(view)
        return self._framed(found) | {"live": False, "end": end, "trouble": None, "health": {}}


def page_of(token: str | None = None, workers: int = 2, viewers: int = 8, **more: Any) -> Page:
    """A page of the job in memory."""
    kind = type("Memory", (MemoryLive,), {"workers": workers})
    watched = Watched(NOWHERE, JOB, make=kind)
    return Page(Place(NOWHERE, True, Path("nowhere"), None), watched, Actions(token), Viewers(viewers), **more)


@asynccontextmanager
async def served(page: Page) -> AsyncIterator[str]:
    """Its address, while it is served on a free port of this machine."""
    from aiohttp import web

    runner = web.AppRunner(application(page), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        await asyncio.sleep(0)
