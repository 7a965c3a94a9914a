"""A seeded world of the order of contributions: the real `core` of every server, links in memory that are first in,
first out, and workers that stall, come late, run out of samples and die. Judged while it runs.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from antdt.strategies.ps.core.facts import PULL, Contribution, Key, Mode, Order
from antdt.strategies.ps.core.ordering import Ordering
from antdt.strategies.ps.core.staging import Answer, Apply, Item, Save, Staging
from antdt_schemas.lineage import ROOT

STEPS_A_WORKER, TURNS_MAX = 8, 20_000


class Worker:
    """What an exchange does: one contribution is open at a time."""

    def __init__(self, name: str) -> None:
        self.name, self.n, self.attempt, self.base, self.clock = name, 0, 0, -1, 0
        self.left, self.dead, self.idle = STEPS_A_WORKER, False, False
        self.waits: dict[int, tuple[str, int]] | None = None  # of each server what it has answered
        self.key: Key | None = None

    @property
    def is_done(self) -> bool:
        return self.left == self.attempt == 0 and self.waits is None


class World:
    """One generation. `run` ends when every worker that lives has all of its contributions in the model."""

    def __init__(self, seed: int, kind: Any = None) -> None:
        rng = self.rng = random.Random(seed)
        self.mode = Mode(kind or rng.choice(("bsp", "asp", "ssp")), rng.choice((0, 1, 3)))
        self.servers = rng.choice((1, 2, 3))
        self.ordering = Ordering(self.mode, self.servers, 0, ROOT)
        self.staging = [Staging(0, ROOT) for _ in range(self.servers)]
        self.applied: list[list[tuple[Key, ...]]] = [[] for _ in range(self.servers)]
        self.saves: list[list[tuple[str, int]]] = [[] for _ in range(self.servers)]
        self.links: dict[Any, deque[Any]] = {}
        self.workers = [Worker(f"w{number}") for number in range(rng.choice((1, 2, 3, 4)))]
        self.lost: set[str] = set()
        self.settled: dict[str, set[Key]] = {}  # of a lost worker what was in versions when the primary was told
        self.slow = rng.choice((None, *range(self.servers)))  # a server whose messages are taken seldom
        self.counts = {"late": 0, "carried": 0, "dropped": 0, "idle": 0, "ssp_waits": 0}

    def run(self) -> World:
        """Raises AssertionError, KeyError, ValueError or Mismatch where something is not as it should be."""
        for _ in range(TURNS_MAX):
            acts = [self.deliver] * 6 + [self.work] * 3
            self.rng.choice(acts)()
            if self.rng.random() < 0.004:
                self.kill()
            if self.rng.random() < 0.01:
                self.carry_out(self.ordering.set_backup(self.rng.choice((0, 0, 1, 2))))
            if self.rng.random() < 0.01:
                self.carry_out(self.ordering.mark(f"c{self.rng.random()}"))
            self.judge()
            if all(worker.dead or worker.is_done for worker in self.workers):
                break
        else:
            raise AssertionError("nothing goes on")
        while any(self.links.values()):
            self.deliver()
        self.judge(ended=True)
        return self

    # -- links

    def put(self, link: Any, message: Any) -> None:
        self.links.setdefault(link, deque()).append(message)

    def deliver(self) -> None:
        full = [link for link, queue in self.links.items() if queue]
        if self.slow is not None and self.rng.random() < 0.8:
            full = [link for link in full if link[1] != self.slow] or full
        if not full:
            return
        link = self.rng.choice(sorted(full, key=repr))
        message = self.links[link].popleft()
        kind, at = link[0], link[1]
        if kind == "order":
            self.obey(at, message)
        elif kind == "staged":
            self.carry_out(self.ordering.on_staged(link[2], message))
        elif message == "idle":
            self.carry_out(self.ordering.on_idle(link[2]))
        elif self.staging[at].stage(Item(message, None)):
            if at == 0:
                facts = message._replace(base=self.ordering.version) if message.key.attempt == PULL else message
                self.carry_out(self.ordering.on_staged(0, message.key, facts))
            else:
                self.put(("staged", 0, at), message.key)

    def carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            for part in range(1, self.servers):
                self.put(("order", part), order)
            self.obey(0, order)

    def obey(self, part: int, order: Order) -> None:
        for do in self.staging[part].obey(order):
            if isinstance(do, Apply):
                self.applied[part].append(tuple(item.facts.key for item in do.items))
            elif isinstance(do, Save):
                self.saves[part].append((do.name, do.version))
            else:
                self.answer(part, do)

    # -- workers

    def work(self) -> None:
        worker = self.rng.choice(self.workers)
        if worker.dead or worker.waits is not None or (worker.left == 0 and worker.idle):
            return
        if worker.base < 0:
            self.send(worker, Contribution(Key(worker.name, worker.n + 1, PULL), 0))
        elif worker.attempt == 0 and (worker.left == 0 or self.rng.random() < 0.05):
            worker.base, worker.idle = -1, worker.left == 0
            self.counts["idle"] += 1
            self.put(("worker", 0, worker.name), "idle")
        else:
            if worker.attempt == 0:
                worker.n, worker.left = worker.n + 1, worker.left - 1
            key = Key(worker.name, worker.n, worker.attempt)
            ranges = (worker.n, 7, 0, 10 * worker.n, 4)
            self.send(worker, Contribution(key, worker.base, ranges, 4, 4.0))

    def send(self, worker: Worker, facts: Contribution) -> None:
        worker.waits, worker.key = {}, facts.key
        for part in range(self.servers):
            self.put(("worker", part, worker.name), facts)

    def answer(self, part: int, answer: Answer) -> None:
        key = answer.item.facts.key
        worker = next(one for one in self.workers if one.name == key.incarnation)
        if worker.dead:
            return
        assert worker.waits is not None and worker.key == key and part not in worker.waits, f"{key} of {worker.key}"
        worker.waits[part] = answer.outcome, answer.version
        if len(worker.waits) < self.servers:
            return
        said = set(worker.waits.values())
        assert len(said) == 1, f"servers answer {key} at different points: {said}"
        outcome, version = said.pop()
        worker.waits, worker.base = None, version
        if outcome == "late":
            assert worker.attempt == 0, f"{key} is told twice that it is late"
            worker.attempt = 1
            self.counts["late"] += 1
        elif outcome == "included":
            self.counts["carried"] += worker.attempt
            worker.attempt, worker.clock = 0, worker.clock + 1

    def kill(self) -> None:
        """It dies with what it has sent to some servers only, and the primary is told."""
        alive = [one for one in self.workers if not one.dead]
        if len(alive) < 2:
            return
        worker = self.rng.choice(alive)
        worker.dead = True
        for link, queue in self.links.items():
            if link[0] == "worker" and link[2] == worker.name:
                for _ in range(self.rng.randint(0, len(queue))):
                    queue.pop()
        self.lost.add(worker.name)
        self.counts["dropped"] += worker.waits is not None
        self.carry_out(self.ordering.on_lost([worker.name]))
        self.settled[worker.name] = {key for keys in self.applied[0] for key in keys if key.incarnation == worker.name}

    # -- what must hold

    def judge(self, ended: bool = False) -> None:
        first = self.applied[0]
        for applied, saves in zip(self.applied, self.saves, strict=True):
            assert applied == first[: len(applied)], "servers apply in different orders"
            assert saves == self.saves[0][: len(saves)], "servers save at different points"
        versions = self.ordering.versions
        assert len(versions) == len(first), "a version was decided and not told"
        flat = [key for keys in first for key in keys]
        assert len({key[:2] for key in flat}) == len(flat), "a contribution is in two versions"
        for name, keys in self.settled.items():
            assert {key for key in flat if key.incarnation == name} == keys, f"{name} is lost, and was included"
        if self.mode.kind != "bsp":
            assert all(len(keys) == 1 for keys in first)
        if self.mode.kind == "ssp":
            going = [one for one in self.ordering._workers.values() if one.active]
            ahead = [one.clock - min(o.clock for o in going) for one in going if one.owed is None]
            self.counts["ssp_waits"] += any(one.owed is not None for one in going)
            assert max(ahead, default=0) <= self.mode.staleness, "a worker went on too far"
        slowest = min((one.clock for one in self.ordering._workers.values() if one.active), default=0)
        owed = [one for one in self.ordering._workers.values() if one.owed is not None]
        assert not self.ordering._due(), "a version is due, and was not made"
        assert self.mode.kind == "ssp" or not owed, "who is included was not answered"
        assert all(one.clock - slowest > self.mode.staleness for one in owed), "who may go on was not told"
        if ended:
            assert self.ordering.is_idle, "something is on its way, and nobody sends it"
            assert not any(self.lost & set(staging._open) for staging in self.staging), "what a lost one sent is kept"
            assert len({staging.lineage for staging in self.staging}) == 1
            assert all(staging.version == len(first) for staging in self.staging)
            for worker in self.workers:
                done = sorted(key.n for key in flat if key.incarnation == worker.name)
                assert done == list(range(1, len(done) + 1)), f"{worker.name} has {done} in the model"
                assert worker.dead or len(done) == STEPS_A_WORKER, f"{worker.name} has lost a contribution"
