"""A job at a glance: what `antdt top` shows. Owns the numbers and the words, not how they are drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.strategies import WATCHED
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, SHARD_LOG, STEPS

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.proof.walker import Read
from antdt_streams.views.control import SLOW, Control, WorkerView
from antdt_streams.views.follow import Follow
from antdt_streams.views.job import newest_state
from antdt_streams.views.progress import Progress
from antdt_streams.views.projection import Projection

STEPS_READ, MEASUREMENTS_READ = 2_000, 64
DECISIONS_KEPT = 8


class Newest(Projection["tuple[int, int]"]):
    """Offset and time of the newest entry."""

    def __init__(self, fold: Fold) -> None:
        self.offset, self.time_ms = fold.position.next_offset - 1, 0

    def on_entry(self, read: Read) -> None:
        self.offset, self.time_ms = read.offset, read.time_ms

    def view(self) -> tuple[int, int]:
        return self.offset, self.time_ms


class Top:
    """One job, followed from its newest state on. Read `document` under `follow.changed`, or once it stands still."""

    def __init__(self, connection: Connection, job: str) -> None:
        """Raises UnknownJob."""
        self.job, self._fold = job, newest_state(connection, job)[0]
        self.progress, self.control, self.newest = Progress(), Control(), Newest(self._fold)
        topics = (SHARD_LOG, DECISIONS, MEASUREMENTS, STEPS)
        lasts = {MEASUREMENTS.suffix: MEASUREMENTS_READ, STEPS.suffix: STEPS_READ}
        projections = (self.progress, self.control, self.newest)
        self.follow = Follow(connection, job, topics, *projections, fold=self._fold, lasts=lasts)

    def document(self, now_s: float | None = None) -> dict[str, Any]:
        """All that is shown, ready for JSON. Every number of the log is as of `offset`."""
        state, office = self._fold.state, self._fold.office
        workers = [row(name, view) for name, view in self.control.workers.items()]
        workers.sort(key=lambda one: (-one["own_ms_a_sample"], one["worker"]))
        now_s = time.time() if now_s is None else now_s
        watched = state is not None and state.spec.strategy == WATCHED
        age_s = max(0.0, now_s - self.newest.time_ms / 1000) if self.newest.time_ms else None
        return {
            "job": self.job,
            "offset": self.newest.offset,
            "verdict": verdict(workers),
            "watched": watched,
            "samples": samples(self._fold),
            "step": self._step(),
            "generation": state.members.generation if state else 0,
            "members": len(state.members.group) if state else 0,
            "done": state.done if state else None,
            "workers": workers,
            "decisions": [
                {"plan": one.plan, "action": str(one.action), "reason": one.reason}
                for one in self.control.decisions[-DECISIONS_KEPT:]
            ],
            "leader": office.owner if office else None,
            "void_entries": self._fold.void_entries,
            "last_entry_s": age_s,
        }

    def _step(self) -> int:
        """The newest committed one; where nothing is committed, the newest that a worker has told of."""
        state = self._fold.state
        told = (view.step for view in self.control.workers.values())
        if state is not None and state.spec.strategy == WATCHED:
            return max(told, default=0)
        return state.line.committed if state else 0


def samples(fold: Fold) -> dict[str, int]:
    """Where the samples of all epochs are: all but the first add up to it."""
    state = fold.state
    if state is None:
        return {"total": 0, "committed": 0, "leased": 0, "quarantined": 0, "left": 0}
    total, committed, quarantined = state.samples_total, state.shards.committed_total, state.shards.quarantined_total
    leased = sum(lease.end - lease.front for lease in state.shards.leases.values())
    left = total - committed - leased - quarantined
    return {"total": total, "committed": committed, "leased": leased, "quarantined": quarantined, "left": left}


def row(name: str, view: WorkerView) -> dict[str, Any]:
    """One worker. Times are means over its newest steps, in milliseconds."""
    taken, seconds = sum(n for n, _ in view.own_s), sum(s for _, s in view.own_s)
    return {
        "worker": name,
        "class": view.node_class,
        "batch_size": view.batch_size,
        "plan": view.plan,
        "samples_per_s": round(view.samples_per_s, 1),
        "own_ms": round(1e3 * seconds / len(view.own_s), 2) if view.own_s else 0.0,
        "own_ms_a_sample": round(1e3 * seconds / taken, 4) if taken else 0.0,
        "wait_ms": round(1e3 * view.wait_s, 2),
    }


def verdict(workers: Sequence[Mapping[str, Any]]) -> str:
    """The one sentence on top. workers: the slowest first."""
    if not workers:
        return "No worker has said anything of a step yet."
    slow = [one for one in workers if one["class"] in SLOW]
    if not slow:
        return f"All {len(workers)} workers are as fast as their kind."
    middle = median_low(one["own_ms_a_sample"] for one in workers)
    times = f", {slow[0]['own_ms_a_sample'] / middle:.1f} times the median" if middle else ""
    others = f"; so are {len(slow) - 1} others" if len(slow) > 2 else f"; so is {slow[1]['worker']}" if slow[1:] else ""
    return f"{slow[0]['worker']} is slow ({slow[0]['class']}{times}){others}."
