"""A state that another version wrote is replayed from the input; what stands in the topics is neither written again nor
contradicted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest
from antdt_schemas.errors import ForeignState, LogTruncated, Mismatch
from antdt_schemas.records import Measurement, StepBatch
from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, STEPS
from antdt_streams.runtime import rebuild
from antdt_streams.runtime.memory import MemoryTopics
from antdt_streams.runtime.partitions import Partitions, Policy
from antdt_streams.runtime.runner import POSITION, Identity, Runner
from antdt_streams.runtime.service import Batch, Raw, Service
from antdt_streams.runtime.source import Bounds
from antdt_streams.storage.rows import Position, decode_row, encode_row
from antdt_streams.storage.snapshots import SnapshotFound
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.counting import COUNTING, CountingState, measurement, process, steps
from tests.helpers.memory_service import Crashed, MemoryDriver

IDENTITY = Identity("j", "memory")


def newer(state: CountingState, record: StepBatch, position: Position, now_ms: int) -> list[Measurement]:
    """Other rows, and an output more for each record."""
    outputs = process(state, record, position, now_ms)
    state.put(b"newer", b"%d" % position.offset)
    return [*outputs, measurement(position, len(outputs), state, 1)]


NEWER = replace(COUNTING, version=2, process=newer)


def with_service(driver: MemoryDriver, service: Service) -> MemoryDriver:
    """The same topics and the same disk, under another version."""
    driver.service = service
    driver.restart()
    return driver


def written(driver: MemoryDriver) -> tuple[int, int]:
    return tuple(len(driver.topics.records(topic, "j")) for topic in (MEASUREMENTS, DEAD_LETTERS))  # type: ignore[return-value]


HISTORY = [steps("w0", 2), b"junk", steps("poison", 1), steps("w1", 3), steps("leaver", 1)]


def test_the_input_is_replayed_and_nothing_is_written_again() -> None:
    driver = MemoryDriver(COUNTING, "j")
    driver.feed(*HISTORY)
    driver.run()
    driver.disk.write({b"00000/rstale": b"of the old rules", b"00007/rother": b"of another partition"})
    before = written(driver)
    with_service(driver, NEWER)
    assert driver.runner.next_offset == 0
    driver.run()
    assert written(driver) == before
    driver.feed(steps("w0", 1), b"junk")
    driver.run()
    assert written(driver) == (before[0] + 2, before[1] + 1)

    fresh = MemoryDriver(NEWER, "j")
    fresh.feed(*HISTORY, steps("w0", 1), b"junk")
    fresh.run()
    assert driver.runner.digest() == fresh.runner.digest()
    assert driver.disk.content == {**fresh.disk.content, b"00007/rother": b"of another partition"}


def test_wherever_the_old_version_died() -> None:
    """Not only where chance looks, as below."""
    for died_in in range(12):
        test_whenever_the_old_version_died_and_the_new_one_dies.hypothesis.inner_test(
            [steps("w0", 0), steps("w0", 0), steps("w0", 0), steps("w0", 1), b"junk", steps("w1", 2)], died_in, []
        )


inputs = st.lists(
    st.builds(steps, st.sampled_from(["w0", "w1", "leaver", "refused", "poison"]), st.integers(0, 4))
    | st.sampled_from([b"junk", None]),
    min_size=1,
    max_size=10,
)


@settings(deadline=None)
@given(inputs, st.none() | st.integers(0, 30), st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), max_size=8))
def test_whenever_the_old_version_died_and_the_new_one_dies(
    history: list[object], died_in: int | None, crashes: list[tuple[int, int]]
) -> None:
    """What readers took of the old rules stays, and behind it comes what the new rules give of later records."""
    driver = MemoryDriver(COUNTING, "j")
    driver.feed(*history)
    driver.crash_in = died_in
    try:
        driver.run(3)
    except Crashed:
        driver.restart()
    driver.crash_in = None
    taken = [(topic, driver.outputs(topic)) for topic in (MEASUREMENTS, DEAD_LETTERS)]
    before = written(driver)
    processed = driver.runner.next_offset
    with_service(driver, NEWER)
    for crash_in, records_max in crashes:
        driver.crash_in = crash_in
        try:
            driver.run(records_max)
        except Crashed:
            driver.restart()
    driver.crash_in = None
    driver.run()
    fresh = MemoryDriver(NEWER, "j")
    fresh.feed(*history)
    fresh.run()
    assert driver.runner.digest() == fresh.runner.digest()
    if died_in is None or processed:
        for (topic, old), count in zip(taken, before, strict=True):
            everything = driver.outputs(topic)
            assert everything[: len(old)] == old
            new = [at(output) for output in everything[len(old) :]]
            newest = max([at(output) for output in old], default=(-1, -1))
            for output in driver.topics.records(topic, "j")[count:]:
                assert at(output) > newest and at(output)[0] >= processed, "it is not even written again"
            assert new == [at(o) for o in fresh.outputs(topic) if at(o) > newest and at(o)[0] >= processed]
    driver.restart()
    assert driver.disk.content == fresh.disk.content


def at(output: object) -> tuple[int, int]:
    cause = getattr(output, "cause", None)
    return (cause.offset, cause.index) if cause is not None else (output.offset, 0)  # type: ignore[attr-defined]


class Shelf:
    """One snapshot, or none."""

    def __init__(self, found: SnapshotFound | None = None) -> None:
        self.found = found

    def newest(self, partition: int) -> SnapshotFound | None:
        return self.found

    def write(self, partition: int, topic_id: str, next_offset: int, rows: Mapping[bytes, bytes], s: object) -> None:
        self.found = SnapshotFound(topic_id, next_offset, rows, 0)


def old(count: int) -> tuple[MemoryDriver, SnapshotFound]:
    """The old version behind so many records, and a snapshot of it."""
    driver = MemoryDriver(COUNTING, "j")
    driver.feed(*[steps("w0", 1)] * count)
    driver.run()
    return driver, SnapshotFound("memory", count, driver.runner.rows(), 0)


def partitions(service: Service, driver: MemoryDriver, shelf: Shelf) -> Partitions:
    return Partitions(service, IDENTITY, driver, driver, shelf, Policy())


def test_a_snapshot_of_another_version_is_not_taken_and_what_it_had_written_is_not_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the folder gone; and where the folder is of this version, but not as far."""
    for ahead in (0, 2):
        driver, snapshot = old(5)
        driver.disk.content.clear()
        with_service(driver, NEWER)
        raws = driver.topics.logs[STEPS.name("j")]
        if ahead:
            driver.runner.take(Batch(0, 0, raws[:ahead]))
        count = written(driver)[0]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made = partitions(NEWER, driver, Shelf(snapshot))
            assert made.begin(0, 1, Bounds(0, 5)) == ahead
        (line,) = [r.getMessage() for r in caplog.records]
        assert "was written by version 1 of the counting, this is version 2: it is rebuilt from the topic" in line
        made.take(Batch(0, ahead, raws[ahead:5], 1))
        assert written(driver)[0] == count
        made.take(Batch(0, 5, [raws[0]], 1))
        assert written(driver)[0] == count + 2


