"""A topic of training data as Kafka has it: its identity, its bounds, and records by partition and offset.

Owns the consumer, and what it proves: which offsets were read past. Must not know positions, leases or decoders.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

from antdt_schemas.connection import BOOTSTRAP, Connection
from antdt_schemas.errors import AntdtError, ExitCode, Unavailable, UsageError
from antdt_schemas.polling import OutOfRange, Place, Reader, Recreated, TopicGone
from antdt_schemas.properties import to_librdkafka
from antdt_schemas.space import record_name

from antdt.data.records import Fetched, Record

REACH_S = 10.0
PATIENCE_S = 60.0
SKIP_MAX = 2048  # offsets of others that are read over rather than jumped over
WAIT_MS = 10  # the broker holds a fetch where there is nothing: the next partition waits for that
QUEUE_KB = 8 * 1024
POLL_S = 0.2


class RecordsLost(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """Records of a topic are gone before they were trained on."""


def connection_of(
    properties: Mapping[str, str] | str | PathLike[str] | None, job: Connection, *, alone: bool
) -> Connection:
    """How a topic is reached: as it says itself, or as the job is, or, without a job, as the environment says."""
    if isinstance(properties, str | PathLike):
        return Connection.of(None, Path(properties), {})
    if properties is not None:
        named = {key: (str(value), "Topic(properties=…)") for key, value in properties.items()}
        bootstrap = named.pop(BOOTSTRAP, (job.bootstrap, ""))[0]
        known, _ = to_librdkafka(named)
        return Connection(bootstrap, {key: value for key, (value, _) in known.items()})
    return Connection.of(None, None, os.environ) if alone else job


class KafkaTopic:
    """Implements `Broker`. Records come in the order of their offsets: those that were fetched beyond what is asked for
    are kept for the next question.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self.connection = name, connection
        self._id, self._admin = "", cast(Any, None)
        self._reader: Reader | None = None
        self._place = Place(name, -1)
        self._from, self._ahead = 0, deque[Any]()

    # -- what it is

    def _described(self) -> Any:
        from confluent_kafka import KafkaError, KafkaException, TopicCollection
        from confluent_kafka.admin import AdminClient

        if self._admin is None:
            self.connection.check_reachable(REACH_S)
            self._admin = AdminClient(self.connection.admin())
        asked = self._admin.describe_topics(TopicCollection([self.name]), request_timeout=REACH_S)
        try:
            return asked[self.name].result()
        except KafkaException as error:
            said, self._admin = error.args[0], None
            if said.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                where = f"The broker at {self.connection.bootstrap} has no topic {self.name}"
                raise UsageError(f"{where}: create it, and write to it.") from None
            if said.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise UsageError(f"The broker does not let this client see {self.name}: ask for READ on it.") from None
            raise Unavailable(f"The topic {self.name} cannot be looked at: {said.str()}.") from error

    def identity(self) -> bytes:
        """The id of the topic: another one of this name has another."""
        if not self._id:
            self.bounds()
        return self._id.encode()

    def bounds(self) -> dict[int, tuple[int, int]]:
        """First and last stable offset of each partition."""
        from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
        from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

        found = self._described()
        if self._id and str(found.topic_id) != self._id:
            raise RecordsLost(f"The topic {self.name} was deleted and created again: its records are others now.")
        self._id = str(found.topic_id)
        places = [TopicPartition(self.name, partition.id) for partition in found.partitions]
        both = list[dict[int, int]]()
        how = {"isolation_level": IsolationLevel.READ_COMMITTED, "request_timeout": REACH_S}
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):  # type: ignore[no-untyped-call]
            told = self._admin.list_offsets(dict.fromkeys(places, spec), **how)
            try:
                both.append({place.partition: int(future.result().offset) for place, future in told.items()})
            except KafkaException as error:
                self._admin = None
                raise Unavailable(f"The ends of {self.name} are not known: {error.args[0].str()}.") from error
        begins, ends = both
        return {partition: (begins[partition], max(begins[partition], ends[partition])) for partition in sorted(begins)}

    # -- what is in it

    def fetch(self, partition: int, offset: int, length: int) -> Fetched:
        """Records at [offset, offset + length), or at the first of them."""
        place, stop = Place(self.name, partition), offset + length
        reader = self._at(place, offset)
        waited, found = 0.0, list[Record]()
        while not found and waited < PATIENCE_S:
            self._take(found, offset, stop)
            reached = max(offset, reader.position(place)) if not self._ahead else self._ahead[0].offset()
            if found or reached > offset:
                self._from = min(stop, max(reached, found[-1].offset + 1 if found else 0))
                return Fetched(found, self._from)
            try:
                self._ahead.extend(m for m in reader.poll(POLL_S) if m.partition() == partition)
            except OutOfRange as error:
                raise self._lost(error, stop) from None
            except (TopicGone, Recreated) as error:
                what = "gone" if isinstance(error, TopicGone) else "another one now, it was created again"
                raise RecordsLost(f"The topic {self.name} is {what}: {place} was to be read up to {stop}.") from None
            waited += POLL_S
        raise Unavailable(
            f"{place} gave nothing from offset {offset} on for {PATIENCE_S:.0f} s, and had records up to {stop}."
        )

    def _at(self, place: Place, offset: int) -> Reader:
        """A reader that comes by there."""
        if self._reader is None:
            self.identity()
            over: dict[str, Any] = {"isolation_level": "read_committed", "fetch_wait_max_ms": WAIT_MS}
            over["queued_max_messages_kbytes"] = QUEUE_KB
            self._reader = Reader(self.connection, ids={self.name: self._id}, **over)
        reader = self._reader
        near = place == self._place and self._from <= offset <= reader.position(place) + SKIP_MAX
        if not near:
            self._ahead.clear()
            self._place = place
            reader.assign({place: offset})
        self._from = offset
        return reader

    def _take(self, found: list[Record], offset: int, stop: int) -> None:
        ahead = self._ahead
        while ahead and ahead[0].offset() < stop:
            message = ahead.popleft()
            if message.offset() >= offset:
                found.append(record_of(message))

    def _lost(self, error: OutOfRange, stop: int) -> RecordsLost:
        at, where = error.position, record_name(self.name, error.place.partition, error.position)
        if at < error.low:
            last = record_name(self.name, error.place.partition, error.low - 1)
            return RecordsLost(
                f"Retention has removed {where} to {last} before this job has trained on them; {error.place} begins at "
                f"offset {error.low}, and up to {stop} was to be read next.",
                "They are missing in the account of this job. Give the topic a longer retention, and start a new job.",
            )
        return RecordsLost(
            f"{error.place} ends at offset {error.high}, and this job knows of records up to {stop}: the broker has "
            f"lost what was there from {where} on.",
            "Start a new job with what there is.",
        )

    def close(self) -> None:
        """End the consumer."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._admin = None


def record_of(message: Any) -> Record:
    """A consumed message as the decoder gets it."""
    kind, time_ms = message.timestamp()
    stamp = time_ms if kind else None
    headers = tuple((key, value) for key, value in message.headers() or ())
    where = message.topic(), message.partition(), message.offset()
    return Record(*where, stamp, message.key(), message.value(), headers)
