"""Outputs to Kafka: idempotent, acknowledged by all, never half of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from antdt_schemas import cloud_events, framing
from antdt_schemas.connection import Connection
from antdt_schemas.delivering import flush
from antdt_schemas.denied import WRITE, denied
from antdt_schemas.errors import AntdtError, Unavailable
from antdt_schemas.polling import Place, whole
from antdt_schemas.topics import RECORD_BYTES_MAX
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from antdt_streams.host.tracing import tracing

SLICE_S = 0.1
HALT_GRACE_S = 1.0
READ_TIMEOUT_S = 30.0
QUEUE_RECORDS_MAX = 10_000
QUEUE_KBYTES_MAX = 64 * 1024

log = logging.getLogger("antdt.sink")


class Halted(AntdtError):
    """The process was told to stop while outputs were not acknowledged; nothing of their batch is committed."""


class KafkaSink:
    """One producer. A record that cannot be delivered ends the process: a hole with a success behind it would make
    readers take later records and drop the missing one when it comes.
    """

    def __init__(
        self,
        connection: Connection,
        halted: threading.Event,
        record_bytes_max: int = RECORD_BYTES_MAX,
        service: str = "antdt",
    ) -> None:
        """service: who writes, for readers of the headers."""
        self._halted = halted
        self._connection, self._service = connection, service
        self._failure: tuple[KafkaError, str] | None = None
        self._producer = Producer(
            connection.producer(
                record_bytes_max,
                enable_idempotence=True,
                acks="all",
                # A broker that is away is waited for; whoever restarts this process begins where the state is.
                message_timeout_ms=0,
                linger_ms=5,
                # A topic that is gone is told after 30 s by default, for brokers that are slow to create one.
                topic_metadata_propagation_max_ms=5000,
                queue_buffering_max_messages=QUEUE_RECORDS_MAX,
                queue_buffering_max_kbytes=QUEUE_KBYTES_MAX,
            )
        )

    def send(self, topic: str, value: bytes, partition: int) -> None:
        """Queue one record; waits while the queue is full.

        Raises:
            UsageError: the broker does not let this client write there.
            Unavailable: an earlier record, or this one, cannot be delivered.
            Halted: the process is to stop.
        """
        patience, headers = _Patience(self._halted), cloud_events.headers(topic, partition, value, self._service)
        if (traced := tracing()) is not None:
            headers += traced.sent(topic, partition)
        told, value = self._on_delivery, framing.framed(topic, value)
        while True:
            try:
                self._producer.produce(topic, value, partition=partition, on_delivery=told, headers=headers)
                break
            except BufferError:
                patience.check()
                self._serve(SLICE_S)
                self._check()
            except KafkaException as error:
                wrong = denied(error.args[0], WRITE, topic)
                raise wrong or Unavailable(f"A record for {topic} cannot be written: {error.args[0].str()}.") from error
        self._serve(0)

    def _serve(self, wait_s: float) -> None:
        try:
            self._producer.poll(wait_s)
        except KafkaException as error:
            self._failure = self._failure or (error.args[0], "its output topics")

    def flush(self) -> None:
        """Wait until everything is acknowledged.

        Raises:
            Unavailable: a record cannot be delivered.
            Halted: the process is to stop, and the broker does not answer.
        """
        patience = _Patience(self._halted)
        try:
            while flush(self._producer, SLICE_S):
                self._check()
                patience.check()
        except KafkaException as error:
            self._failure = self._failure or (error.args[0], "its output topics")
        self._check()

    def written(self, topic: str, partition: int, newest: int | None) -> Iterator[bytes | None]:
        """The value of every record that is there now, or of so many newest ones.

        Raises:
            UsageError: the broker does not let this client read there.
            Unavailable: the topic cannot be read to its end.
        """
        for message in whole(self._connection, Place(topic, partition), READ_TIMEOUT_S, newest):
            yield framing.unframed(topic, message.value())

    def close(self) -> None:
        """Give up what is not acknowledged."""
        with suppress(KafkaException):  # it was said before
            self._producer.purge()
            flush(self._producer, SLICE_S)

    def _check(self) -> None:
        if self._failure is not None:
            error, topic = self._failure
            raise denied(error, WRITE, topic) or Unavailable(f"An output cannot be written: {error.str()}.")

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = error, message.topic() or "a topic"


class _Patience:
    """Endless while the service runs, short once it is to stop."""

    def __init__(self, halted: threading.Event) -> None:
        self._halted, self._until_s = halted, 0.0

    def check(self) -> None:
        if not self._halted.is_set():
            return
        now_s = time.monotonic()
        self._until_s = self._until_s or now_s + HALT_GRACE_S
        if now_s >= self._until_s:
            raise Halted("Stopped while the broker did not acknowledge outputs.")
