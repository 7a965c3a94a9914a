"""What a worker may take of a topic: as far as it was read, and the ledger knows what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from antdt.worker.session import Session, Where
from antdt.worker.session.reading import Chunk, Faulty, Found, ReadLeases
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC

from tests.unit.test_session import GRANT, SPEC, reply

OF_TOPIC = replace(SPEC, order=TOPIC, blocks=(0, 100, 600, 1, 7, 507), samples=1000)


def member() -> Session:
    """It holds lease 1 of positions 480 to 520, and 2 of 600 to 620."""
    session = Session("w0", "w0.0", OF_TOPIC, Where("h", 1))
    session.tick(0.0)
    session.on_reply(reply(-1, grant=GRANT))
    session.begin([], b"")
    session.tick(1.0)
    leases = (1, 7, 0, 480, 40, 2, 9, 0, 600, 20)
    places = (480, 0, 580, 20, 500, 1, 7, 20, 600, 1, 107, 20)
    session.on_reply(reply(session.outbox.number, leases=leases, places=places))
    return session


@pytest.fixture
def session() -> Session:
    return member()


def leases_of(session: Session) -> ReadLeases:
    return cast(ReadLeases, session.leases)


def read(session: Session, chunk: Chunk, found: Found) -> bool:
    """What comes next is read: it is this."""
    leases = leases_of(session)
    assert leases.to_read(chunk.length) == chunk
    return leases.was_read(chunk, found)


def said(session: Session, now_s: float) -> list[records.Examined]:
    return [r.body for r in session.tick(now_s) if isinstance(r.body, records.Examined)]


def test_chunks_come_in_order_and_each_of_one_partition(session: Session) -> None:
    leases = leases_of(session)
    assert leases.takeable == 0 and leases.take(8, 8) == []
    first = leases.to_read(100)
    assert first == Chunk(1, 7, 0, 480, 20, 0, 580)
    assert leases.was_read(first, Found(490)) and leases.to_read(5) == Chunk(1, 7, 0, 490, 5, 0, 590)
    assert leases.take(8, 8) == [(1, 7, 0, 480, 8)] and leases.take(8, 8) == [(1, 7, 0, 488, 2)]
    assert read(session, Chunk(1, 7, 0, 490, 10, 0, 590), Found(500))
    assert leases.to_read(100) == Chunk(1, 7, 0, 500, 20, 1, 7)
    assert not leases.was_read(first, Found(490)), "it was read"


def test_what_has_no_record_is_taken_once_the_ledger_knows_of_it(session: Session) -> None:
    leases = leases_of(session)
    read(session, Chunk(1, 7, 0, 480, 20, 0, 580), Found(500, [(482, 3), (498, 2)]))
    assert leases.takeable == 0
    (body,) = said(session, 2.0)
    assert (body.lease, body.token, body.vacant) == (1, 7, (482, 3, 498, 2))
    number = session.outbox.number
    assert said(session, 2.1) == [] and len(said(session, 3.0)) == 1, "it is asked again"
    session.on_reply(reply(number, Status.WAIT))
    assert leases.takeable == 0
    session.on_reply(reply(number))
    assert leases.take(4, 8) == [(1, 7, 0, 480, 7)] and leases.empty == 3
    assert leases.take(100, 8) == [(1, 7, 0, 487, 13)] and leases.empty == 2
    assert said(session, 9.0) == []


def test_a_lease_ends_before_what_cannot_be_decoded_and_the_next_one_follows(session: Session) -> None:
    leases, untaken = leases_of(session), session.leases.untaken
    read(session, Chunk(1, 7, 0, 480, 20, 0, 580), Found(490, [], [Faulty(484, "t/0@584", "no"), Faulty(487, "", "")]))
    assert leases.to_read(50) == Chunk(2, 9, 0, 600, 20, 1, 107), "what is behind it is not read for this lease"
    (body,) = said(session, 2.0)
    assert (body.faulty, body.keys, body.reasons) == ((484, 487), ("t/0@584", ""), ("no", ""))
    session.on_reply(reply(session.outbox.number))
    assert leases.untaken == untaken - 36
    read(session, Chunk(2, 9, 0, 600, 20, 1, 107), Found(620))
    assert leases.take(10, 8) == [(1, 7, 0, 480, 4), (2, 9, 0, 600, 6)]


def test_a_lease_that_begins_with_what_cannot_be_decoded_is_gone(session: Session) -> None:
    leases = leases_of(session)
    read(session, Chunk(1, 7, 0, 480, 20, 0, 580), Found(481, [], [Faulty(480, "", "")]))
    said(session, 2.0)
    session.on_reply(reply(session.outbox.number))
    read(session, Chunk(2, 9, 0, 600, 20, 1, 107), Found(620))
    assert leases.take(2, 8) == [(2, 9, 0, 600, 2)]


def test_with_its_generation_everything_ends(session: Session) -> None:
    leases = leases_of(session)
    chunk = leases.to_read(10)
    assert chunk is not None
    session.on_reply(reply(-1, Status.CLOSED))
    session.regroup(0, b"")
    assert not leases.was_read(chunk, Found(490)) and leases.to_read(10) is None and leases.live == set()


def test_where_a_topic_ends_by_now_is_said_until_it_is_known() -> None:
    session = Session("w0", "w0.0", replace(OF_TOPIC, growing=True), Where("h", 1))
    session.tick(0.0)
    session.on_reply(reply(-1, grant=GRANT))
    session.begin([], b"")
    leases = leases_of(session)
    leases.ends = {1: 600, 0: 700}
    sent = [(r.number, r.body) for now_s in (1.0, 1.1, 1.7) for r in session.tick(now_s)]
    assert [body for _, body in sent if isinstance(body, records.Grown)] == [records.Grown(1, (0, 700, 1, 600))] * 2
    session.on_reply(reply(max(number for number, body in sent if isinstance(body, records.Grown))))
    assert not [r for r in session.tick(9.0) if isinstance(r.body, records.Grown)]