def test_a_snapshot_of_this_version_shortens_the_replay() -> None:
    driver, snapshot = old(5)
    mine = with_service(MemoryDriver(COUNTING, "j"), NEWER)
    mine.feed(*[steps("w0", 1)] * 3)
    mine.run()
    shelf = Shelf(SnapshotFound("memory", 3, mine.runner.rows(), 0))
    count = written(driver)[0]
    made = partitions(NEWER, driver, shelf)
    assert made.begin(0, 1, Bounds(0, 5)) == 3
    again = partitions(NEWER, driver, shelf)  # a restart in the middle of it: what was written is still known
    assert again.begin(0, 1, Bounds(0, 5)) == 3
    raws = driver.topics.logs[STEPS.name("j")]
    again.take(Batch(0, 3, raws[3:5], 1))
    assert written(driver)[0] == count
    again.take(Batch(0, 5, [raws[0]], 1))
    assert written(driver)[0] == count + 2
    assert shelf.found is not None and snapshot.next_offset == 5


def test_a_version_that_was_rebuilding_is_followed_by_another_one_and_by_the_old_one() -> None:
    """What the first one had written counts for both, however far the second one came."""
    for service in (replace(NEWER, version=3), COUNTING):
        driver, snapshot = old(6)
        count = written(driver)
        with_service(driver, NEWER).runner.take(Batch(0, 0, driver.topics.logs[STEPS.name("j")][:2]))
        made = partitions(service, driver, Shelf(snapshot))
        first = made.begin(0, 1, Bounds(0, 6))
        assert first == (6 if service is COUNTING else 0), "its own snapshot, or nothing"
        made.take(Batch(0, first, driver.topics.logs[STEPS.name("j")][first:], 1))
        assert written(driver) == count
        driver.feed(steps("w0", 1))
        made.take(Batch(0, 6, driver.topics.logs[STEPS.name("j")][6:], 1))
        assert written(driver)[0] > count[0]
        # With no snapshot, the rows alone say it.
        driver, _ = old(6)
        with_service(driver, NEWER).runner.take(Batch(0, 0, driver.topics.logs[STEPS.name("j")][:2]))
        with_service(driver, service).run()
        assert written(driver) == count


def test_a_snapshot_of_the_old_version_that_is_further_on_than_a_rebuild_extends_it() -> None:
    driver, _ = old(4)
    with_service(driver, NEWER).runner.take(Batch(0, 0, driver.topics.logs[STEPS.name("j")][:2]))
    further, snapshot = old(6)  # a zombie of the old version went on
    driver.topics.logs = further.topics.logs
    made = partitions(NEWER, driver, Shelf(snapshot))
    assert made.begin(0, 1, Bounds(0, 6)) == 2
    count = written(driver)
    made.take(Batch(0, 2, driver.topics.logs[STEPS.name("j")][2:6], 1))
    assert written(driver) == count


