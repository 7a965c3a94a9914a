"""How an instance belongs to its group: what the client is told."""

from __future__ import annotations

import threading

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.waiting import Waiting
from antdt_streams.runtime.source import POLL_BEYOND_SESSION_MS, Membership, Source
from confluent_kafka import Consumer

from tests.helpers.running import until


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
