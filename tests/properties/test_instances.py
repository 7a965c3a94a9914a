"""Two instances of a service that do not know of each other: whoever works, dies, wakes up late or loses its disk.

Nothing fences them: both may own the partition for as long as they like, write snapshots, and be half of a rebalance
behind. What is written twice is equal, and not above the mark of a reader who drops repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from antdt_schemas.records import Snapshot
from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, STEPS
from antdt_streams.runtime.memory import MemoryTopics
from antdt_streams.runtime.partitions import Partitions, Policy
from antdt_streams.runtime.runner import Identity, Runner
from antdt_streams.runtime.service import Batch
from antdt_streams.runtime.source import Bounds
from antdt_streams.storage import snapshots
from antdt_streams.storage.snapshots import SLOTS, Assembly, SnapshotFound, cut, key_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.counting import COUNTING, steps
from tests.helpers.memory_service import Crashed, MemoryDriver

IDENTITY = Identity("j", "memory")
Written = list[tuple[bytes, Snapshot]]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PART_BYTES", 64)


class MemoryShelf:
    """Snapshots in a topic that is a list; its process may die behind any part of one."""

    def __init__(self, topic: Written) -> None:
        self.topic, self.slot = topic, 0
        self.crash_in: int | None = None

    def newest(self, partition: int) -> SnapshotFound | None:
        assembly = Assembly(COUNTING.name, partition)
        for key, part in self.topic:
            assembly.add(key, part)
        found = assembly.found()
        self.slot = 0 if found is None else (found.slot + 1) % SLOTS
        return found

    def write(
        self, partition: int, topic_id: str, next_offset: int, rows: Mapping[bytes, bytes], timeout_s: float | None
    ) -> None:
        for part in cut(COUNTING.name, topic_id, partition, next_offset, rows):
            if self.crash_in == part.part:
                raise Crashed
            self.topic.append((key_of(COUNTING.name, partition, self.slot, part.part), part))
        self.slot = (self.slot + 1) % SLOTS


class Instance:
    """One instance with a disk of its own. Each event is something that a process or the world can do at any time."""

    def __init__(self, topics: MemoryTopics, written: Written) -> None:
        self.ends, self.shelf = MemoryDriver(COUNTING, "j", topics), MemoryShelf(written)
        self.log = topics.logs[STEPS.name("j")]
        self.in_flight: list[tuple[str, bytes]] = []
        self.assignments = 0
        self.die()

    def die(self) -> None:
        """kill -9, and a new process."""
        self.in_flight += self.ends._queued
        self.ends._queued = []
        self.queue: list[Batch] = []
        self.owns = False
        self.partitions = Partitions(COUNTING, IDENTITY, self.ends, self.ends, self.shelf, Policy(False, 4))

    def wipe(self) -> None:
        self.ends.disk.content.clear()
        self.die()

    def begin(self) -> None:
        """The partition is assigned."""
        if not self.owns:
            self.owns, self.assignments = True, self.assignments + 1
            self.position = self.partitions.begin(0, self.assignments, Bounds(0, len(self.log)))

    def read(self, count: int) -> None:
        """A batch is fetched, and waits."""
        if self.owns:
            records = self.log[self.position : self.position + count]
            self.queue.append(Batch(0, self.position, records, self.assignments))
            self.position += len(records)

    def take(self, crash_in: int | None = None, crash_in_snapshot: int | None = None) -> None:
        """The batch that has waited longest is processed; the process may die in it."""
        if self.queue:
            self._perhaps_dying(lambda: self.partitions.take(self.queue.pop(0)), crash_in, crash_in_snapshot)

    def end(self, lost: bool, crash_in_snapshot: int | None = None) -> None:
        """The partition goes to somebody else, or has gone; what was fetched still waits."""
        if self.owns:
            self.owns = False
            self._perhaps_dying(lambda: self.partitions.end([0], lost=lost), None, crash_in_snapshot)

    def _perhaps_dying(self, work: Any, crash_in: int | None, crash_in_snapshot: int | None) -> None:
        self.ends.crash_in, self.shelf.crash_in = crash_in, crash_in_snapshot
        try:
            work()
        except Crashed:
            self.die()
        self.ends.crash_in = self.shelf.crash_in = None

    def work(self, count: int, crash_in: int | None) -> None:
        """All of it at once."""
        self.begin()
        self.read(count)
        self.take(crash_in)

    def arrive(self, count: int) -> None:
        """What a dead process had sent reaches the broker after all."""
        for topic, value in self.in_flight[:count]:
            self.ends.topics.append(topic, value)
        del self.in_flight[:count]

    def finish(self) -> None:
        """Own the partition, and process everything."""
        self.begin()
        while self.queue:
            self.take()
        self.read(len(self.log))
        self.take()


inputs = st.lists(
    st.builds(steps, st.sampled_from(["w0", "w1", "w2", "leaver", "refused", "poison"]), st.integers(0, 3))
    | st.sampled_from([b"junk", None]),
    min_size=4,
    max_size=12,
)
deaths = st.none() | st.integers(0, 8)
work = st.tuples(st.just("work"), st.integers(1, 3), deaths)
events = st.one_of(
    *[work] * 4,
    st.tuples(st.just("begin")),
    st.tuples(st.just("read"), st.integers(1, 5)),
    st.tuples(st.just("take"), deaths, st.none() | st.integers(0, 2)),
    st.tuples(st.just("end"), st.booleans(), st.none() | st.integers(0, 2)),
    st.tuples(st.just("die")),
    st.tuples(st.just("wipe")),
    st.tuples(st.just("arrive"), st.integers(1, 3)),
)


@settings(deadline=None, max_examples=300)
@given(inputs, st.lists(st.tuples(st.integers(0, 1), events), max_size=40))
# One dies between two outputs; the other takes over and gets ahead; then the first one's last records arrive.
@example(
    [steps("w0", 3)] * 6,
    [
        *((0, event) for event in [("begin",), ("read", 4), ("take",), ("read", 2), ("take", 2)]),
        *((1, event) for event in [("begin",), ("read", 2), ("take",)]),
        (0, ("arrive", 3)),
    ],
)
# One dies when its state is written: its outputs must be there already, for it goes on behind them.
@example(
    [steps("w0", 1)] * 6, [(0, ("work", 1, 2)), (0, ("work", 2, None)), (0, ("work", 1, 3)), (0, ("work", 2, None))]
)
# A rebalance takes the partition away and gives it back while two batches wait: the second must not be taken.
@example(
    [steps("w0", 1)] * 6,
    [(0, event) for event in [("begin",), ("read", 2), ("read", 2), ("end", True), ("take",), ("begin",), ("take",)]],
)
def test_nothing_is_lost_and_nothing_counts_twice(
    history: list[Any], happening: list[tuple[int, tuple[Any, ...]]]
) -> None:
    reference, topics = MemoryDriver(COUNTING, "j"), MemoryTopics()
    feeder = MemoryDriver(COUNTING, "j", topics)
    for at_ms, record in enumerate(history):
        for driver in (reference, feeder):
            driver.topics.now_ms = at_ms
            driver.feed(record)
    reference.run()
    instances = [Instance(topics, written := []), Instance(topics, written)]
    for who, (event, *arguments) in happening:
        getattr(instances[who], event)(*arguments)
    for instance in instances:
        instance.finish()
        runner = Runner(COUNTING, IDENTITY, instance.ends, instance.ends)
        assert (runner.next_offset, runner.digest()) == (len(history), reference.runner.digest())
    for topic in (MEASUREMENTS, DEAD_LETTERS):
        assert feeder.outputs(topic) == reference.outputs(topic)
