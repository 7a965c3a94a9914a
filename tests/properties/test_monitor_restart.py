"""Whatever comes, in whatever order: the Monitor and the Controller go on from their rows as if nothing had been."""

from __future__ import annotations

from antdt_schemas import codec
from antdt_schemas.records import Measurement, StepBatch
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.monitor.core import DetectorOptions, MonitorState, Position
from antdt_streams.policies import AdjustBatchSize
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.replay.control_loop import step_batch

OPTIONS = DetectorOptions(window_steps=2, long_windows=3, persistent_windows=2, horizon_windows=30)

own_times = st.one_of(st.floats(0.0078125, 0.25, width=32), st.floats(width=32))
columns = st.tuples(st.integers(0, 3), st.integers(-1, 64), st.integers(0, 3), own_times)


@st.composite
def records(draw: st.DrawFn) -> StepBatch:
    """Mostly steps that follow each other, sometimes old ones, other generations, other incarnations, nonsense."""
    worker = draw(st.sampled_from(("a", "b", "c")))
    step = draw(st.one_of(st.integers(0, 60), st.integers(0, 10**12)))
    rows = []
    for skip, batch_size, plan, own_s in draw(st.lists(columns, max_size=8)):
        step += skip
        rows.append((step, batch_size, plan, own_s))
    return step_batch(
        worker,
        rows,
        generation=draw(st.sampled_from((1, 1, 1, 2, 3))),
        incarnation=f"{worker}-{draw(st.sampled_from((1, 1, 1, 2)))}",
    )


def fold(state: MonitorState, some: list[StepBatch], first: int) -> list[Measurement]:
    return [out for i, r in enumerate(some) for out in state.process(r, Position(0, first + i), 0)]


@given(st.lists(records(), max_size=40), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_a_restart_changes_nothing(some: list[StepBatch], cut: int) -> None:
    whole, rows = MonitorState(OPTIONS), dict[bytes, bytes]()
    expected = fold(whole, some, 0)
    first = MonitorState(OPTIONS)
    out = fold(first, some[:cut], 0)
    for key, row in first.changes().items():
        rows.pop(key, None) if row is None else rows.__setitem__(key, row)
    second = MonitorState.load(rows, OPTIONS)
    assert second.digest() == first.digest()
    out += fold(second, some[cut:], cut)
    assert [codec.encode(m) for m in out] == [codec.encode(m) for m in expected]
    assert second.digest() == whole.digest()


@given(st.lists(records(), max_size=40))
@settings(max_examples=100, deadline=None)
def test_whatever_is_measured_a_plan_keeps_the_global_batch(some: list[StepBatch]) -> None:
    monitor, controller = MonitorState(OPTIONS), ControllerState(AdjustBatchSize())
    for offset, measurement in enumerate(fold(monitor, some, 0)):
        view = controller.view(measurement, offset * 60_000)
        for decision in controller.process(measurement, Position(0, offset), offset * 60_000):
            assert sum(a.batch_size for a in decision.assignments) == sum(n.batch_size for n in view.nodes)
            assert all(a.batch_size >= 1 for a in decision.assignments)
            assert codec.decode(codec.encode(decision), type(decision)) == decision


@given(st.lists(records(), max_size=40))
@settings(max_examples=100, deadline=None)
def test_memory_is_bounded(some: list[StepBatch]) -> None:
    monitor = MonitorState(OPTIONS)
    fold(monitor, some, 0)
    for track in monitor.roster.tracks.values():
        assert len(track.open) <= OPTIONS.horizon_windows * OPTIONS.window_steps
        assert len(track.ring) <= OPTIONS.rate_samples
    assert len(monitor.windows.open_offsets) <= OPTIONS.horizon_windows
