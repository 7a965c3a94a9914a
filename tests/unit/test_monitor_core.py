"""What the Monitor does with records: windows, membership, jumps, repeats, rows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from antdt_schemas import codec
from antdt_schemas.errors import Mismatch, Undecodable
from antdt_schemas.records import Cause, Measurement, NodeClass, StepBatch
from antdt_streams.monitor.core import DetectorOptions, MonitorState, Position
from antdt_streams.monitor.core.state import HEAD
from antdt_streams.storage.rows import encode_row

from tests.replay.control_loop import step_batch, steps_of


class Fed:
    """A Monitor with its input's offsets."""

    def __init__(self, options: DetectorOptions | None = None) -> None:
        self.state, self.offset = MonitorState(options), 0

    def feed(self, *records: StepBatch) -> list[Measurement]:
        out: list[Measurement] = []
        for record in records:
            found = self.state.process(record, Position(0, self.offset), 0)
            assert [m.cause for m in found] == [Cause(0, self.offset, i) for i in range(len(found))]
            out += found
            self.offset += 1
        return out

    def rows(self, steps: range, workers: str = "abcd", own_s: float = 0.1, **other: Any) -> list[Measurement]:
        """One record a step and worker."""
        return [
            m
            for step in steps
            for worker in workers
            for m in self.feed(step_batch(worker, [(step, 32, 0, own_s)], **other))
        ]


def workers(measurement: Measurement) -> list[str]:
    return [n.worker for n in measurement.nodes]


# -- windows


def test_a_window_closes_when_all_have_finished_it() -> None:
    fed = Fed()
    assert fed.rows(range(4)) == fed.rows(range(4, 5), "abc") == []
    (found,) = fed.rows(range(4, 5), "d")
    assert (found.window, found.urgent, found.last_step, workers(found)) == (0, False, 4, ["a", "b", "c", "d"])
    assert (found.first_offset, found.last_offset) == (0, 19)
    assert found.nodes[0].seconds_per_sample == pytest.approx(0.1 / 32)
    assert found.nodes[0].batch_size == 32
    assert codec.decode(codec.encode(found), Measurement).nodes == found.nodes


def test_records_of_many_steps_wait_for_everyone() -> None:
    """Nobody knows how many members there are: the first record of one must not close what others have not sent."""
    fed = Fed()
    assert fed.feed(*(steps_of(w, 0, [0.1] * 64) for w in "abcd")) == []
    out = fed.feed(steps_of("a", 64, [0.1] * 64))
    assert [m.window for m in out] == list(range(12))
    assert all(len(m.nodes) == 4 for m in out)
    assert fed.feed(steps_of("b", 64, [0.1] * 64), steps_of("c", 64, [0.1] * 64)) == []
    assert [m.window for m in fed.feed(steps_of("d", 64, [0.1] * 64))] == list(range(12, 25))


def test_a_silent_node_is_waited_for_and_then_absent() -> None:
    fed = Fed()
    fed.rows(range(20))
    out = [m for m in fed.rows(range(20, 60), "abc") if not m.urgent]
    assert out[0].window == 4
    assert out[0].last_step == 24
    assert fed.state.windows.next * 5 >= 50
    absent = [m.window for m in out if m.nodes[3].node_class is NodeClass.ABSENT]
    assert absent[0] == 7  # its last window was 3
    back = fed.rows(range(60, 120))
    assert back[-1].nodes[3].node_class is NodeClass.HEALTHY


def test_a_node_that_stays_silent_is_forgotten() -> None:
    fed = Fed(DetectorOptions(forget_windows=10))
    fed.rows(range(20))
    out = fed.rows(range(20, 100), "abc")
    assert workers(out[-1]) == ["a", "b", "c"]
    gone = fed.state.changes()
    assert gone[b"track/d"] is None
    assert gone[b"health/d"] is None


def test_a_silent_half_does_not_hold_the_others_for_ever() -> None:
    fed = Fed(DetectorOptions(hold_windows=4))
    fed.rows(range(20))
    assert fed.rows(range(20, 60), "ab")


def test_repeats_change_nothing() -> None:
    records = [step_batch(w, [(s, 32, 0, 0.1 + s / 1000)]) for s in range(40) for w in "abc"]
    once, twice = Fed(), Fed()
    expected = [m.nodes for m in once.feed(*records)]
    found = [m.nodes for r in records for m in twice.feed(r, r)]
    assert found == expected
    again = twice.state.digest()
    assert twice.feed(*records[:30]) == []
    assert twice.state.digest() == again