def test_what_retention_has_removed_is_said_and_gone_without() -> None:
    driver, _ = old(8)
    made = partitions(NEWER, driver, Shelf())
    assert made.begin(0, 1, Bounds(3, 8)) == 3
    (letter,) = driver.outputs(DEAD_LETTERS)
    assert letter.reason == (
        "Records 0 to 2 of antdt.j.steps were removed by retention; another version had processed them, and its state "
        "is rebuilt without them."
    )
    count = written(driver)[0]
    made.take(Batch(0, 3, driver.topics.logs[STEPS.name("j")][3:8], 1))
    assert written(driver)[0] == count
    fresh, later = MemoryDriver(NEWER, "j"), driver.topics.logs[STEPS.name("j")][3:]
    fresh.runner.skip_to(3, "as above")
    fresh.runner.take(Batch(0, 3, later))
    assert Runner(NEWER, IDENTITY, driver, driver).digest() == fresh.runner.digest()


def test_records_that_nobody_has_processed_are_not_gone_without_and_none_may_be_missing_at_the_end() -> None:
    driver, _ = old(8)
    with pytest.raises(LogTruncated, match=r"Records 0 to 8 of .* were not processed"):
        partitions(NEWER, driver, Shelf()).begin(0, 1, Bounds(9, 12))
    driver, _ = old(8)
    with pytest.raises(LogTruncated, match="at least 8, which was processed already, found 7"):
        partitions(NEWER, driver, Shelf()).begin(0, 1, Bounds(0, 7))


def test_another_job_or_topic_and_damage_are_refused_whatever_the_version() -> None:
    driver, snapshot = old(3)
    for identity, what in ((Identity("other", "memory"), "job"), (Identity("j", "new"), "topic_id")):
        with pytest.raises(ForeignState, match=f"The {what} of the stored state"):
            Runner(NEWER, identity, driver, driver)
        empty = Runner(NEWER, identity, MemoryDriver(NEWER, identity.job), driver)
        with pytest.raises(ForeignState, match=f"The {what} of the stored state"):
            empty.adopt(snapshot.rows)
    key = b"00000/" + POSITION
    kept = driver.disk.content[key]
    found = decode_row(kept)
    del found["topic_id"]
    for damaged in (kept[:-3], b"\xff\x00", b"[]", encode_row(found)):
        driver.disk.content[key] = damaged
        for service in (COUNTING, NEWER):
            with pytest.raises(Mismatch, match=r"position in the stored state of antdt\.j\.steps differs"):
                Runner(service, IDENTITY, driver, driver)


def test_rows_of_another_format_are_rebuilt_though_nobody_has_raised_the_version() -> None:
    driver, _ = old(3)

    def load(rows: Mapping[bytes, bytes]) -> CountingState:
        if rows and b"newer" not in rows:
            raise Mismatch("Format of the state", 2, 1)
        return CountingState(rows)

    count = written(driver)
    with_service(driver, replace(NEWER, version=1, load_state=load)).run()
    assert written(driver) == count
    assert driver.runner.state.rows[b"newer"] == b"2"


def test_nothing_is_taken_before_it_is_known_what_was_written() -> None:
    driver, _ = old(3)
    with pytest.raises(AssertionError):
        Runner(NEWER, IDENTITY, driver, driver).take(Batch(0, 0, [Raw(b"", 0)]))


def test_the_newest_cause_is_looked_for_in_the_tail_and_every_answer_in_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A topic of outputs may be large; a service that follows its own needs all of them."""
    monkeypatch.setattr(rebuild, "TAIL_RECORDS", 2)
    driver, _ = old(6)
    driver.crash_in = 3  # the outputs of two further records are written, and their state is not
    driver.feed(*[steps("w0", 1)] * 2)
    with pytest.raises(Crashed):
        driver.run()
    found = rebuild.Written.read(NEWER, "j", driver, 0, 6)
    assert (found.below, found.marks, found.answers) == (6, {MEASUREMENTS.name("j"): (7, 0)}, {})
    follows = replace(NEWER, follow=lambda *_: None)
    assert list(rebuild.Written.read(follows, "j", driver, 0, 6).answers) == list(range(8))


def test_a_copy_that_a_zombie_wrote_late_moves_no_mark_back() -> None:
    """And junk in the output topic is nobody's."""
    topics = MemoryTopics()
    driver = MemoryDriver(COUNTING, "j", topics)
    driver.feed(*[steps("w0", 2)] * 3)
    driver.run()
    log = topics.logs[MEASUREMENTS.name("j")]
    log += [log[0], Raw(b"junk", 0), Raw(None, 0)]
    driver.disk.content.clear()
    _, snapshot = old(1)
    made = partitions(NEWER, driver, Shelf(snapshot))
    assert made.begin(0, 1, Bounds(0, 3)) == 0
    made.take(Batch(0, 0, topics.logs[STEPS.name("j")][:3], 1))
    del log[7:9]  # the junk, which this reader does not know
    assert [at(m) for m in driver.outputs(MEASUREMENTS)][6:] == [(2, 2)], "of the new rules, behind what was written"
