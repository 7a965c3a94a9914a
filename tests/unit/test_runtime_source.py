"""How an instance belongs to its group: what the client is told."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import pairwise

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Superseded
from antdt_schemas.hearing import Told
from antdt_schemas.waiting import Waiting
from antdt_streams.runtime.joining import Joining
from antdt_streams.runtime.source import FENCED_AGAIN_S, POLL_BEYOND_SESSION_MS, Membership, Source
from confluent_kafka import Consumer, KafkaError

from tests.helpers.running import until


class Asked:
    """A broker that answers at once, while it is there."""

    def __init__(self) -> None:
        self.there, self.asked = True, 0

    def ask(self, places: object, beside: Iterable[str] = ()) -> None:
        assert list(beside) == ["steps"]
        self.asked += 1

    def answer(self) -> Told | None:
        return Told(ids={"steps": "id"} if self.there else {})


def waited(joining: Joining, polls: int, from_s: float = 0.0) -> list[float]:
    """When another client should have tried, seconds; a poll each 0.1 s."""
    return [at for at in (from_s + 0.1 * n for n in range(polls)) if joining.is_hopeless(at)]


def test_another_client_tries_where_the_broker_is_there_and_the_group_says_nothing() -> None:
    broker = Asked()
    joining = Joining(broker, "steps", outside_s=8.0)
    found = waited(joining, 1250)
    assert [round(b - a) for a, b in pairwise([0.0, *found])] == [8, 16, 32, 64], "each gets twice as long"
    assert 115 <= broker.asked <= 130, "once a second"
    joining.over()
    assert [round(at) for at in waited(joining, 100, 125.0)] == [133]


def test_nobody_is_hopeless_while_the_broker_is_away_or_nobody_polls() -> None:
    broker = Asked()
    broker.there = False
    joining = Joining(broker, "steps")
    assert waited(joining, 600) == []
    broker.there = True
    assert not joining.is_hopeless(5000.0), "it was stopped meanwhile"
    assert waited(joining, 70, 5000.0) == []
    assert len(waited(joining, 40, 5007.0)) == 1


@pytest.mark.parametrize("membership", [Membership("g"), Membership("g", "main"), Membership("g", "main", 120_000)])
def test_a_group_is_waited_for_a_little_longer_than_a_session(membership: Membership) -> None:
    """The client takes these settings, and none of them is its default of five minutes."""
    settings = membership.settings()
    Consumer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0, **settings}).close()
    assert settings["max.poll.interval.ms"] == settings["session.timeout.ms"] + POLL_BEYOND_SESSION_MS


class Nobody:
    """An owner that is never given anything."""

    def begin(self, partition: int, assignment: int, bounds: object) -> int:
        raise AssertionError

    def end(self, partitions: object, *, lost: bool) -> None: ...

    def positions(self) -> dict[int, int]:
        return {}


def test_a_service_that_its_group_does_not_let_in_says_so_and_since_when(caplog: pytest.LogCaptureFixture) -> None:
    halted, joined = threading.Event(), list[str]()
    nowhere = Connection("127.0.0.1:1")
    source = Source(nowhere, "antdt.j.steps", "id", Membership("antdt.j.monitor"), Nobody(), halted)
    source.on_joined = joined.append
    source._waiting = Waiting(first_s=0.3)
    thread = threading.Thread(target=source.read, args=(lambda batch: True,), daemon=True)
    thread.start()
    try:
        until(lambda: "event=waiting for=group group=antdt.j.monitor" in caplog.text, "it says so", 10.0)
        assert not joined
    finally:
        halted.set()
        thread.join(20)
    assert not thread.is_alive()
    assert "must support consumer groups" in caplog.text


def test_a_client_that_was_fenced_joins_anew_once_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Its own request, repeated while the broker was away, may have taken its place: nobody else need be there."""
    membership = Membership("antdt.j.monitor", "main")
    source = Source(Connection("127.0.0.1:1"), "antdt.j.steps", "id", membership, Nobody(), threading.Event())
    error = KafkaError(KafkaError.FENCED_INSTANCE_ID)
    former = source._consumer
    assert source._fenced(error) is None
    assert source._fenced(error) is None, "the client tells of it by every way it has"
    assert caplog.text.count("event=fenced") == 1
    source._replace()
    assert source._consumer is not former and not source._is_fenced
    again = source._fenced(error)
    assert isinstance(again, Superseded) and "Another process runs as instance main" in str(again)
    source._fenced_at_s -= FENCED_AGAIN_S
    assert source._fenced(error) is None
    source._consumer.close()