def test_steps_without_samples_are_no_measurements() -> None:
    fed = Fed()
    out = [m for s in range(20) for w in "abc" for m in fed.feed(step_batch(w, [(s, 0 if w == "c" else 32, 0, 0.1)]))]
    node = out[-1].nodes[2]
    assert (node.worker, node.batch_size, node.rejected) == ("c", 0, 0)
    assert node.seconds_per_sample != node.seconds_per_sample  # unknown


def test_a_short_last_step_does_not_change_the_batch_size() -> None:
    fed = Fed()
    fed.rows(range(19))
    out = fed.feed(*(step_batch(w, [(19, 5, 0, 0.02)]) for w in "abcd"))
    assert [n.batch_size for n in out[-1].nodes] == [32] * 4


def test_waiting_and_communication_are_not_own_time() -> None:
    fed, out = Fed(), []
    for s in range(30):
        for w in "abc":
            out += fed.feed(step_batch(w, [(s, 10, 0, 0.1)], data_s=(0.1,), wait_s=(5.0,), communication_s=(7.0,)))
    assert out[-1].nodes[0].seconds_per_sample == pytest.approx(0.02)


# -- steps far ahead


def test_one_node_far_ahead_moves_nobody() -> None:
    fed = Fed()
    fed.rows(range(20))
    fed.feed(step_batch("a", [(10**9, 32, 0, 0.1)]))
    (found, *_) = fed.rows(range(20, 25))
    assert found.window == 4
    assert fed.state.roster.tracks["a"].strays == 1


def test_everybody_far_ahead_is_followed() -> None:
    """Steps were coalesced away while the broker could not take them."""
    fed = Fed()
    fed.rows(range(20))
    out = fed.rows(range(10**6, 10**6 + 20))
    assert [m.window for m in out if not m.urgent][-1] == 7
    assert out[-1].last_step == 10**6 + 19


# -- membership


def test_a_new_generation_may_begin_further_back() -> None:
    fed = Fed()
    before = fed.rows(range(100))[-1]
    assert fed.rows(range(60, 64), generation=2) == []
    out = fed.rows(range(64, 200), generation=2)
    assert out[0].generation == 2
    assert out[0].window == before.window + 1
    assert out[0].last_step == 64
    assert out[0].nodes[0].seconds_per_sample == pytest.approx(0.1 / 32)
    assert all(n.node_class is NodeClass.HEALTHY for n in out[-1].nodes)


def test_a_new_generation_waits_for_everyone_again() -> None:
    fed = Fed()
    fed.rows(range(20))
    batches = [step_batch(w, [(s, 32, 0, 0.1) for s in range(20, 60)], generation=2) for w in "abcd"]
    assert fed.feed(*batches) == []
    out = fed.feed(step_batch("c", [(60, 32, 0, 0.1)], generation=2))
    assert len(out) == 8
    assert all(len(m.nodes) == 4 for m in out)
    assert fed.state.roster.tracks["d"].strays == 0


def test_who_is_not_in_the_new_generation_is_dropped() -> None:
    fed = Fed()
    fed.rows(range(20))
    out = fed.rows(range(20, 60), "abe", generation=2)
    assert workers(out[0]) == ["a", "b", "e"]
    assert sorted(fed.state.roster.tracks) == ["a", "b", "e"]


def test_late_records_of_an_older_generation_are_ignored() -> None:
    fed = Fed()
    fed.rows(range(20))
    fed.rows(range(20, 40), generation=2)
    digest = fed.state.digest()
    assert fed.rows(range(20, 30), own_s=9.0) == []
    assert fed.state.digest() == digest


def test_a_new_incarnation_starts_afresh_and_the_old_one_is_refused() -> None:
    fed = Fed()
    for s in range(100):
        fed.feed(*(step_batch(w, [(s, 32, 0, 0.3 if w == "d" else 0.1)]) for w in "abcd"))
    assert fed.state.roster.health["d"].node_class is NodeClass.PERSISTENT
    out = []
    for s in range(100, 160):
        out += fed.rows(range(s, s + 1), "abc")
        out += fed.feed(step_batch("d", [(s, 32, 0, 0.1)], incarnation="d-2"))
        out += fed.feed(step_batch("d", [(s + 9, 32, 0, 9.0)], incarnation="d-1"))
    assert out[-1].nodes[3].incarnation == "d-2"
    assert out[-1].nodes[3].seconds_per_sample == pytest.approx(0.1 / 32)
    assert not any(n.node_class is NodeClass.PERSISTENT for m in out[2:] for n in m.nodes)


