"""Two instances of a service that do not know of each other: whoever works, dies, wakes up late or loses its disk.

Nothing fences them. What is written twice is equal, and below the mark of a reader who drops repeats.
"""

from __future__ import annotations

from typing import Any

from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, STEPS
from antdt_streams.runtime.memory import Crashed, MemoryDriver, MemoryTopics
from antdt_streams.runtime.service import Batch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.counting import COUNTING, steps


class Instance:
    """One instance with a disk of its own; snapshots and topics are shared."""

    def __init__(self, topics: MemoryTopics, snapshots: list[tuple[int, dict[bytes, bytes]]]) -> None:
        self.driver, self.snapshots = MemoryDriver(COUNTING, "j", topics), snapshots
        self.in_flight: list[tuple[str, bytes]] = []

    def run(self, records_max: int, crash_in: int | None) -> None:
        """Process one batch; it may die in it, with records on their way to the broker."""
        runner, log = self.driver.runner, self.driver.topics.logs[STEPS.name("j")]
        at = runner.next_offset
        self.driver.crash_in = crash_in
        try:
            runner.take(Batch(0, at, log[at : at + records_max]))
        except Crashed:
            self.in_flight += self.driver._queued
            self.begin()
        self.driver.crash_in = None

    def begin(self) -> None:
        """A new process, or an assignment after another instance had the partition: the newest of rows and snapshot."""
        self.driver.restart()
        newest = max(self.snapshots, key=lambda found: found[0], default=(0, {}))
        if newest[0] > self.driver.runner.next_offset:
            assert self.driver.runner.adopt(newest[1])
            assert self.driver.runner.next_offset == newest[0]

    def snapshot(self) -> None:
        self.snapshots.append((self.driver.runner.committed, self.driver.runner.rows()))

    def wipe(self) -> None:
        self.driver.disk.content.clear()
        self.begin()

    def arrive(self, count: int) -> None:
        """What a dead process had sent reaches the broker after all."""
        for topic, value in self.in_flight[:count]:
            self.driver.topics.append(topic, value)
        del self.in_flight[:count]


inputs = st.lists(
    st.builds(steps, st.sampled_from(["w0", "w1", "leaver", "refused", "poison"]), st.integers(0, 3))
    | st.sampled_from([b"junk", None]),
    min_size=1,
    max_size=12,
)
actions = st.one_of(
    st.tuples(st.just("run"), st.integers(1, 5), st.none() | st.integers(0, 8)),
    st.tuples(st.just("begin")),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("wipe")),
    st.tuples(st.just("arrive"), st.integers(1, 3)),
)


@settings(deadline=None, max_examples=200)
@given(inputs, st.lists(st.tuples(st.integers(0, 1), actions), max_size=24))
@example(
    [steps("w0", 3)] * 4,
    # One snapshots and dies between two outputs; the other takes over, is ahead; the first one's records arrive late.
    [
        (0, ("run", 2, None)),
        (0, ("snapshot",)),
        (0, ("run", 2, 2)),
        (1, ("begin",)),
        (1, ("run", 2, None)),
        (0, ("arrive", 3)),
    ],
)
def test_nothing_is_lost_and_nothing_counts_twice(
    history: list[Any], events: list[tuple[int, tuple[Any, ...]]]
) -> None:
    reference = MemoryDriver(COUNTING, "j")
    topics = MemoryTopics()
    instances = [Instance(topics, snapshots := []), Instance(topics, snapshots)]
    for at_ms, record in enumerate(history):
        for driver in (reference, instances[0].driver):
            driver.topics.now_ms = at_ms
            driver.feed(record)
    reference.run()
    for who, (action, *arguments) in [*events, (0, ("run", 12, None)), (1, ("wipe",)), (1, ("run", 12, None))]:
        getattr(instances[who], action)(*arguments)
    for instance in instances:
        assert instance.driver.runner.digest() == reference.runner.digest()
    for topic in (MEASUREMENTS, DEAD_LETTERS):
        assert instances[0].driver.outputs(topic) == reference.outputs(topic)
