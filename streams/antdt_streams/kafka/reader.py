"""Reads topics for people: the shard log from its start to its end, and the tail of any topic. Never writes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from antdt_schemas import codec, framing, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, Unavailable, Undecodable, unknown_job
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import RECORDS_MAX, OutOfRange, Place, Reader
from antdt_schemas.topics import SHARD_LOG, Topic
from confluent_kafka import KafkaException, Message, TopicPartition

READ_TIMEOUT_S = 30.0
LEAP_S = 1.0
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
    """A reader of all partitions of one topic of a job. over: settings of its client, with underscores for dots."""

    def __init__(self, connection: Connection, job: str, topic: Topic, **over: Any) -> None:
        self.name = topic.name(job)
        self._reader = Reader(connection, **{"fetch_wait_max_ms": 50, **over})
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
        return self._from({partition: max(low, start) for partition, (low, _) in self._ranges.items()})

    def tail(self, last: int) -> Iterator[Raw]:
        """Of each partition the newest `last` records that were there when the reader was made."""
        return self._from({partition: max(low, high - last) for partition, (low, high) in self._ranges.items()})

    def _from(self, starts: Mapping[int, int]) -> Iterator[Raw]:
        for partition, (_, high) in sorted(self._ranges.items()):
            at, place = starts[partition], Place(self.name, partition)
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

    def before(self, time_ms: int, last: int) -> Iterator[Raw]:
        """Of each partition the newest `last` records that the broker had taken in by then."""
        for partition, end in self.ends_by(time_ms).items():
            low, _ = self._ranges[partition]
            self._ranges[partition] = max(low, end - last), end
        yield from self.to_end()

    def ends_by(self, time_ms: int) -> dict[int, int]:
        """The end of each partition as it was at that time of the broker."""
        later = [TopicPartition(self.name, partition, time_ms + 1) for partition in self._ranges]
        try:
            found = self._reader.consumer.offsets_for_times(later, timeout=READ_TIMEOUT_S)
        except KafkaException as error:
            raise Unavailable(f"{self.name} cannot be read: {error.args[0].str()}.") from error
        # A negative one says that nothing is later.
        ends = {place.partition: place.offset for place in found if place.offset >= 0}
        return {partition: min(ends.get(partition, high), high) for partition, (_, high) in self._ranges.items()}

    def some(self, start: int, count: int) -> list[Raw]:
        """The first few records of partition 0 from an offset on; fewer where there are not so many."""
        end, found = min(start + count, self.ends()[0]), list[Raw]()
        place = Place(self.name, 0)
        self._reader.assign({place: start})
        with _said():
            for message in self._reader.read_to(place, end, READ_TIMEOUT_S):
                found.append(_raw(message))
        return found[:count]

    def count_by(self, time_ms: int) -> int:
        """How many records there were at that time, of those that are still there."""
        ends = self.ends_by(time_ms)
        return sum(max(0, ends[partition] - low) for partition, (low, _) in self._ranges.items())

    def leap(self, last: int) -> int:
        """Go on with the newest `last` records of each partition where more are to be read; how many that passes over.
        What the client has fetched ahead is dropped. While nobody can tell an end, nothing is passed over.
        """
        places, passed = self._reader.positions(), 0
        for place, at in places.items():
            try:
                _, high = watermarks(self._reader.consumer, self.name, place.partition, LEAP_S)
            except Unavailable:
                return 0
            passed += max(0, high - last - at)
            places[place] = max(at, high - last)
        if passed:
            self._reader.assign(places)
        return passed

    def poll(self, wait_s: float, limit: int = RECORDS_MAX) -> list[Raw]:
        """Records that are there, at most so many; waits for the first one at most `wait_s`."""
        with _said():
            return [_raw(message) for message in self._reader.poll(wait_s, limit)]


@contextmanager
def _said() -> Iterator[None]:
    """To somebody who reads, what retention removes meanwhile is no fault of the job."""
    try:
        yield
    except OutOfRange as error:
        raise Unavailable(f"{error.place}: records were removed before they were read. {error}") from error


def _raw(message: Message) -> Raw:
    key: Any = message.key()
    value = framing.unframed(message.topic() or "", message.value()) or b""
    return Raw(message.partition() or 0, message.offset() or 0, message.timestamp()[1], key, value)


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
