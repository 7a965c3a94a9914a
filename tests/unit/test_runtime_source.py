"""How an instance belongs to its group: what the client is told."""

from __future__ import annotations

import pytest
from antdt_streams.runtime.source import POLL_BEYOND_SESSION_MS, Membership
from confluent_kafka import Consumer


@pytest.mark.parametrize("membership", [Membership("g"), Membership("g", "main"), Membership("g", "main", 120_000)])
def test_a_group_is_waited_for_a_little_longer_than_a_session(membership: Membership) -> None:
    """The client takes these settings, and none of them is its default of five minutes."""
    settings = membership.settings()
    Consumer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0, **settings}).close()
    assert settings["max.poll.interval.ms"] == settings["session.timeout.ms"] + POLL_BEYOND_SESSION_MS
