"""Reads topics for people: the shard log from its start to its end, and the tail of any topic. Never writes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, Unavailable, Undecodable, unknown_job
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import OutOfRange, Place, Reader
from antdt_schemas.topics import SHARD_LOG, Topic
from confluent_kafka import KafkaException, Message

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
        self._reader = Reader(connection, fetch_wait_max_ms=50)
        consumer = self._reader.consumer
        try:
            known = consumer.list_topics(self.name, timeout=10).topics[self.name]
            if known.error is not None:
                raise unknown_job(job)
            self._ranges = {p: watermarks(consumer, self.name, p) for p in sorted(known.partitions)}
        except KafkaException as error:
            self._reader.close()
            raise Unavailable(f"{self.name} cannot be read: {error.args[0].str()}.") from error
        except AntdtError:
            self._reader.close()
            raise

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def to_end(self, start: int = 0) -> Iterator[Raw]:
        """Every record from offset `start` on that was there when the reader was made, partition by partition."""
        for partition, (low, high) in sorted(self._ranges.items()):
            at, place = max(low, start), Place(self.name, partition)
            if at < high:
                self._reader.assign({place: at})
                with _said():
                    for message in self._reader.read_to(place, high, READ_TIMEOUT_S):
                        if message.offset() < high:
                            yield _raw(message)

    def ends(self) -> list[int]:
        """End of each partition when the reader was made."""
        return [high for _, high in self._ranges.values()]

    def starts(self) -> list[int]:
        """First offset of each partition when the reader was made: what was before is removed."""
        return [low for low, _ in self._ranges.values()]

    def positions(self) -> list[int]:
        return [self._reader.position(Place(self.name, partition)) for partition in self._ranges]

    def is_behind(self) -> bool:
        """Whether some of the records are still to come that were there when the reader was made."""
        return any(at < end for at, end in zip(self.positions(), self.ends(), strict=True))

    def follow(self, last: int | None = None) -> None:
        """From now on `poll` returns new records; with `last`, beginning that many before the end of each partition."""
        starts = {p: low if last is None else max(low, high - last) for p, (low, high) in self._ranges.items()}
        self._reader.assign({Place(self.name, partition): start for partition, start in starts.items()})

    def poll(self, wait_s: float) -> list[Raw]:
        """Records that are there; waits for the first one at most `wait_s`."""
        with _said():
            return [_raw(message) for message in self._reader.poll(wait_s)]


@contextmanager
def _said() -> Iterator[None]:
    """To somebody who reads, what retention removes meanwhile is no fault of the job."""
    try:
        yield
    except OutOfRange as error:
        raise Unavailable(f"{error.place}: records were removed before they were read. {error}") from error


def _raw(message: Message) -> Raw:
    key: Any = message.key()
    return Raw(message.partition() or 0, message.offset() or 0, message.timestamp()[1], key, message.value() or b"")


def read_genesis(connection: Connection, job: str) -> records.Genesis | None:
    """Who a job belongs to; None if nobody has begun it. It is the first of its kind: what is before it is void."""
    with TopicReader(connection, job, SHARD_LOG) as reader:
        for _, entry in decoded(reader.to_end(), records.Entry):
            if isinstance(entry.body, records.Genesis):
                return entry.body
    return None


def told(topic: Topic, raw: Raw) -> dict[str, Any]:
    """A record of a topic for people, ready for JSON; or what is wrong with it, as `error`."""
    line: dict[str, Any] = {"partition": raw.partition, "offset": raw.offset, "time_ms": raw.time_ms}
    try:
        return {**line, "record": codec.to_json(codec.decode_one_of(raw.value, topic.kinds))}
    except Undecodable as error:
        return {**line, "error": str(error)}


def decoded(raws: Iterable[Raw], kind: type[R], *also: type[Any]) -> Iterator[tuple[Raw, R]]:
    """Each record with what it says. Those that are nothing of ours are passed over; the first one is told."""
    told = False
    for raw in raws:
        try:
            record = codec.decode_one_of(raw.value, (kind, *also))
        except Undecodable as error:
            level = logging.DEBUG if told else logging.WARNING
            log.log(level, "passed over partition %d offset %d: %s", raw.partition, raw.offset, error)
            told = True
            continue
        yield raw, record
