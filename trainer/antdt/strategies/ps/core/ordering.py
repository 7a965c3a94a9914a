"""The primary server's decisions: which contributions make the next version, and who is answered when.

Rules
    Nothing is included before every server has staged its part of it.
    A contribution is included once: n is dense for each incarnation, and its attempts share the number.
    bsp: who comes too late for its version is told so once, and computes the same ranges on the newer parameters; a
    second time it is carried into the next version as it is. So no contribution is lost, and no worker starves.
    Where what is late is dropped, that was the end of it: the next contribution has the next number.
    A worker that has asked for parameters counts from that point of the order on, so that it is never late at once.
    What a lost incarnation has pushed and no version holds is dropped, and nothing of it is included any more.

Owns versions, lineage and the order's numbers. Must not know tensors, sockets or the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from antdt_schemas.lineage import next_lineage

from antdt.strategies.ps.core.facts import PULL, Contribution, Included, Key, Mode, Order, Version


@dataclass(slots=True)
class Worker:
    """What the primary knows of an incarnation. included: the newest n in a version. clock: how many contributions of
    it there are, as if it had begun with the slowest. owed: what it waits for, included and not answered. idle: it has
    no samples for now.
    """

    included: int = 0
    clock: int = 0
    active: bool = False
    owed: Key | None = None
    idle: bool = False


class Ordering:
    """The order of one generation. `versions`: decided and not yet taken by the caller. `backup`: k of the plan.

    Invariant: a contribution is in `_staging` (some servers have it), then in `_ready`, then in one version or dropped.
    """

    def __init__(self, mode: Mode, servers: int, version: int, lineage: bytes) -> None:
        self.mode, self.servers, self.version, self.lineage = mode, servers, version, lineage
        self.plan, self.factor = 0, 1.0
        self.versions: list[Version] = []
        self._number, self._backup = 0, 0
        self._workers: dict[str, Worker] = {}
        self._lost: set[str] = set()
        self._staging: dict[Key, set[int]] = {}
        self._facts: dict[Key, Contribution] = {}  # as the primary itself was told
        self._ready: dict[str, Contribution] = {}

    @property
    def active(self) -> tuple[str, ...]:
        """Who is waited for."""
        return tuple(name for name, worker in self._workers.items() if worker.active)

    @property
    def somebody_is_idle(self) -> bool:
        """Whether some worker has no samples for now."""
        return any(worker.idle for worker in self._workers.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way into a version."""
        return not self._ready and not any(key.attempt != PULL for key in self._staging)

    # -- what servers report

    def on_staged(self, server: int, key: Key, facts: Contribution | None = None) -> list[Order]:
        """A server has its part of a contribution, or of a pull. facts: given once, by the primary's own part."""
        if key.incarnation in self._lost:
            return []
        at = self._staging.setdefault(key, set())
        assert server not in at, f"server {server} has staged {key} twice"
        at.add(server)
        if facts is not None:
            self._facts[key] = facts
        if len(at) < self.servers:
            return []
        del self._staging[key]
        return self._on_ready(self._facts.pop(key))

    def _on_ready(self, contribution: Contribution) -> list[Order]:
        key = contribution.key
        worker = self._workers.setdefault(key.incarnation, Worker())
        assert worker.owed is None and key.incarnation not in self._ready, f"{key} while another one is open"
        assert key.n == worker.included + 1, f"{key} follows {worker.included}"
        assert contribution.base <= self.version, f"{key} was computed on {contribution.base} of {self.version}"
        self._activate(worker)
        if key.attempt == PULL:
            return [self._order(answer=(key,))]
        if self.mode.kind == "bsp" and contribution.base < self.version and key.attempt == 0:
            if self.mode.drops:
                worker.included = key.n  # in no version, and nothing of this number follows
            return [self._order(late=(key,))]
        self._ready[key.incarnation] = contribution
        return self._close()

    def _activate(self, worker: Worker) -> None:
        if not worker.active:
            slowest = self._slowest(worker.clock)
            worker.clock = min(max(worker.clock, slowest), slowest + self.mode.staleness)
            worker.active, worker.idle = True, False

    # -- what workers and the ledger say

    def on_idle(self, incarnation: str) -> list[Order]:
        """It has no samples for now: nobody waits for it until it pulls again."""
        worker = self._workers.get(incarnation)
        if worker is None or not worker.active:
            return []
        assert worker.owed is None and incarnation not in self._ready, f"{incarnation} is idle in a contribution"
        worker.active, worker.idle = False, True
        return self._close()

    def on_bye(self, incarnation: str) -> list[Order]:
        """It leaves for good: what it has pushed is included all the same."""
        worker = self._workers.get(incarnation)
        if worker is None:
            return []
        worker.active, worker.idle = False, False
        return self._close()

    def on_lost(self, incarnations: Iterable[str]) -> list[Order]:
        """The ledger has given them up: what they pushed is dropped where it is in no version, for good."""
        new = tuple(sorted(set(incarnations) - self._lost))
        if not new:
            return []
        self._lost.update(new)
        for incarnation in new:
            self._workers.pop(incarnation, None)
            self._ready.pop(incarnation, None)
        for key in [key for key in self._staging if key.incarnation in self._lost]:
            del self._staging[key]
            self._facts.pop(key, None)
        return [self._order(drop=new), *self._close()]

    def set_backup(self, backup: int) -> list[Order]:
        """So many workers need not be waited for."""
        self._backup = backup
        return self._close()

    def mark(self, name: str) -> list[Order]:
        """A checkpoint is taken at this point."""
        return [self._order(save=name)]

    # -- versions

    def _close(self) -> list[Order]:
        """All versions that are due, and answers that are due without one."""
        orders = []
        while due := self._due():
            orders.append(self._include(due))
        if answers := self._answers():
            orders.append(self._order(answer=answers))
        return orders

    def _due(self) -> list[Contribution]:
        ready = list(self._ready.values())
        if self.mode.kind != "bsp":
            return ready[:1]
        wanted = max(1, len(self.active) - self._backup)
        return ready if len(ready) >= wanted else []

    def _include(self, due: list[Contribution]) -> Order:
        before = self.version
        self.version += 1
        flat = tuple(number for one in due for number in without_tokens(one.ranges))
        self.lineage = next_lineage(self.lineage, self.version, flat)
        for one in due:
            incarnation = one.key.incarnation
            del self._ready[incarnation]
            worker = self._workers[incarnation]
            worker.included, worker.owed, worker.clock = one.key.n, one.key, worker.clock + 1
        told = tuple(Included(one.key.incarnation, one.ranges, one.samples, before - one.base) for one in due)
        self.versions.append(Version(self.version, told, self.lineage, self.plan))
        return self._order(include=tuple(one.key for one in due), answer=self._answers())

    def _answers(self) -> tuple[Key, ...]:
        """Who may go on, and does not know it yet."""
        slowest, found = self._slowest(0), []
        for worker in self._workers.values():
            if worker.owed is not None and self._may_go_on(worker, slowest):
                found.append(worker.owed)
                worker.owed = None
        return tuple(found)

    def _may_go_on(self, worker: Worker, slowest: int) -> bool:
        return self.mode.kind != "ssp" or worker.clock - slowest <= self.mode.staleness

    def _slowest(self, otherwise: int) -> int:
        return min((worker.clock for worker in self._workers.values() if worker.active), default=otherwise)

    def _order(
        self,
        include: tuple[Key, ...] = (),
        answer: tuple[Key, ...] = (),
        late: tuple[Key, ...] = (),
        drop: tuple[str, ...] = (),
        save: str = "",
    ) -> Order:
        self._number += 1
        at = self._number, self.version, self.lineage
        return Order(*at, include, answer, late, drop, self.plan, self.factor, save)


def without_tokens(ranges: tuple[int, ...]) -> list[int]:
    """Flat quadruples (lease, epoch, start, length), as lineages are made of, from quintuples."""
    assert len(ranges) % 5 == 0, ranges
    return [number for at, number in enumerate(ranges) if at % 5 != 1]
