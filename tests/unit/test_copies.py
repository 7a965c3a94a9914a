"""Offsets for lag tools: a copy that cannot be written is told once, and ends nothing."""

from __future__ import annotations

import logging

import pytest
from antdt_streams.kafka.copies import Copies
from confluent_kafka import KafkaError


def test_what_cannot_be_written_is_told_once_until_it_can(caplog: pytest.LogCaptureFixture) -> None:
    copies, denied = Copies("antdt.j.ledger"), KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
    with caplog.at_level(logging.INFO):
        for error in (None, denied, denied, denied, None, None, denied):
            copies.came_to(error)
    told = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "INFO", "WARNING"]
    assert "group=antdt.j.ledger" in told[0][1] and "deploy/acls.txt" in told[0][1]


def test_a_group_that_is_about_to_change_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    copies = Copies("antdt.j.monitor")
    for code in (KafkaError.REBALANCE_IN_PROGRESS, KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID):
        copies.came_to(KafkaError(code))
    assert not caplog.records
