"""A shard log to be read, wherever it lies: in its topic, or in a file that was exported from it.

Owns the choice between the two. A file brings an anchor with it, the rolling hash of its last entry: what was cut from
it or altered in it is found also at its end. Imports the Kafka client only where there is a topic to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from antdt_schemas.connection import Connection
from antdt_schemas.container import LogEntry, LogFile
from antdt_schemas.topics import SHARD_LOG


@dataclass(frozen=True)
class LogSource:
    """A log of one job. Iterating gives its entries from `start` on, up to the end that it had when it was opened."""

    job: str
    topic_id: str
    entries: Iterator[LogEntry]
    anchors: dict[int, bytes] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return ((entry.offset, entry.payload) for entry in self.entries)


@contextmanager
def open_file(path: Path) -> Iterator[LogSource]:
    """The log in a file of `antdt export`."""
    with LogFile(path) as file:
        header = file.header
        yield LogSource(header.job, header.topic_id, iter(file), header.anchors)


@contextmanager
def open_topic(connection: Connection, job: str, start: int = 0) -> Iterator[LogSource]:
    """The log in the topic of a job."""
    from antdt_streams.kafka import topics_admin
    from antdt_streams.kafka.reader import TopicReader

    with TopicReader(connection, job, SHARD_LOG) as reader:
        topic_id = topics_admin.topic_ids(connection, job)[SHARD_LOG.suffix]
        entries = (LogEntry(raw.offset, raw.time_ms, raw.value) for raw in reader.to_end(start))
        yield LogSource(job, topic_id, entries)
