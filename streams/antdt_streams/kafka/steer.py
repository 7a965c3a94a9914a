"""A word of an operator or a scheduler to a job's Controller, and its answer: a decision that names it as its cause.

It is written into the Controller's input once, where its place among the measurements is recorded with it.
"""

from __future__ import annotations

import uuid
from time import monotonic
from typing import Any

from antdt_schemas import cloud_events, codec, framing, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.delivering import flush
from antdt_schemas.denied import WRITE, denied
from antdt_schemas.errors import Unavailable
from confluent_kafka import Producer

from antdt_streams.kafka.ask import noted
from antdt_streams.kafka.reader import TopicReader, decoded

TIMEOUT_S = 15.0


def steer(connection: Connection, job: str, said: records.Steering, timeout_s: float = TIMEOUT_S) -> records.Decision:
    """Write it, and wait for the answer.

    Raises:
        UsageError: the broker does not let this client write there.
        Unavailable: the broker did not take it, or no Controller answered in time: one that runs later does.
    """
    topic, wrong, at = topics.MEASUREMENTS.name(job), list[Any](), list[int]()

    def delivered(error: Any, message: Any) -> None:
        if error is not None:
            wrong.append(error)
        else:
            at.append(message.offset())

    with TopicReader(connection, job, topics.DECISIONS) as reader:
        reader.follow(0)
        producer, value = Producer(connection.producer(linger_ms=0)), codec.encode(said)
        with noted(wrong):
            headers = cloud_events.headers(topic, 0, value, "operator", uuid.uuid4().bytes)
            value = framing.framed(topic, value)
            producer.produce(topic, value, partition=0, on_delivery=delivered, headers=headers)
            flush(producer, timeout_s)
        if not at:
            refused = next((found for error in wrong if (found := denied(error, WRITE, topic)) is not None), None)
            raise refused or Unavailable(f"{topic} did not take it within {timeout_s:.0f} s.", "Is the broker there?")
        until = monotonic() + timeout_s
        while monotonic() < until:
            for _, decision in decoded(reader.poll(0.1), records.Decision):
                if decision.cause.offset == at[0] and decision.cause.partition == 0:
                    return decision
    raise Unavailable(
        f"No Controller of job {job!r} answered within {timeout_s:.0f} s.",
        f"Is `antdt up {job}` running? One that starts later still hears it.",
    )