def test_more_nodes_than_allowed_are_refused() -> None:
    fed = Fed(DetectorOptions(nodes_max=2))
    fed.feed(steps_of("a", 0, [0.1]), steps_of("b", 0, [0.1]))
    digest = fed.state.digest()
    with pytest.raises(Undecodable, match="2 other nodes"):
        fed.feed(steps_of("c", 0, [0.1]))
    assert fed.state.digest() == digest


@pytest.mark.parametrize("wrong", [{"batch_size": (1,)}, {"data_s": (0.1,) * 4}, {"step": (0, -1)}, {"generation": -1}])
def test_a_record_that_contradicts_itself_changes_nothing(wrong: dict[str, Any]) -> None:
    fed = Fed()
    digest = fed.state.digest()
    with pytest.raises(Undecodable):
        fed.feed(step_batch("a", [(0, 32, 0, 0.1), (1, 32, 0, 0.1)], **wrong))
    assert fed.state.digest() == digest
    assert fed.feed(step_batch("a", [])) == []


# -- jumps


def test_a_jump_is_told_before_the_window_ends_when_all_have_spoken_of_it() -> None:
    fed = Fed()
    fed.rows(range(51))
    out: list[tuple[int, str, Measurement]] = []
    for s in range(51, 54):
        for w in "abcd":
            out += [(s, w, m) for m in fed.feed(step_batch(w, [(s, 32, 0, 0.4 if w in "bc" else 0.1)]))]
    ((step, worker, found),) = out
    assert (step, worker, found.urgent, found.last_step) == (52, "d", True, 52)
    rates = [n.seconds_per_sample * 32 for n in found.nodes]
    assert rates == pytest.approx([0.1, 0.4, 0.4, 0.1])


def test_a_jump_is_not_held_back_by_a_node_that_is_silent() -> None:
    fed = Fed()
    fed.rows(range(51))
    for s in (51, 52):
        assert fed.feed(step_batch("a", [(s, 32, 0, 0.4)])) == []
    (found,) = fed.feed(step_batch("a", [(53, 32, 0, 0.4)]))
    assert found.urgent


def test_jumps_are_told_once_in_a_few_steps() -> None:
    fed = Fed(DetectorOptions(window_steps=50, urgent_steps=10))
    fed.rows(range(20))
    told = []
    for s in range(20, 49):
        own_s = 0.1 * 2.0 ** (s // 3 % 2)
        told += [m.last_step for w in "abcd" for m in fed.feed(step_batch(w, [(s, 32, 0, own_s)]))]
    assert len(told) >= 2
    assert all(b - a >= 10 for a, b in itertools.pairwise(told))


def test_rates_are_told_as_soon_as_they_are_known() -> None:
    fed = Fed(DetectorOptions(window_steps=50))
    out = fed.feed(*(steps_of(w, 5 * k, [0.3 if w == "b" else 0.1] * 5) for k in range(2) for w in "abcd"))
    assert [(m.urgent, m.last_step) for m in out] == [(True, 9)]
    assert [n.seconds_per_sample * 32 for n in out[0].nodes] == pytest.approx([0.1, 0.3, 0.1, 0.1])


# -- rows


def test_rows_of_another_format_are_refused() -> None:
    with pytest.raises(Mismatch, match="Format of the Monitor's state"):
        MonitorState.load({HEAD: encode_row([0, None, None])})


def test_no_rows_are_a_state_that_has_seen_nothing() -> None:
    assert MonitorState.load({}).digest() == MonitorState().digest()


def test_changes_are_only_what_changed() -> None:
    fed = Fed()
    fed.rows(range(20))
    assert set(fed.state.changes()) == set(fed.state.rows())
    assert fed.state.changes() == {}
    fed.feed(step_batch("b", [(20, 32, 0, 0.1)]))
    assert set(fed.state.changes()) == {b"head", b"track/b"}
