"""The requests of a job as the ledger reads them."""

from __future__ import annotations

import json
import time
from contextlib import suppress

from antdt_schemas import framing, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Mismatch, Unavailable
from antdt_schemas.launch_locks import process_name
from antdt_schemas.offsets import known_end, watermarks
from antdt_schemas.polling import Place, Reader, TopicGone, new_consumer
from confluent_kafka import KafkaException, TopicPartition

from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.copies import Copies
from antdt_streams.ledger.core.leader import Incoming


class Requests:
    """Reads requests from where the log says, for whoever is in office."""

    def __init__(self, connection: Connection, job: str) -> None:
        self.connection, self.job, self.place = connection, job, Place(topics.REQUESTS.name(job))
        self.topic_id = ""
        group = f"antdt.{job}.ledger"
        copies = Copies(group)
        told = {"on_commit": lambda error, _: copies.came_to(error)}
        self._reader = Reader(connection, make=lambda settings: new_consumer({**settings, **told}), group_id=group)

    def end(self, timeout_s: float) -> int:
        return watermarks(self._reader.consumer, *self.place, timeout_s)[1]

    def known_end(self) -> int | None:
        """The same as was told last; nobody is asked."""
        return known_end(self._reader.consumer, *self.place)

    def look(self) -> tuple[str, int, int]:
        """Kafka's id of the topic, its first offset, and that of the next record.

        Raises:
            Mismatch: there is no such topic.
            Unavailable: the broker does not tell.
        """
        topic_id = topics_admin.topic_ids(self.connection, self.job).get(topics.REQUESTS.suffix)
        if topic_id is None:
            hint = f"`antdt up {self.job} --resume` creates it anew: requests are only questions, nothing is lost."
            raise Mismatch(f"The topic {self.place.topic}", "there", "deleted", hint)
        return topic_id, *watermarks(self._reader.consumer, *self.place)

    def begin(self, topic_id: str, offset: int) -> None:
        self.topic_id = topic_id
        self._reader.identify(self.place.topic, topic_id)
        self._reader.assign({self.place: offset})

    def take(self, wait_s: float, limit: int) -> list[Incoming]:
        """Requests that are there; waits for the first one. Their offsets grow, and may have holes.

        Raises:
            OutOfRange, Recreated: they are not those that were read before.
            Unavailable: the broker has requests, and gives them to no client of this process.
        """
        try:
            messages = self._reader.poll(wait_s, limit)
        except TopicGone:
            return []  # the driver looks at the topics now and then, and knows how long to wait
        except Unavailable as error:
            raise Unavailable(f"This ledger cannot read its requests, and resigns. {error}") from error
        topic = self.place.topic
        return [Incoming(m.offset(), m.timestamp()[1], framing.unframed(topic, m.value())) for m in messages]

    def published(self) -> int | None:
        """The copy of the position, if there is one: Kafka forgets it with the topic."""
        with suppress(KafkaException):
            (at,) = self._reader.consumer.committed([TopicPartition(*self.place)], timeout=10.0)
            return at.offset if at.error is None and at.offset >= 0 else None
        return None

    def publish(self, offset: int) -> None:
        sign = sign_of_life(process_name(), time.time())
        with suppress(KafkaException):
            self._reader.consumer.commit(offsets=[TopicPartition(*self.place, offset, sign)], asynchronous=True)

    def close(self) -> None:
        self._reader.close()


def unread(connection: Connection, job: str) -> str:
    """What is gone of the requests that the ledger has not read, or beyond what it has read, in words; else empty."""
    requests = Requests(connection, job)
    try:
        at, (_, low, high) = requests.published(), requests.look()
    finally:
        requests.close()
    so = "The ledger goes on there, and says so in the log: nothing is lost."
    if at is not None and at < low:
        return f"{requests.place.topic}: {at} to {low - 1} were removed before they were read, it begins at {low}. {so}"
    if at is not None and at > high:
        return f"{requests.place.topic}: up to {at} was read, but it ends at {high}. {so}"
    return ""


def sign_of_life(owner: str, now_s: float) -> str:
    """What a ledger lays beside its position in the requests, each time another one."""
    return json.dumps({"owner": owner, "at_ms": int(now_s * 1000)})
