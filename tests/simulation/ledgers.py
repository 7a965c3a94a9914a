"""Ledger processes in virtual time: office, cycles and cache in the order of the service, with a yield between any two
steps. Several may run at once; whoever takes office last leads, and the others find out when they read the log.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from antdt_schemas import codec, records
from antdt_schemas.errors import Superseded
from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.ledger.core.leader import Cycle, Incoming, InOffice
from antdt_streams.ledger.core.moved import moved
from antdt_streams.ledger.core.versions import FOLD_VERSION
from antdt_streams.ledger.stored import Identity
from antdt_streams.runtime.memory import MemoryStore

if TYPE_CHECKING:
    from tests.simulation.world import World

Steps = Generator[None, None, None]


class MemoryCache(Cache):
    """The real cache over a store in memory, which outlives the process."""

    def __init__(self, store: MemoryStore) -> None:
        self.folder, self.identity = Path("memory"), Identity("sim", "memory")
        self.store, self.leader_epoch, self._written = store, None, set()


class LedgerProcess:
    """One process on one machine's store."""

    def __init__(self, world: World, name: str, store: MemoryStore) -> None:
        self.world, self.name, self.store = world, name, store
        self.cache = MemoryCache(store)
        self.asleep_until, self.weight = 0, world.rng.random()
        self.office: InOffice | None = None
        self.thread = self.life()

    def life(self) -> Steps:
        """Read the log, take office, lead until superseded."""
        fold = self.cache.load()
        yield
        self.read(fold, len(self.world.broker.log))
        self.cache.save(fold, None)
        yield
        assert fold.genesis is not None
        leader = records.Leader(fold.genesis.run_id, self.name, self.name, FOLD_VERSION)
        offset = self.world.append(codec.encode(records.Entry(leader)))
        yield
        self.read(fold, offset + 1)
        self.cache.save(fold, None)
        assert fold.office is not None
        assert fold.office.leader_id == self.name
        self.office = InOffice(fold)
        try:
            yield from self.lead(self.office)
        except Superseded:
            self.world.count("ledger_superseded")

    def read(self, fold: Fold, end: int) -> None:
        """Fold the log up to `end`."""
        for offset in range(fold.position.next_offset, end):
            fold.read(offset, self.world.broker.log[offset])

    def lead(self, office: InOffice) -> Steps:
        """Cycles, in the order that recovery rests on."""
        world = self.world
        while True:
            facts: tuple[records.Event, ...] = (world.loss,) if world.loss is not None else ()
            incoming = self.incoming(office)
            if isinstance(incoming, records.RequestsMoved):
                facts, incoming = (*facts, incoming), []
                world.count("requests_moved")
            if not incoming and not facts and world.rng.random() < 0.95:
                yield
                self.watch(office)
                continue
            payload, _ = office.propose(incoming, facts)
            yield
            end = world.append(payload) + 1
            yield
            cycle = yield from self.read_back(office, end)
            office.state.check()
            yield
            self.cache.save(office.fold, None)
            yield
            for answer in cycle.answers:
                world.post(office.reply(answer))
                if world.rng.random() < 0.2:
                    yield

    def incoming(self, office: InOffice) -> list[Incoming] | records.RequestsMoved:
        """What is there from the position on, or that it is elsewhere now."""
        broker, rng = self.world.broker, self.world.rng
        fact = moved(office.state, office.genesis, broker.requests_topic, broker.requests_low, broker.requests_high)
        return broker.incoming(office.state.requests_next, rng.choice((1, 2, 5, 50))) if fact is None else fact

    def read_back(self, office: InOffice, end: int) -> Generator[None, None, Cycle]:
        """The log up to our own entry, which must count."""
        cycle = None
        for offset in range(office.fold.position.next_offset, end):
            cycle = office.read_back(offset, self.world.broker.log[offset]) or cycle
            if self.world.rng.random() < 0.2:
                yield
        assert cycle is not None, "an entry was not found in the log"
        assert self.world.judge.verdicts[end - 1] is Verdict.COUNTED, "a ledger replies on an entry that is void"
        return cycle

    def watch(self, office: InOffice) -> None:
        """Nobody asks: see whether somebody else took office."""
        for offset in range(office.fold.position.next_offset, len(self.world.broker.log)):
            office.read_back(offset, self.world.broker.log[offset])
