"""Snapshots in a real topic: of several MB, in turn, from a topic whose offsets have gaps."""

from __future__ import annotations

import random

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable
from antdt_schemas.topics import SNAPSHOTS
from antdt_streams.kafka import topics_admin
from antdt_streams.storage.snapshots import SnapshotFound, SnapshotWriter, newest
from confluent_kafka import Producer

pytestmark = pytest.mark.kafka


def rows(seed: int, count: int = 50, row_bytes: int = 100_000) -> dict[bytes, bytes]:
    draw = random.Random(seed)
    return {b"row/%d" % n: draw.randbytes(row_bytes) for n in range(count)}


def end_with_a_gap(connection: Connection, job: str) -> None:
    """The mark of a transaction takes the last offset, and no reader sees it: as where compaction has been."""
    producer = Producer(connection.producer(transactional_id=f"gap-{job}"))
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(SNAPSHOTS.name(job), b"", b"somebody/0/0/0", 0)
    producer.commit_transaction(20)


def test_the_newest_whole_snapshot_of_several_megabytes_is_found(connection: Connection, job: str) -> None:
    topics_admin.create(connection, job)
    assert newest(connection, job, "ledger") is None
    writer, small = SnapshotWriter(connection, job, "ledger", 0, None), rows(9, 3, 10)
    for number in range(3):
        writer.write("topic", 10 * (number + 1), rows(number))
    other = SnapshotWriter(connection, job, "monitor", 0, None)
    other.write("steps", 99, small)
    writer.close()
    other.close()
    assert newest(connection, job, "ledger") == SnapshotFound("topic", 30, rows(2), 0)
    end_with_a_gap(connection, job)
    assert newest(connection, job, "ledger", at_most=25) == SnapshotFound("topic", 20, rows(1), 1)
    assert newest(connection, job, "monitor") == SnapshotFound("steps", 99, small, 0)

    heir = SnapshotWriter(connection, job, "ledger", 0, newest(connection, job, "ledger"))
    heir.write("topic", 40, small)
    heir.close()
    assert newest(connection, job, "ledger") == SnapshotFound("topic", 40, small, 1)


def test_a_broker_that_is_away_costs_a_bounded_wait_and_is_told() -> None:
    writer = SnapshotWriter(Connection("127.0.0.1:1"), "j", "ledger", 0, None, timeout_s=0.5)
    for _ in range(2):
        with pytest.raises(Unavailable, match="A snapshot of ledger was not written"):
            writer.write("topic", 1, rows(1, 20))
    writer.close()
