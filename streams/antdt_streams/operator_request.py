"""A request of a person, and the ledger's answer. Sent until it is answered: the ledger carries it out once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from time import monotonic

from antdt_schemas import auth, codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable
from confluent_kafka import Producer

from antdt_streams.ledger.options import owner
from antdt_streams.reader import TopicReader, decoded

OPERATOR = "operator"
RETRY_S = 1.0
TIMEOUT_S = 15.0

Body = Callable[[str], records.RequestBody]


def ask(connection: Connection, job: str, body: Body, secret: bytes | None) -> records.Reply:
    """Send the request that `body` makes of its author's name, which is new for every call.

    Raises:
        Unavailable: no ledger answered in time. It may still carry the request out.
    """
    token = uuid.uuid4().hex[:8]
    request = records.Request(OPERATOR, f"{OPERATOR}.{token}", 1, body(f"{owner()}#{token}"), b"")
    payload = codec.encode(auth.sign(request, secret))
    producer = Producer(connection.producer(**{"linger.ms": 0}))
    with TopicReader(connection, job, topics.REPLIES) as reader:
        reader.follow(0)
        until, sent_at = monotonic() + TIMEOUT_S, -RETRY_S
        while monotonic() < until:
            if monotonic() - sent_at >= RETRY_S:
                producer.produce(topics.REQUESTS.name(job), payload, OPERATOR, 0)
                producer.poll(0)
                sent_at = monotonic()
            for _, reply in decoded(reader.poll(0.1), records.Reply):
                if reply.incarnation == request.incarnation:
                    return reply
    producer.flush(1)
    raise Unavailable(
        f"No ledger of job {job!r} answered within {TIMEOUT_S:.0f} s.",
        f"Is `antdt up {job}` running? A ledger that starts later may still carry it out.",
    )
