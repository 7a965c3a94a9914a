"""The shard log as one writer and reader: appends are acknowledged, entries come in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

from antdt_schemas import topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import LogTruncated, Unavailable
from antdt_schemas.offsets import watermarks
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.options import LedgerOptions


@dataclass(frozen=True, slots=True)
class LogRecord:
    """An entry as it was read."""

    offset: int
    payload: bytes
    leader_epoch: int


class Log:
    """The shard log as one writer and reader: appends are acknowledged, reads come in order."""

    def __init__(
        self,
        connection: Connection,
        job: str,
        options: LedgerOptions,
        record_bytes_max: int = topics.RECORD_BYTES_MAX,
    ) -> None:
        """record_bytes_max: of an entry, and of whatever else its producer is used for."""
        self.topic, self.options, self.record_bytes_max = topics.SHARD_LOG.name(job), options, record_bytes_max
        timeout_ms = int(options.append_timeout_s * 1000)
        self.producer = Producer(
            connection.producer(record_bytes_max, **{"linger.ms": 0, "delivery.timeout.ms": timeout_ms})
        )
        self.consumer = Consumer(connection.consumer(**{"isolation.level": "read_uncommitted"}))
        self.leader_epoch: int | None = None

    def end(self, timeout_s: float | None = None) -> int:
        """Offset of the next entry that will be written, as the broker has it now."""
        return watermarks(self.consumer, self.topic, 0, timeout_s or self.options.read_timeout_s)[1]

    def seek(self, offset: int) -> None:
        """Read on from this offset."""
        self.consumer.assign([TopicPartition(self.topic, 0, offset)])

    def poll(self, wait_s: float) -> list[LogRecord]:
        """The entries that are there; waits for the first one."""
        first = self.consumer.poll(wait_s)
        if first is None:
            return []
        good = []
        for message in (first, *self.consumer.consume(999, 0)):
            error = message.error()
            if error is None:
                record = LogRecord(message.offset() or 0, message.value() or b"", message.leader_epoch() or 0)
                self.leader_epoch = record.leader_epoch
                good.append(record)
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise LogTruncated(f"The range of {self.topic}", "the offset that was read before", error.str())
        return good

    def read_to(self, end: int, fold: Fold) -> Iterator[LogRecord]:
        """Entries from the fold's position up to `end`."""
        until = monotonic() + self.options.read_timeout_s
        while fold.position.next_offset < end:
            messages = self.poll(0.1)
            yield from messages
            if messages:
                until = monotonic() + self.options.read_timeout_s
            elif monotonic() > until:
                raise Unavailable(f"{self.topic} stopped at offset {fold.position.next_offset} of {end}.")

    def append(self, payload: bytes, after: int) -> int:
        """Write an entry; returns its offset once the broker has acknowledged it. `after`: what was read is below.

        Raises:
            Unavailable: no acknowledgement in time; whether it was written shows when the log is read.
            LogTruncated: it landed among offsets that were read before.
        """
        box: list[tuple[KafkaError | None, int | None]] = []
        self.producer.produce(self.topic, payload, partition=0, on_delivery=lambda e, m: box.append((e, m.offset())))
        until = monotonic() + self.options.append_timeout_s + 5
        while not box:
            self.producer.poll(0.05)
            if monotonic() > until:
                raise Unavailable("An entry was not acknowledged in time.")
        error, offset = box[0]
        if error is not None or offset is None:
            raise Unavailable(f"An entry could not be appended: {error}.")
        if offset < after:
            raise LogTruncated(
                f"The end of {self.topic}", f"at least {after}", offset, "Entries are gone, or it was created again."
            )
        return offset

    def close(self) -> None:
        """Hand over what is queued, and end."""
        self.producer.flush(2)
        self.consumer.close()
