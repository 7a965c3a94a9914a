"""A request of a person, and the ledger's answer. Sent until it is answered: the ledger carries it out once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from antdt_schemas import auth, codec, framing, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.delivering import flush
from antdt_schemas.denied import WRITE, denied
from antdt_schemas.errors import Unavailable
from antdt_schemas.launch_locks import process_name
from confluent_kafka import KafkaException, Producer

from antdt_streams.kafka.reader import TopicReader, decoded

OPERATOR = "operator"
RETRY_S = 1.0
TIMEOUT_S = 15.0

Body = Callable[[str], records.RequestBody]


def author(who: str = "") -> str:
    """Who says something, as records have it. who: a name that somebody gave; this process stands behind it."""
    return f"{who} by {process_name()}" if who else process_name()


def ask(connection: Connection, job: str, body: Body, secret: bytes | None, who: str = "") -> records.Reply:
    """Send the request that `body` makes of its author's name, which is new for every call.

    Raises:
        UsageError: the broker does not let this client write requests.
        Unavailable: no ledger answered in time. It may still carry the request out.
    """
    token = uuid.uuid4().hex[:8]
    request = records.Request(OPERATOR, f"{OPERATOR}.{token}", 1, body(f"{author(who)}#{token}"), b"")
    topic, wrong = topics.REQUESTS.name(job), list[Any]()
    payload = framing.framed(topic, codec.encode(auth.sign(request, secret)))
    producer = Producer(connection.producer(linger_ms=0))

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            wrong.append(error)

    with TopicReader(connection, job, topics.REPLIES) as reader:
        reader.follow(0)
        until, sent_at = monotonic() + TIMEOUT_S, -RETRY_S
        while monotonic() < until:
            if monotonic() - sent_at >= RETRY_S:
                sent_at = monotonic()
                with noted(wrong):
                    producer.produce(topic, payload, OPERATOR, 0, on_delivery=delivered)
            with noted(wrong):
                producer.poll(0)
            refused = next((found for e in wrong if (found := denied(e, WRITE, topic)) is not None), None)
            if refused is not None:
                raise refused
            wrong.clear()  # anything else may pass: it is asked again
            for _, reply in decoded(reader.poll(0.1), records.Reply):
                if reply.incarnation == request.incarnation:
                    return reply
    with noted(wrong):
        flush(producer, 1)
    raise Unavailable(
        f"No ledger of job {job!r} answered within {TIMEOUT_S:.0f} s.",
        f"Is `antdt up {job}` running? A ledger that starts later may still carry it out.",
    )


@contextmanager
def noted(errors: list[Any]) -> Iterator[None]:
    """Errors of Kafka's client go into this list."""
    try:
        yield
    except KafkaException as error:
        errors.append(error.args[0])
