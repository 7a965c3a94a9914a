"""A job on a real broker as a test sees it: what was written, what came out, and what should have come out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.offsets import watermarks
from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, STEPS, Topic
from antdt_streams.kafka import topics_admin
from antdt_streams.runtime.memory import without_repeats
from antdt_streams.runtime.runner import Identity, Runner
from antdt_streams.runtime.service import Raw
from antdt_streams.storage.rocks import RowStore
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from tests.helpers.counting import COUNTING, steps
from tests.helpers.memory_service import MemoryDriver
from tests.helpers.service_process import ServiceProcess

PATIENCE_S = 40.0
ASK_EVERY_S = 1.0


def until(true: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.02)


def mixed(count: int, seed: int) -> list[Any]:
    """Mostly good records with few outputs, some that are none."""
    draw = random.Random(seed)
    kinds = ["w0", "w1", "w2", "leaver", "refused", "poison"]
    weights = [30, 30, 30, 1, 1, 0.2]
    out: list[Any] = []
    for _ in range(count):
        (worker,) = draw.choices(kinds, weights)
        out.append(b"junk" if draw.random() < 0.005 else steps(worker, 1 if draw.random() < 0.1 else 0))
    return out


class Tail:
    """Reads one topic on and on: everything that it holds, each record once."""

    def __init__(self, connection: Connection, topic: str, partition: int = 0) -> None:
        self._topic, self._partition, self.seen = topic, partition, list[Raw]()
        self._consumer = Consumer(connection.consumer())
        low, _ = watermarks(self._consumer, topic, partition, PATIENCE_S)
        self._first, self._asked_s = low, time.monotonic()
        self._consumer.assign([TopicPartition(topic, partition, low)])

    def arrived(self) -> list[Raw]:
        """What has come so far, for who will look again: the broker is asked now and then only."""
        if time.monotonic() - self._asked_s > ASK_EVERY_S:
            return self.read()
        place = TopicPartition(self._topic, self._partition)
        _, high = self._consumer.get_watermark_offsets(place, cached=True)
        return self._up_to(high)

    def read(self) -> list[Raw]:
        """Everything up to the end that the topic has now."""
        _, high = watermarks(self._consumer, self._topic, self._partition, PATIENCE_S)
        self._asked_s = time.monotonic()
        return self._up_to(high)

    def _up_to(self, high: int) -> list[Raw]:
        deadline = time.monotonic() + PATIENCE_S
        while self._first + len(self.seen) < high:
            assert time.monotonic() < deadline, self._topic
            message = self._consumer.poll(0.2)
            if message is not None and not message.error():
                assert message.offset() == self._first + len(self.seen)
                self.seen.append(Raw(message.value(), message.timestamp()[1]))
        return self.seen

    def close(self) -> None:
        self._consumer.close()


class Running:
    """A job whose counting service is run by processes of the test. Its clients are its own, and are closed."""

    def __init__(self, connection: Connection, job: str) -> None:
        topics_admin.create(connection, job)
        self.connection, self.job, self.written = connection, job, 0
        self._producer = self._new_producer()
        self._admin = AdminClient(connection.admin())
        self._group = Consumer(connection.consumer(group_id=f"antdt.{job}.counting"))
        self._tails: dict[tuple[str, int], Tail] = {}

    def _new_producer(self) -> Producer:
        return Producer(self.connection.producer(linger_ms=5))

    def service(self, folder: Path, *flags: str) -> ServiceProcess:
        """An instance of the counting service, as a process."""
        return ServiceProcess(self.connection, self.job, folder, *flags)

    def members(self) -> int:
        """How many instances the group has."""
        group = f"antdt.{self.job}.counting"
        return len(self._admin.describe_consumer_groups([group])[group].result(20).members)

    def add_partitions(self, count: int) -> None:
        """Somebody raises the number of partitions, of outputs and input: those of one partition go into its like."""
        for topic in (MEASUREMENTS, DEAD_LETTERS, STEPS):
            name = topic.name(self.job)
            self._admin.create_partitions([NewPartitions(name, count)])[name].result(20)
            until(lambda: len(self._admin.list_topics(name, 10).topics[name].partitions) == count, "it is known")  # noqa: B023
        self._producer = self._new_producer()

    def write(self, values: list[Any], partition: int = 0) -> None:
        """Append records, or bytes as they are, to the input."""
        for value in values:
            data = value if isinstance(value, bytes) else codec.encode(value)
            self._producer.produce(STEPS.name(self.job), data, partition=partition)
        assert self._producer.flush(PATIENCE_S) == 0
        self.written += len(values) if partition == 0 else 0

    def raws(self, topic: Topic, partition: int = 0) -> list[Raw]:
        """Everything that a topic holds now, repeats included."""
        place = topic.name(self.job), partition
        if place not in self._tails:
            self._tails[place] = Tail(self.connection, *place)
        return self._tails[place].read()

    def records(self, topic: Topic, partition: int = 0) -> list[Any]:
        """What a reader takes who drops repeats."""
        return without_repeats([codec.decode(raw.value, topic.record) for raw in self.raws(topic, partition)])

    def forget(self) -> None:
        """Topics were deleted and created again: clients that knew the old ones take half a minute to believe it."""
        self._producer = self._new_producer()
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()

    def committed(self, partition: int = 0) -> int:
        """The copy of the offset that lag tools see."""
        place = TopicPartition(STEPS.name(self.job), partition)
        try:
            return int(self._group.committed([place], timeout=5)[0].offset)
        except KafkaException:  # a broker that has just started is still loading its groups
            return -1

    def caught_up(self) -> bool:
        """Whether everything that was written is processed."""
        return self.committed() == self.written

    def delete_before(self, offset: int) -> None:
        """What retention does to the input."""
        for future in self._admin.delete_records([TopicPartition(STEPS.name(self.job), 0, offset)]).values():
            future.result(20)

    def stored(self, folder: Path, version: int = COUNTING.version) -> Runner:
        """What a stopped instance left in its folder."""
        service = replace(COUNTING, version=version)
        ids = topics_admin.topic_ids(self.connection, self.job)
        store = RowStore(folder / "rows")
        try:
            return Runner(service, Identity(self.job, ids["steps"]), store, MemoryDriver(COUNTING, self.job))
        finally:
            store.close()

    def undisturbed(self, records: int | None = None) -> MemoryDriver:
        """The same records, with the broker's time stamps, through the driver in memory."""
        driver = MemoryDriver(COUNTING, self.job)
        driver.topics.logs[STEPS.name(self.job)] = self.raws(STEPS)[:records]
        driver.run()
        return driver

    def assert_exact(self, folder: Path, version: int = COUNTING.version) -> None:
        """Everything was processed once: same state, same outputs as undisturbed."""
        runner, reference = self.stored(folder, version), self.undisturbed()
        assert runner.next_offset == self.written
        assert runner.digest() == reference.runner.digest()
        for topic in (MEASUREMENTS, DEAD_LETTERS):
            assert self.records(topic) == reference.outputs(topic)

    def close(self) -> None:
        """End every client."""
        for tail in self._tails.values():
            tail.close()
        self._group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
