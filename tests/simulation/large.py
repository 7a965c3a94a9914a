"""One job of many workers, from the first join to the durable file: no request and no reply is lost, but members are.

The parts are those of every world: the real ledger, lives, sessions, Monitor and Controller, and the judge. What
differs is the scheduler, which lets everybody have its turn, one after the other: what costs more than its share of a
turn where there are many workers shows in the time that this takes.

    python -m tests.simulation large --workers 1024
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from time import perf_counter

from antdt.worker.session import SessionOptions
from antdt_schemas import records
from antdt_schemas.topics import replies_partition
from antdt_streams.ledger.life import Life, Moment
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.monitor import service as monitor
from antdt_streams.runtime.memory import MemoryStore

from tests.helpers.memory_ledger import JOB, LOG_ID, MemoryCache, MemoryLog, MemoryReplies, ports_of
from tests.simulation.ledgers import WAITS
from tests.simulation.trainer import Worker
from tests.simulation.world import World

TICK_S = 0.02
TALK_EVERY, SERVE_EVERY, CHECK_EVERY = 2, 25, 50  # ticks
TICKS_MAX = 20_000


@dataclass(frozen=True)
class Size:
    """workers: of which `lost` are killed behind step `lost_at`; steps: of the whole job."""

    workers: int
    steps: int = 120
    lost: int = 10
    lost_at: int = 100


@dataclass
class Times:
    """Seconds on this machine until each thing was done, from the first tick."""

    formed_s: float = 0.0
    lost_s: float = 0.0
    formed_again_s: float = 0.0
    done_s: float = 0.0
    _began_s: float = field(default_factory=perf_counter)

    def now(self) -> float:
        """Since the beginning."""
        return perf_counter() - self._began_s


class Replies(MemoryReplies):
    """None is lost, and none comes twice."""

    def __init__(self, world: Large) -> None:
        super().__init__()
        self.world = world

    def send(self, reply: records.Reply) -> None:
        self.world.post(reply)


class Large(World):
    """A world without an adversary. `times` says what took how long."""

    new_monitor = staticmethod(monitor.service)

    def __init__(self, size: Size) -> None:
        self.size, self.times = size, Times()
        super().__init__(0)
        self.faults.budget = 0
        self.poison.clear()
        self.second_at.clear()
        self.quits_at.clear()

    def draw(self, rng: random.Random) -> None:
        """One sample a worker and step."""
        workers = self.size.workers
        self.tick_s, self.inline, self.checkpoint_every, self.commit_steps_max = TICK_S, False, 50, 64
        self.prunes, self.favours = True, False
        self.spec = records.JobSpec(
            "large", workers * self.size.steps, bytes(16), "sequential", 1, 0, 1, workers, workers, 3, "allreduce"
        )
        self.ledger_options = LedgerOptions()
        self.session_options = SessionOptions(prefetch_s=2.0)

    def populate(self, rng: random.Random) -> None:
        """One ledger, and all workers."""
        log = MemoryLog(self.broker)
        cache = MemoryCache(MemoryStore())
        ports = ports_of(self.broker, log, cache, Replies(self), lambda: self.now_s, "ledger", self.ledger_options)
        self.ledger = Life(JOB, LOG_ID, ports, self.ledger_options)
        self.ledger_steps: Generator[Moment, None, None] = self.ledger.run()
        self.readers: dict[int, list[Worker]] = {}
        for _ in range(self.spec.workers_min):
            self.add_worker()
        for worker in self.workers.values():
            self.readers.setdefault(replies_partition(worker.name), []).append(worker)

    def post(self, reply: records.Reply) -> None:
        """To whom it is for."""
        if reply.grant is None:
            readers = [self.workers[reply.worker]]
        else:
            readers = self.readers[replies_partition(reply.worker)]
        for worker in readers:
            if worker.alive:
                worker.inbox.append(reply)

    # -- the scheduler

    def run(self) -> None:
        """Until every worker has ended. Raises AssertionError on any disagreement, or when nothing moves any more."""
        killed = False
        while not self.everybody_ended():
            self.tick += 1
            assert self.tick < TICKS_MAX, "nothing moves any more"
            self.now_s += TICK_S
            self.broker.now_ms = int(self.now_s * 1000) + self.clock_offset_ms
            self.turn_of_the_workers()
            self.turn_of_the_ledger()
            if self.tick % SERVE_EVERY == 0:
                self.turn_of_the_services()
            self.note()
            state = self.judge.fold.state
            if not killed and state is not None and state.line.committed >= self.size.lost_at:
                killed = True
                self.lose()
        self.turn_of_the_ledger()
        assert killed, "nobody was lost"
        self.judge.verdict()
        self.times.done_s = self.times.now()

    def turn_of_the_workers(self) -> None:
        """Of each training thread, and now and then of each connection."""
        for worker in self.processes():
            if next(worker.thread, self) is self:
                self.ends(worker.incarnation)
            if self.tick % TALK_EVERY == 0 or worker.inbox:
                worker.talk()
        for wire in self.wires.values():
            while wire:
                self.broker.send(wire.popleft())

    def turn_of_the_ledger(self) -> None:
        """Until it finds no request."""
        for moment in self.ledger_steps:
            if moment in WAITS:
                break
        if self.tick % CHECK_EVERY == 0:
            self.ledger.office.state.check()

    def turn_of_the_services(self) -> None:
        """Monitor and Controller take what there is."""
        self.services.topics.now_ms = self.broker.now_ms
        for driver in self.services.drivers:
            driver.run()

    def lose(self) -> None:
        """Half of them are missed, of the other half a launcher tells."""
        victims = list(self.workers.values())[:: self.size.workers // self.size.lost][: self.size.lost]
        for number, worker in enumerate(victims):
            worker.alive = False
            self.ends(worker.incarnation)
            self.wires[worker.incarnation].clear()
            if number % 2:
                self.operator(records.Exited(-9, "killed", ()), worker.name, worker.incarnation)
        self.times.lost_s = self.times.now()

    def note(self) -> None:
        """What has happened meanwhile."""
        times, generations = self.times, self.counts["generation"]
        if generations and not times.formed_s:
            times.formed_s = times.now()
        if generations > 1 and times.lost_s and not times.formed_again_s:
            times.formed_again_s = times.now()

    def everybody_ended(self) -> bool:
        """Everything is in a durable file, and all have heard of it."""
        state = self.judge.fold.state
        return state is not None and state.done is not None and not self.processes()
