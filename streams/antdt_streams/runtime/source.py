"""The exact source: reads partitions of one topic from given offsets and hands over dense batches, in order.

Its consumer joins no group. Offsets are committed as a copy for lag tools and never read back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from antdt_schemas.connection import Connection
from antdt_schemas.errors import ForeignState, LogTruncated, Unavailable, UnknownJob
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from antdt_streams.runtime.service import Batch, Raw

BATCH_RECORDS_MAX = 1000
POLL_S = 0.1
COMMIT_EVERY_S = 2.0
CHECK_EVERY_S = 0.5
ASK_TIMEOUT_S = 10.0
GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)

log = logging.getLogger("antdt.source")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition holds: offsets from `low` up to, not including, `high`."""

    low: int
    high: int


class Source:
    """One consumer, used by one thread at a time: `bounds` and `begin` first, then `read` in a thread of its own."""

    def __init__(self, connection: Connection, topic: str, topic_id: str, group: str) -> None:
        self.topic, self.topic_id, self.halted = topic, topic_id, threading.Event()
        self._away = False
        self._consumer = Consumer(connection.consumer(group_id=group, error_cb=self._on_error))
        self._admin = AdminClient(connection.admin())
        self._committed: dict[int, int] = {}
        self._checked_at_s = 0.0

    def bounds(self, partition: int) -> Bounds:
        """What the broker has now.

        Raises:
            Unavailable: no answer in time.
        """
        try:
            ends = self._consumer.get_watermark_offsets(
                TopicPartition(self.topic, partition), timeout=ASK_TIMEOUT_S, cached=False
            )
        except KafkaException as error:
            raise Unavailable(f"The broker does not tell the bounds of {self.topic}: {error.args[0].str()}.") from error
        return Bounds(*ends)

    def begin(self, starts: Mapping[int, int]) -> None:
        """Read each partition from its offset on."""
        self._consumer.assign([TopicPartition(self.topic, p, offset) for p, offset in sorted(starts.items())])

    def read(self, put: Callable[[Batch], bool], positions: Callable[[], Mapping[int, int]]) -> None:
        """Hand over batches until halted, or until `put` says False. `positions`: next offset of each partition.

        Raises:
            LogTruncated: what is next was removed, or never was there.
            ForeignState: the topic is another one of the same name.
            UnknownJob: the topic is gone.
            Unavailable: the broker refuses to serve it.
        """
        committed_at_s = time.monotonic()
        while not self.halted.is_set():
            batches = list(self._batches())
            if batches and not self._is_same_topic():
                return
            if not all(put(batch) for batch in batches):
                return
            if time.monotonic() - committed_at_s >= COMMIT_EVERY_S:
                self._copy_offsets(positions())
                committed_at_s = time.monotonic()

    def halt(self) -> None:
        """Make `read` return soon; from any thread."""
        self.halted.set()

    def close(self, positions: Mapping[int, int]) -> None:
        """Leave a last copy of the offsets and end. Only after `read` has returned."""
        self._copy_offsets(positions)
        self._consumer.close()

    def _batches(self) -> Iterator[Batch]:
        first = self._consumer.poll(POLL_S)
        if first is None:
            return
        open_runs: dict[int, tuple[int, list[Raw]]] = {}
        # consume(n, t) would wait the whole t for n messages: take what is there.
        for message in (first, *self._consumer.consume(BATCH_RECORDS_MAX - 1, 0)):
            if message.error():
                self._check(message)
                continue
            partition, offset = message.partition() or 0, message.offset() or 0
            run = open_runs.get(partition)
            if run is None or offset != run[0] + len(run[1]):
                if run is not None:
                    yield Batch(partition, *run)
                run = open_runs[partition] = (offset, [])
            run[1].append(Raw(message.value(), message.timestamp()[1]))
        for partition, run in open_runs.items():
            yield Batch(partition, *run)
        self._away = False

    def _is_same_topic(self) -> bool:
        """Whether what was just fetched is of the topic that the state is of; False only when halted meanwhile.

        librdkafka goes on at the same offset of a topic that was deleted and created again, if that has grown so far
        (seen with a consumer that was suspended). What was fetched before a look at the id is sure; under constant load
        there is one every CHECK_EVERY_S.
        """
        while time.monotonic() - self._checked_at_s >= CHECK_EVERY_S:
            asked_at_s = time.monotonic()
            try:
                asked = self._admin.describe_topics(TopicCollection([self.topic]), request_timeout=ASK_TIMEOUT_S)
                found = str(asked[self.topic].result(ASK_TIMEOUT_S).topic_id)
            except (KafkaException, TimeoutError) as error:
                if isinstance(error, KafkaException) and error.args[0].code() in GONE:
                    raise self._gone() from error
                if self.halted.wait(POLL_S):
                    return False
                continue
            if found != self.topic_id:
                raise ForeignState(f"The topic_id of {self.topic}", self.topic_id, found, "It was created again.")
            self._checked_at_s = asked_at_s
        return True

    def _gone(self) -> UnknownJob:
        return UnknownJob(f"The topic {self.topic} is gone.", "Somebody has deleted the job.")

    def _check(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        if error.code() == KafkaError._PARTITION_EOF:
            return
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise self._out_of_range(message.partition() or 0, error)
        if error.code() in GONE:
            raise self._gone()
        raise Unavailable(f"{self.topic} cannot be read: {error.str()}.")

    def _out_of_range(self, partition: int, error: KafkaError) -> LogTruncated:
        at = self._consumer.position([TopicPartition(self.topic, partition)])[0].offset
        bounds = self.bounds(partition)
        hint = f"{error.str()}. The position last read is {at}."
        return LogTruncated(f"What {self.topic} still holds", "the next record", f"{bounds.low} to {bounds.high}", hint)

    def _copy_offsets(self, positions: Mapping[int, int]) -> None:
        changed = {p: offset for p, offset in positions.items() if offset != self._committed.get(p, 0)}
        if not changed:
            return
        try:
            offsets = [TopicPartition(self.topic, p, offset) for p, offset in sorted(changed.items())]
            self._consumer.commit(offsets=offsets, asynchronous=True)
            self._committed.update(changed)
        except KafkaException as error:
            log.info("event=offsets-not-copied reason=%r", error.args[0].str())  # lag tools see it later

    def _on_error(self, error: KafkaError) -> None:
        """librdkafka reconnects by itself; somebody should know that it has to."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not self._away:
            self._away = True
            log.warning("event=broker-away topic=%s reason=%r", self.topic, error.str())
