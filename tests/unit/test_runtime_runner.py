"""The exact loop: crashes at any moment, poison, repeats, gaps, foreign state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from antdt_schemas import codec, records
from antdt_schemas.errors import ForeignState, LogTruncated, Mismatch
from antdt_schemas.topics import DEAD_LETTERS, DECISIONS, MEASUREMENTS
from antdt_streams.runtime.memory import MemoryTopics
from antdt_streams.runtime.runner import Identity, Runner
from antdt_streams.runtime.service import Batch, Raw, Service
from antdt_streams.storage.rows import Position
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.counting import COUNTING, CountingState, process, steps
from tests.helpers.memory_service import Crashed, MemoryDriver

inputs = st.lists(
    st.builds(steps, st.sampled_from(["w0", "w1", "leaver", "refused", "poison"]), st.integers(0, 4))
    | st.sampled_from([b"", b"junk", None, codec.encode(steps("w2", 1))[:-1]]),
    max_size=12,
)


def fed(driver: MemoryDriver, history: Sequence[object]) -> MemoryDriver:
    for at_ms, record in enumerate(history):
        driver.topics.now_ms = 1000 * ((at_ms * 7) % 5)  # back and forth
        driver.feed(record)
    return driver


@settings(deadline=None)
@given(inputs, st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), max_size=8), st.integers(1, 12))
def test_crashes_change_nothing(history: list[object], crashes: list[tuple[int, int]], calm_records: int) -> None:
    """Whatever moment the process dies at, readers see the outputs of an undisturbed run, and the states are equal."""
    calm = fed(MemoryDriver(COUNTING, "j"), history)
    calm.run(calm_records)
    stormy = fed(MemoryDriver(COUNTING, "j"), history)
    for crash_in, records_max in crashes:
        stormy.crash_in = crash_in
        try:
            stormy.run(records_max)
        except Crashed:
            stormy.restart()
    stormy.crash_in = None
    stormy.run()
    assert stormy.outputs(MEASUREMENTS) == calm.outputs(MEASUREMENTS)
    assert stormy.outputs(DEAD_LETTERS) == calm.outputs(DEAD_LETTERS)
    assert stormy.runner.digest() == calm.runner.digest()
    stormy.restart()
    assert stormy.runner.digest() == calm.runner.digest()
    assert stormy.runner.next_offset == len(history)
    assert stormy.disk.content == calm.disk.content


def test_every_output_is_written_in_order() -> None:
    driver = fed(MemoryDriver(COUNTING, "j"), [steps("w0", 2), steps("w1", 9)])
    driver.run()
    causes = [(m.cause.offset, m.cause.index) for m in driver.topics.records(MEASUREMENTS, "j")]
    assert causes == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert driver.runner.counters.outputs == 5


def test_time_never_goes_back_not_even_over_a_restart() -> None:
    seen_ms: list[int] = []

    def watching(state: CountingState, record: records.StepBatch, at: Position, now_ms: int) -> list[object]:
        seen_ms.append(now_ms)
        return []

    driver = MemoryDriver(replace(COUNTING, process=watching), "j")
    for now_ms in (5, 3, 9, 2, 10):
        driver.topics.now_ms = now_ms
        driver.feed(steps("w0"))
        driver.run()
        driver.restart()
    assert seen_ms == [5, 5, 9, 9, 10]


def test_a_crash_between_output_and_state_repeats_the_output() -> None:
    """The property above would hold of a driver that never crashes: this one does."""
    driver = fed(MemoryDriver(COUNTING, "j"), [steps("w0", 1)])
    driver.crash_in = 2  # 0 before the output, 1 after it, 2 before the state
    with pytest.raises(Crashed):
        driver.run()
    assert driver.disk.content == {}
    driver.restart()
    driver.run()
    assert len(driver.topics.records(MEASUREMENTS, "j")) == 2
    assert len(driver.outputs(MEASUREMENTS)) == 1


def test_poison_leaves_a_letter_and_no_trace_in_the_state() -> None:
    history = [steps("w0", 1), steps("poison", 2), steps("huge", 1), steps("w0", 1)]
    driver = fed(MemoryDriver(COUNTING, "j"), history)
    driver.run()
    first, second = driver.outputs(DEAD_LETTERS)
    assert (first.service, first.topic, first.partition, first.offset) == ("counting", "antdt.j.steps", 0, 1)
    assert first.reason == "counting failed on it: RuntimeError: the detector divides by zero"
    assert codec.decode(first.payload, records.StepBatch) == steps("poison", 2)
    assert "more than the 1000000" in second.reason
    assert [m.cause for m in driver.outputs(MEASUREMENTS)] == [records.Cause(0, 0, 0), records.Cause(0, 3, 0)]
    assert set(driver.runner.state.rows) == {b"w0", b"\0chain"}
    assert driver.runner.counters.dead_letters == 2
    assert driver.runner.next_offset == 4


def test_undecodable_records_leave_letters() -> None:
    driver = fed(MemoryDriver(COUNTING, "j"), [b"junk" * 50_000, None, steps("refused", 1), steps("w0", 1)])
    driver.run()
    letters = driver.outputs(DEAD_LETTERS)
    assert [letter.offset for letter in letters] == [0, 1, 2]
    assert (len(letters[0].payload), letters[0].payload_size) == (65536, 200_000)
    assert letters[2].reason == "It contradicts itself."
    assert driver.runner.counters.restores == 0


def test_what_a_record_cannot_be_blamed_for_ends_the_process() -> None:
    def out_of_memory(*_: object) -> list[object]:
        raise MemoryError

    def mismatch(*_: object) -> list[object]:
        raise Mismatch("format", 1, 2)

    for failing, error in ((out_of_memory, MemoryError), (mismatch, Mismatch)):
        driver = fed(MemoryDriver(replace(COUNTING, process=failing), "j"), [steps("w0")])
        with pytest.raises(error):
            driver.run()
        assert driver.topics.records(DEAD_LETTERS, "j") == []


def test_a_service_that_names_another_cause_is_our_bug() -> None:
    def late(state: CountingState, record: records.StepBatch, at: Position, now_ms: int) -> list[records.Measurement]:
        return process(state, record, Position(at.partition, at.offset + 1), now_ms)

    driver = fed(MemoryDriver(replace(COUNTING, process=late), "j"), [steps("w0", 1)])
    with pytest.raises(AssertionError):
        driver.run()


def test_a_service_that_is_not_a_function_of_its_input_is_found_out() -> None:
    calls = []

    def moody(state: CountingState, record: records.StepBatch, at: Position, now_ms: int) -> list[records.Measurement]:
        calls.append(at)
        return process(state, record, at, now_ms + len(calls))

    driver = fed(MemoryDriver(replace(COUNTING, process=moody), "j"), [steps("w0", 1), steps("poison", 1)])
    with pytest.raises(AssertionError, match="other outputs for the same records"):
        driver.run()


def test_repeats_of_the_input_are_skipped_and_gaps_stop() -> None:
    driver = fed(MemoryDriver(COUNTING, "j"), [steps("w0", 1)] * 3)
    driver.run()
    before = driver.runner.digest()
    raws = [Raw(codec.encode(steps("w0", 1)), 5) for _ in range(4)]
    driver.runner.take(Batch(0, 1, raws[:2]))
    driver.runner.take(Batch(0, 0, raws[:1]))
    assert (driver.runner.digest(), driver.runner.next_offset) == (before, 3)
    driver.runner.take(Batch(0, 2, raws))  # 2 is old, 3 to 5 are new
    assert driver.runner.next_offset == 6
    with pytest.raises(LogTruncated, match=r"antdt\.j\.steps differs: expected 6, found 7"):
        driver.runner.take(Batch(0, 7, raws))


def test_a_hole_is_passed_where_the_broker_gave_what_is_behind_it() -> None:
    """Also by a record that makes the service fail, so that it begins anew behind the last commit."""
    driver = fed(MemoryDriver(COUNTING, "j"), [steps("w0", 1)])
    driver.run()
    raws = [Raw(codec.encode(steps(worker, 1)), 5) for worker in ("w0", "poison", "w1")]
    driver.runner.take(Batch(0, 4, raws, since=1))
    assert driver.runner.next_offset == 7
    assert [m.cause.offset for m in driver.outputs(MEASUREMENTS)] == [0, 4, 6]
    assert [letter.offset for letter in driver.outputs(DEAD_LETTERS)] == [5]
    driver.restart()
    assert driver.runner.next_offset == 7
    with pytest.raises(LogTruncated, match="expected 7, found 8"):
        driver.runner.take(Batch(0, 9, raws, since=8))  # 7 was given to its reader, and has not come here


def test_foreign_state_is_refused_with_both_values() -> None:
    driver = fed(MemoryDriver(COUNTING, "j"), [steps("w0", 1)])
    driver.run()

    def opened(service: Service, job: str = "j", topic_id: str = "memory") -> Runner:
        return Runner(service, Identity(job, topic_id), driver, driver)

    assert opened(COUNTING).next_offset == 1
    with pytest.raises(ForeignState, match=r"job of the stored state .* expected other, found j"):
        opened(COUNTING, job="other")
    with pytest.raises(ForeignState, match=r"topic_id .* expected new, found memory"):
        opened(COUNTING, topic_id="new")
    other = opened(replace(COUNTING, version=2))
    assert (other.next_offset, other.outdated.next_offset) == (0, 1)  # type: ignore[union-attr]
    with pytest.raises(ForeignState, match=r"service .* expected monitor, found counting"):
        opened(replace(COUNTING, name="monitor"))


def test_a_snapshot_replaces_what_is_stored_unless_other_rules_wrote_it() -> None:
    ahead, behind = (fed(MemoryDriver(COUNTING, "j"), [steps("w0", 1), steps("leaver", 1)]) for _ in range(2))
    ahead.run()
    behind.run(1)
    rows = ahead.runner.rows()
    behind.disk.write({b"00000/rstale": b"row", b"00007/rother": b"row"})
    assert behind.runner.adopt(rows)
    assert behind.disk.content == {**ahead.disk.content, b"00007/rother": b"row"}
    assert (behind.runner.next_offset, behind.runner.digest()) == (2, ahead.runner.digest())

    newer = Runner(replace(COUNTING, version=2), Identity("j", "memory"), MemoryDriver(COUNTING, "j"), behind)
    assert not newer.adopt(rows)
    assert newer.next_offset == 0
    other = Runner(COUNTING, Identity("j", "new"), MemoryDriver(COUNTING, "j"), behind)
    with pytest.raises(ForeignState, match=r"topic_id .* expected new, found memory"):
        other.adopt(rows)


def test_partitions_share_a_store_and_nothing_else() -> None:
    driver = MemoryDriver(COUNTING, "j")
    zero = Runner(COUNTING, Identity("j", "memory"), driver.disk, driver)
    other = Runner(COUNTING, Identity("j", "memory"), driver.disk, _Sink(), partition=7)
    raw = Raw(codec.encode(steps("w0", 1)), 5)
    other.take(Batch(7, 0, [raw, raw]))
    zero.take(Batch(0, 0, [raw]))
    reopened = [Runner(COUNTING, Identity("j", "memory"), driver.disk, driver, partition=p) for p in (0, 7)]
    assert [r.next_offset for r in reopened] == [1, 2]
    assert [r.digest() for r in reopened] == [zero.digest(), other.digest()]


class _Sink:
    def send(self, topic: str, value: bytes, partition: int) -> None:
        assert partition == 7

    def flush(self) -> None:
        pass


def test_going_on_behind_lost_records_is_recorded() -> None:
    driver = MemoryDriver(COUNTING, "j")
    driver.runner.skip_to(5, "records 0 to 4 are gone")
    driver.restart()
    assert driver.runner.next_offset == 5
    (letter,) = driver.outputs(DEAD_LETTERS)
    assert (letter.offset, letter.reason) == (0, "records 0 to 4 are gone")


# -- two services in a row


def forward(state: CountingState, record: records.Measurement, at: Position, now_ms: int) -> list[records.Decision]:
    """A reader that counts what it is given."""
    state.put(b"n", b"%d" % (int(state.rows.get(b"n", b"0")) + 1))
    cause = records.Cause(at.partition, at.offset, 0)
    plan = int(state.rows[b"n"])
    return [records.Decision(cause, plan, records.Action.NONE, (), 1.0, 0, "", "p", 1, "", 0.0, 0, record.window)]


READER = Service("reader", 1, MEASUREMENTS, CountingState, CountingState, forward, {records.Decision: DECISIONS})


@settings(deadline=None)
@given(inputs, st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=8))
def test_a_chain_of_services_takes_everything_once(history: list[object], crashes: list[tuple[bool, int]]) -> None:
    calm_topics, stormy_topics = MemoryTopics(), MemoryTopics()
    calm = [MemoryDriver(COUNTING, "j", calm_topics), MemoryDriver(READER, "j", calm_topics)]
    fed(calm[0], history).run()
    calm[1].run()
    stormy = [MemoryDriver(COUNTING, "j", stormy_topics), MemoryDriver(READER, "j", stormy_topics)]
    fed(stormy[0], history)
    for first, crash_in in [*crashes, (True, -1), (False, -1)]:
        driver = stormy[0] if first else stormy[1]
        driver.crash_in = crash_in if crash_in >= 0 else None
        try:
            driver.run(3)
        except Crashed:
            driver.restart()
        driver.crash_in = None
    taken = [(d.plan, d.evidence_last) for d in stormy[1].outputs(DECISIONS)]
    assert taken == [(d.plan, d.evidence_last) for d in calm[1].outputs(DECISIONS)]
    assert stormy[1].runner.digest() == calm[1].runner.digest()


def test_the_loop_knows_no_client_no_store_and_no_faust() -> None:
    program = "import sys, antdt_streams.runtime.memory;"
    program += "print(sorted({'faust', 'rocksdict', 'confluent_kafka', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
