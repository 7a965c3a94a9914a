"""What a worker writes to Kafka: requests, which are asked until they are answered, and timings, which may be lost.

Owns the producer. One that fails for good is replaced; what was on its way is asked again by whoever needs an answer.
Must not know what is said.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.delivering import flush
from antdt_schemas.denied import WRITE, denied
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.framing import framed
from antdt_schemas.topics import RECORD_BYTES_MAX
from confluent_kafka import KafkaError, KafkaException, Producer

QUEUE_MESSAGES_MAX = 10_000
DELIVERY_MS = 30_000
REPLACED_MAX, REPLACED_WITHIN_S = 5, 60.0

log = logging.getLogger("antdt")

Delivered = Callable[[bool], None]


class Sender:
    """Never waits. Called by one thread; what the broker says comes in `poll`.

    record_bytes_max: what the topics take. make: what makes a producer of its settings.
    """

    def __init__(
        self,
        connection: Connection,
        record_bytes_max: int = RECORD_BYTES_MAX,
        make: Callable[[dict[str, Any]], Any] = Producer,
    ) -> None:
        bounds = {"queue.buffering.max.messages": QUEUE_MESSAGES_MAX, "delivery.timeout.ms": DELIVERY_MS}
        self._settings, self._make = connection.producer(record_bytes_max, linger_ms=0, **bounds), make
        self._producer = make(self._settings)
        self._fatal: KafkaError | None = None
        self._failure: UsageError | None = None
        self._replaced: deque[float] = deque(maxlen=REPLACED_MAX)
        self._said = set[str]()

    def ask(self, topic: str, payload: bytes, key: str, taken: Callable[[], None] = lambda: None) -> bool:
        """Send a request; False: it did not go out, ask again. taken: told when the broker has it.

        Raises:
            UsageError: the broker does not let this client write there.
            Unavailable: producers fail one after the other.
        """
        self._renew(topic)

        def delivered(error: KafkaError | None, _message: Any) -> None:
            if error is None:
                taken()
            else:
                self._failure = self._failure or denied(error, WRITE, topic)

        try:
            self._producer.produce(topic, framed(topic, payload), key, 0, on_delivery=delivered)
        except BufferError:
            return False
        except KafkaException as error:
            wrong = denied(error.args[0], WRITE, topic)
            if wrong is not None:
                raise wrong from error
            self._note(error.args[0])
            return False  # the topic is not known yet, or the producer has failed: it is replaced
        return True

    def tell(self, topic: str, payload: bytes, key: str, delivered: Delivered) -> bool:
        """Send what may be lost: whatever is wrong is said once, and ends nothing. delivered(arrived): later."""

        def answered(error: KafkaError | None, _message: Any) -> None:
            if error is not None:
                self._say_once(topic, error)
            delivered(error is None)

        try:
            self._renew(topic)
            self._producer.produce(topic, framed(topic, payload), key, 0, on_delivery=answered)
        except BufferError:
            return False
        except KafkaException as error:
            self._note(error.args[0])
            self._say_once(topic, error.args[0])
            return False
        return True

    def poll(self) -> None:
        """Take what the broker has said. Raises what `ask` does."""
        try:
            self._producer.poll(0)
        except KafkaException as error:
            self._note(error.args[0])
        if self._failure is not None:
            raise self._failure

    def close(self, timeout_s: float) -> None:
        """Send what is left, for so long at most."""
        with suppress(KafkaException):  # nobody is there any more to be told
            flush(self._producer, timeout_s)

    def _note(self, error: KafkaError) -> None:
        """A fatal error is raised by whatever is called next, once; later calls say just that there was one."""
        if error.fatal() or (error.code() == KafkaError._FATAL and self._fatal is None):
            self._fatal = error

    def _renew(self, topic: str) -> None:
        """Have a producer that works, as far as is known."""
        if self._fatal is None:
            return
        error, self._fatal = self._fatal, None
        wrong = denied(error, WRITE, topic)
        if wrong is not None:
            raise wrong
        now = monotonic()
        if len(self._replaced) == REPLACED_MAX and now - self._replaced[0] < REPLACED_WITHIN_S:
            raise Unavailable(
                f"The Kafka producer failed {REPLACED_MAX + 1} times within {REPLACED_WITHIN_S:.0f} s: {error.str()}."
            )
        self._replaced.append(now)
        log.warning("the Kafka producer has failed for good (%s): another one takes its place", error.str())
        with suppress(KafkaException):
            self._producer.purge()
            self._producer.poll(0)
        self._producer = self._make(self._settings)

    def _say_once(self, topic: str, error: KafkaError) -> None:
        wrong = denied(error, WRITE, topic)
        if wrong is not None and topic not in self._said:
            self._said.add(topic)
            log.warning("%s Training goes on without the timings of this worker.", wrong)
