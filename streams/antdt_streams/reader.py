"""Reads topics for people: the shard log from its start to its end, and the tail of any topic. Never writes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable, Undecodable, UnknownJob
from antdt_schemas.offsets import watermarks
from antdt_schemas.topics import SHARD_LOG, Topic
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

READ_TIMEOUT_S = 30.0
R = TypeVar("R")

log = logging.getLogger("antdt.reader")


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as it lies in a topic; time_ms is the broker's."""

    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes


class TopicReader:
    """A reader of all partitions of one topic of a job."""

    def __init__(self, connection: Connection, job: str, topic: Topic) -> None:
        self.name = topic.name(job)
        self._consumer = Consumer(connection.consumer(**{"fetch.wait.max.ms": 50, "enable.partition.eof": True}))
        try:
            known = self._consumer.list_topics(self.name, timeout=10).topics[self.name]
            if known.error is not None:
                raise UnknownJob(
                    f"Job {job!r} is not on this broker.",
                    f"Start it with `antdt up {job}`, or see `antdt topics list`.",
                )
            self._ranges = {p: watermarks(self._consumer, self.name, p) for p in sorted(known.partitions)}
            self._at = {p: low for p, (low, _) in self._ranges.items()}
        except KafkaException as error:
            self._consumer.close()
            raise Unavailable(f"{self.name} cannot be read: {error.args[0].str()}.") from error
        except (UnknownJob, Unavailable):
            self._consumer.close()
            raise

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def to_end(self, start: int = 0) -> Iterator[Raw]:
        """Every record from offset `start` on that was there when the reader was made, partition by partition."""
        for partition, (low, high) in sorted(self._ranges.items()):
            at, until = max(low, start), monotonic() + READ_TIMEOUT_S
            self._at[partition] = at
            if at < high:
                self._consumer.assign([TopicPartition(self.name, partition, at)])
            while self._at[partition] < high:
                records_ = self.poll(0.2)
                if not records_ and monotonic() > until:
                    raise Unavailable(f"{self.name}/{partition} stopped at offset {self._at[partition]} of {high}.")
                for raw in records_:
                    until = monotonic() + READ_TIMEOUT_S
                    if raw.offset < high:
                        yield raw

    def ends(self) -> list[int]:
        """End of each partition when the reader was made."""
        return [high for _, high in self._ranges.values()]

    def positions(self) -> list[int]:
        """Offset of the next record of each partition; what is below and was not returned is no record."""
        return list(self._at.values())

    def follow(self, last: int | None = None) -> None:
        """From now on `poll` returns new records; with `last`, beginning that many before the end of each partition."""
        starts = []
        for partition, (low, high) in self._ranges.items():
            start = low if last is None else max(low, high - last)
            self._at[partition] = start
            starts.append(TopicPartition(self.name, partition, start))
        self._consumer.assign(starts)

    def poll(self, wait_s: float) -> list[Raw]:
        """Records that are there; waits for the first one at most `wait_s`."""
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        out = []
        for message in (first, *self._consumer.consume(999, 0)):
            error = message.error()
            if error is None:
                partition, offset = message.partition() or 0, message.offset() or 0
                self._at[partition] = offset + 1
                out.append(Raw(partition, offset, message.timestamp()[1], message.key(), message.value() or b""))
            elif error.code() == KafkaError._PARTITION_EOF:
                partition = message.partition() or 0
                self._at[partition] = max(self._at[partition], message.offset() or 0)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise Unavailable(f"{self.name}: records were removed before they were read: {error.str()}.")
        return out


def read_genesis(connection: Connection, job: str) -> records.Genesis | None:
    """Who a job belongs to; None if nobody has begun it. It is the first of its kind: what is before it is void."""
    with TopicReader(connection, job, SHARD_LOG) as reader:
        for _, entry in decoded(reader.to_end(), records.Entry):
            if isinstance(entry.body, records.Genesis):
                return entry.body
    return None


def decoded(raws: Iterable[Raw], kind: type[R]) -> Iterator[tuple[Raw, R]]:
    """Each record with what it says. Those that are nothing of ours are passed over; the first one is told."""
    told = False
    for raw in raws:
        try:
            record = codec.decode(raw.value, kind)
        except Undecodable as error:
            level = logging.DEBUG if told else logging.WARNING
            log.log(level, "passed over partition %d offset %d: %s", raw.partition, raw.offset, error)
            told = True
            continue
        yield raw, record
