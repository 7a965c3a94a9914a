"""The life of a ledger on ports in memory: founding, standing by, losses, and what is left where it stops."""

from __future__ import annotations

import pytest
from antdt_schemas import codec, records
from antdt_schemas.errors import LogTruncated, UsageError
from antdt_streams.ledger.life import Life, Moment, Steps, through
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.runtime.memory import MemoryStore

from tests.helpers.ledger import SPEC
from tests.helpers.memory_ledger import JOB, LOG_ID, MemoryBroker, MemoryCache, MemoryLog, MemoryReplies, ports_of

JOIN = records.Request("w0", "w0.0", 1, records.Join("worker", "h", 1, "n", "", 0, SPEC), b"")
PATIENCE_S = 2.0


def life(broker: MemoryBroker, store: MemoryStore, name: str, *, standby: bool = False) -> Life:
    """A process of this name on this store."""
    options = LedgerOptions(standby=standby, standby_patience_s=PATIENCE_S)
    log, cache, replies = MemoryLog(broker), MemoryCache(store), MemoryReplies()
    ports = ports_of(broker, log, cache, replies, lambda: broker.now_ms / 1000, name, options)
    return Life(JOB, LOG_ID, ports, options)


def until(steps: Steps[None], *moments: Moment) -> Moment:
    """Live on until then."""
    return next(moment for moment in steps if moment in moments)


def bodies(broker: MemoryBroker) -> list[records.EntryBody]:
    return [codec.decode(payload, records.Entry).body for payload in broker.log]


def test_a_job_is_founded_by_its_first_join_and_by_nothing_else() -> None:
    broker = MemoryBroker()
    steps = life(broker, MemoryStore(), "a").run()
    broker.send(b"junk")
    broker.send(records.Request("w0", "w0.0", 1, records.Lease(1, 10), b""))
    for _ in range(3):
        assert until(steps, Moment.FOUNDING, Moment.IDLE) is Moment.FOUNDING
    assert broker.log == []
    broker.send(JOIN)
    until(steps, Moment.IDLE)
    genesis, leader, *cycles = bodies(broker)
    assert isinstance(genesis, records.Genesis) and genesis.spec == SPEC
    assert isinstance(leader, records.Leader)
    events = [event for cycle in cycles if isinstance(cycle, records.Cycle) for event in cycle.events]
    assert [type(event).__name__ for event in events] == ["Refused", "Refused", "Joined"], "all are in the log"


def test_of_two_that_found_a_job_the_first_genesis_counts() -> None:
    broker = MemoryBroker()
    both = [life(broker, MemoryStore(), name).run() for name in ("a", "b")]
    for steps in both:
        until(steps, Moment.FOUNDING)
    broker.send(JOIN)
    for steps in both:
        until(steps, Moment.DECIDED)
    for steps in both:
        until(steps, Moment.IN_OFFICE)
    assert [type(body).__name__ for body in bodies(broker)] == ["Genesis", "Leader", "Genesis", "Leader"]
    assert until(both[0], Moment.IDLE, Moment.STANDING_BY) is Moment.STANDING_BY
    until(both[1], Moment.IDLE)
    state = broker.fold().state
    assert state is not None and list(state.members.incarnations) == ["w0.0"]


def test_a_standby_takes_office_when_somebody_asks_in_vain_and_not_before() -> None:
    broker = MemoryBroker.founded(SPEC)
    leader, standby = (
        life(broker, MemoryStore(), "a").run(),
        life(broker, MemoryStore(), "b", standby=True).run(),
    )
    until(leader, Moment.IDLE)
    for _ in range(20):  # nobody asks
        broker.now_ms += 1_000
        assert until(standby, Moment.STANDING_BY, Moment.IN_OFFICE) is Moment.STANDING_BY
    for _ in range(20):  # somebody does, and is answered
        broker.now_ms += 1_000
        broker.send(JOIN)
        until(leader, Moment.IDLE)
        assert until(standby, Moment.STANDING_BY, Moment.IN_OFFICE) is Moment.STANDING_BY
    broker.send(JOIN)
    waited_s = 0
    while until(standby, Moment.STANDING_BY, Moment.IN_OFFICE) is Moment.STANDING_BY:
        broker.now_ms += 250
        waited_s += 0.25
    assert PATIENCE_S <= waited_s <= 2 * PATIENCE_S
    assert until(leader, Moment.IDLE, Moment.STANDING_BY) is Moment.STANDING_BY, "the former leader finds out"


def test_nothing_is_saved_or_answered_before_the_entry_was_read_back() -> None:
    broker, store = MemoryBroker.founded(SPEC), MemoryStore()
    one = life(broker, store, "a")
    steps = one.run()
    until(steps, Moment.IDLE)
    before, log = dict(store.content), list(broker.log)
    broker.send(JOIN)
    until(steps, Moment.DECIDED)
    assert (store.content, broker.log) == (before, log)
    until(steps, Moment.APPENDED)
    assert store.content == before
    until(steps, Moment.SAVED)
    assert store.content != before
    replies = one.ports.replies
    assert isinstance(replies, MemoryReplies) and replies.sent == []
    until(steps, Moment.ANSWERED)
    assert len(replies.sent) == 1


def test_a_loss_that_goes_less_far_than_one_that_was_accepted_is_another_loss() -> None:
    broker, store = MemoryBroker.founded(SPEC), MemoryStore()
    steps = life(broker, store, "a").run()
    for _ in range(8):
        broker.send(JOIN)
        until(steps, Moment.IDLE)
    del broker.log[1:]
    with pytest.raises(LogTruncated, match="antdt recover"):
        until(life(broker, store, "b").run(), Moment.IN_OFFICE)
    first = through(life(broker, store, "operator").recover("the disk"))
    until(life(broker, store, "b").run(), Moment.IDLE)
    del broker.log[-1:]
    with pytest.raises(LogTruncated, match="antdt recover"):
        until(life(broker, store, "c").run(), Moment.IN_OFFICE)
    second = through(life(broker, store, "operator").recover("the disk, again"))
    assert first.next_offset > second.next_offset
    assert first.generation < second.generation
    with pytest.raises(UsageError, match="Nothing is lost"):
        through(life(broker, store, "operator").recover("by mistake"))
    until(life(broker, store, "c").run(), Moment.IDLE)
