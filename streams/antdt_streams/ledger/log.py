"""The shard log as one writer and reader: appends are acknowledged, entries come in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from time import monotonic

from antdt_schemas import cloud_events, topics
from antdt_schemas.connection import Connection
from antdt_schemas.delivering import flush
from antdt_schemas.denied import WRITE, denied
from antdt_schemas.errors import LogTruncated, Unavailable, UsageError
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import Place, Reader
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from antdt_streams.host.tracing import tracing
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.ports import LogRecord


class Log:
    def __init__(
        self, connection: Connection, job: str, options: LedgerOptions, record_bytes_max: int = topics.RECORD_BYTES_MAX
    ) -> None:
        """record_bytes_max: of an entry, and of whatever else its producer is used for."""
        self.topic, self.options, self.record_bytes_max = topics.SHARD_LOG.name(job), options, record_bytes_max
        timeout_ms = int(options.append_timeout_s * 1000)
        self.reader, self.place = Reader(connection), Place(self.topic)
        self.producer = Producer(
            connection.producer(record_bytes_max, **{"linger.ms": 0, "delivery.timeout.ms": timeout_ms})
        )
        self.leader_epoch: int | None = None

    def end(self, timeout_s: float | None = None) -> int:
        return watermarks(self.reader.consumer, *self.place, timeout_s or self.options.read_timeout_s)[1]

    @property
    def position(self) -> int:
        """Offset of the next entry to read; all below it were read, or are none."""
        return self.reader.position(self.place)

    def seek(self, offset: int) -> None:
        self.reader.assign({self.place: offset})

    def poll(self, wait_s: float) -> list[LogRecord]:
        return [self._record(message) for message in self.reader.poll(wait_s)]

    def read_to(self, end: int) -> Iterator[LogRecord]:
        return map(self._record, self.reader.read_to(self.place, end, self.options.read_timeout_s))

    def _record(self, message: Message) -> LogRecord:
        self.leader_epoch = message.leader_epoch() or 0
        return LogRecord(message.offset() or 0, message.value() or b"", self.leader_epoch)

    def append(self, payload: bytes, after: int) -> int:
        """Write an entry; its offset. See `_append`."""
        traced = tracing()
        with traced.sending(self.topic, 0) if traced else nullcontext():
            return self._append(payload, after)

    def _append(self, payload: bytes, after: int) -> int:
        """Write an entry; returns its offset once the broker has acknowledged it. `after`: what was read is below.

        Raises:
            Unavailable: no acknowledgement in time; whether it was written shows when the log is read.
            UsageError: the broker does not let this client write the log.
            LogTruncated: it landed among offsets that were read before.
        """
        box: list[tuple[KafkaError | None, int | None]] = []
        headers = cloud_events.headers(self.topic, 0, payload, "ledger")
        try:
            self.producer.produce(
                self.topic, payload, partition=0, on_delivery=lambda e, m: box.append((e, m.offset())), headers=headers
            )
        except KafkaException as failure:
            raise self._unwritten(failure.args[0]) from failure
        until = monotonic() + self.options.append_timeout_s + 5
        while not box:
            self.serve(0.05)
            if monotonic() > until:
                raise Unavailable("An entry was not acknowledged in time.")
        error, offset = box[0]
        if error is not None or offset is None:
            raise self._unwritten(error)
        if offset < after:
            hint = "Entries are gone, or it was created again."
            raise LogTruncated(f"The end of {self.topic}", f"at least {after}", offset, hint)
        return offset

    def serve(self, wait_s: float) -> None:
        """Take what the broker has said of what was written.

        Raises:
            UsageError, Unavailable: the producer has failed for good.
        """
        try:
            self.producer.poll(wait_s)
        except KafkaException as failure:
            raise self._unwritten(failure.args[0]) from failure

    def _unwritten(self, error: KafkaError | None) -> UsageError | Unavailable:
        wrong = denied(error, WRITE, self.topic) if error is not None else None
        return wrong or Unavailable(f"An entry could not be appended: {error.str() if error else 'no offset'}.")

    def close(self) -> None:
        with suppress(KafkaException):  # it was said before
            flush(self.producer, 2)
        self.reader.close()
