"""Replies and dead letters of a ledger, written by the log's own producer."""

from __future__ import annotations

import logging

from antdt_schemas import cloud_events, codec, framing, records, topics
from antdt_schemas.denied import WRITE, denied
from antdt_schemas.errors import Unavailable
from confluent_kafka import KafkaException

from antdt_streams.ledger.core.leader import Incoming
from antdt_streams.ledger.log import Log

LETTER_BYTES_MAX = 64 << 10

log = logging.getLogger("antdt.ledger")


class Replies:
    """The way to those who asked."""

    def __init__(self, shard_log: Log, job: str) -> None:
        self.log, self.asked = shard_log, topics.REQUESTS.name(job)
        self.topic, self.dead = topics.REPLIES.name(job), topics.DEAD_LETTERS.name(job)
        self.buried = 0

    def send(self, reply: records.Reply) -> None:
        """Answer a worker. What is larger than its topic takes is refused instead."""
        partition, payload = topics.replies_partition(reply.worker), codec.encode(reply)
        if len(payload) > self.log.record_bytes_max:
            reason = f"The answer has {len(payload)} bytes, and {self.topic} takes {self.log.record_bytes_max}."
            log.error("event=answer-too-large worker=%s reason=%r", reply.worker, reason)
            who = reply.worker, reply.incarnation, reply.number
            payload = codec.encode(records.Reply(*who, records.Status.REFUSED, reason, 0, 0, False, (), None))
        self._produce(self.topic, payload, reply.worker, partition)

    def bury(self, incoming: Incoming, reason: str) -> None:
        """Keep a request that could not be decided, or the beginning of a large one."""
        payload, kept = incoming.payload or b"", min(LETTER_BYTES_MAX, self.log.record_bytes_max // 2)
        letter = records.DeadLetter("ledger", self.asked, 0, incoming.offset, reason, payload[:kept], len(payload))
        self._produce(self.dead, codec.encode(letter), None, 0)
        self.buried += 1

    def _produce(self, topic: str, value: bytes, key: str | None, partition: int) -> None:
        """A reply may be lost, it is asked for again; the queue is librdkafka's, and bounded."""
        headers, value = cloud_events.headers(topic, partition, value, "ledger"), framing.framed(topic, value)
        for _ in range(100):
            try:
                self.log.producer.produce(topic, value, key, partition, headers=headers)
            except BufferError:
                self.log.serve(0.1)
            except KafkaException as error:
                wrong = denied(error.args[0], WRITE, topic)
                raise wrong or Unavailable(f"{topic} cannot be written: {error.args[0].str()}.") from error
            else:
                return
        raise Unavailable(f"{topic} takes no records: the queue stayed full.")
