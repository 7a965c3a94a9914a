"""Ledger processes in virtual time: the real life of a ledger, stopped between any two moments. Several may live at
once; whoever takes office last leads, and the others find out when they read the log.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from antdt_schemas import records
from antdt_schemas.errors import LogTruncated, Superseded, UsageError
from antdt_streams.ledger.core.fold import Verdict
from antdt_streams.ledger.core.leader import Incoming
from antdt_streams.ledger.life import Life, Moment
from antdt_streams.ledger.ports import LogRecord
from antdt_streams.ledger.stored import known_of
from antdt_streams.runtime.memory import MemoryStore

from tests.helpers.memory_ledger import (
    JOB,
    LOG_ID,
    MemoryBroker,
    MemoryCache,
    MemoryLog,
    MemoryReplies,
    MemoryRequests,
    ports_of,
    topic_ids,
)

if TYPE_CHECKING:
    from tests.simulation.world import World

LOOKED_AT_TOPICS, PAUSES, MORE_COMES, NOTHING_COMES = 0.1, 0.2, 0.3, 0.9
# Where a process does not stop each time: there are many of them.
OFTEN = (Moment.READ, Moment.ANSWERED)
# Where it waits until something comes, for a while.
WAITS = (Moment.IDLE, Moment.FOUNDING, Moment.STANDING_BY)


def knowledge(store: MemoryStore) -> tuple[int, int]:
    """Whose store knows most: the generation that it has got to, and how far into the log. After a loss that was
    accepted both count: generations go on beyond all that was lost, offsets do not.
    """
    known = known_of(store.content)
    return (known.generation, known.next_offset) if known is not None else (0, 0)


class Broker(MemoryBroker):
    """Every entry is judged as it is written, whoever writes it."""

    def __init__(self, world: World, requests_topic: str) -> None:
        super().__init__(requests_topic)
        self.world = world

    def newest(self) -> tuple[int, int, str]:
        """What changes when something comes."""
        return len(self.log), self.requests_high, self.requests_topic

    def append(self, payload: bytes) -> int:
        offset = super().append(payload)
        self.world.judge.read(offset, payload)
        return offset


class Log(MemoryLog):
    """What somebody else has written meanwhile may come with what was asked for."""

    def __init__(self, world: World) -> None:
        super().__init__(world.broker)
        self.rng = world.rng

    def read_to(self, end: int) -> Iterator[LogRecord]:
        return super().read_to(self.end() if self.rng.random() < MORE_COMES else end)


class Requests(MemoryRequests):
    """They come in batches of any size."""

    def __init__(self, world: World) -> None:
        super().__init__(world.broker)
        self.rng = world.rng

    def take(self, wait_s: float, limit: int) -> list[Incoming]:
        return super().take(wait_s, min(limit, self.rng.choice((1, 2, 5, 50))))


class Replies(MemoryReplies):
    """On their way to the workers."""

    def __init__(self, world: World, log: Log) -> None:
        super().__init__()
        self.world, self.log = world, log

    def send(self, reply: records.Reply) -> None:
        verdict = self.world.judge.verdicts[self.log.appended]
        assert verdict is Verdict.COUNTED, f"a ledger replies on an entry that is {verdict}"
        self.world.post(reply)


class LedgerProcess:
    """One process on one machine's store. With a reason, it is an operator who accepts a loss."""

    def __init__(self, world: World, name: str, store: MemoryStore, *, standby: bool = False, reason: str = "") -> None:
        self.world, self.name, self.store, self.reason = world, name, store, reason
        self.asleep_until, self.weight = 0, world.rng.random()
        self.moment: Moment | None = None
        log = Log(world)
        cache, replies, options = (
            MemoryCache(store),
            Replies(world, log),
            replace(world.ledger_options, standby=standby),
        )
        ports = ports_of(world.broker, log, cache, replies, self.now_s, name, options)
        ports = replace(ports, requests=Requests(world), topic_ids=self.topic_ids)
        self.life = Life(JOB, LOG_ID, ports, options)
        self.thread = self.accept_loss() if reason else self.pauses(self.life.run())

    @property
    def stands_by(self) -> bool:
        """Whether somebody else leads, for all it knows."""
        return self.moment is Moment.STANDING_BY

    def now_s(self) -> float:
        """Virtual time."""
        return self.world.now_s

    def topic_ids(self) -> Mapping[str, str] | None:
        """Now and then somebody has looked."""
        return topic_ids(self.world.broker) if self.world.rng.random() < LOOKED_AT_TOPICS else None

    def pauses(self, steps: Generator[Moment, None, object]) -> Generator[None, None, None]:
        """Its life, with a yield where others may come between."""
        broker, rng = self.world.broker, self.world.rng
        for moment in self.until_refused(steps):
            if moment is Moment.CAUGHT_UP and self.moment is not None:
                self.world.count("ledger_superseded")
            elif moment is Moment.SAVED and self.moment is Moment.READ:
                self.life.office.state.check()
            elif moment is not self.moment and self.stands_by:
                self.world.count("standby_takes_office")
            self.moment = moment
            if moment not in OFTEN or rng.random() < PAUSES:
                yield
            if moment in WAITS:
                seen = broker.newest()
                while broker.newest() == seen and rng.random() < NOTHING_COMES:
                    yield

    def until_refused(self, steps: Generator[Moment, None, object]) -> Generator[Moment, None, None]:
        """A store of the history before the last but one is not covered by what was accepted last, which went less far:
        it is refused, and whoever runs the machine begins it anew.
        """
        try:
            yield from steps
        except LogTruncated:
            assert self.moment is None and self.world.counts["log_tail_lost"] > 1
            self.world.count("store_of_an_older_loss")
            self.world.stores.remove(self.store)

    def accept_loss(self) -> Generator[None, None, None]:
        """What the lost entries said may have reached nobody: then there is nothing to accept."""
        try:
            yield from self.pauses(self.life.recover(self.reason))
        except UsageError:
            assert not self.world.loss_is_known, "what was lost is forgotten, and nobody has accepted that"
            self.world.count("loss_that_nobody_knows")
            self.world.loss = False
        except Superseded:  # its entry is void: the operator tries again
            self.world.count("acceptance_superseded")
