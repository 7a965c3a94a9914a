"""Whatever comes, in whatever order: the Monitor and the Controller go on from their rows as if nothing had been."""

from __future__ import annotations

import math

from antdt_schemas import codec
from antdt_schemas.records import Action, Measurement, StepBatch
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.monitor.core import DetectorOptions, MonitorState, Position
from antdt_streams.policies import AdjustBatchSize
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay.control_loop import step_batch

OPTIONS = DetectorOptions(window_steps=2, long_windows=3, persistent_windows=2, horizon_windows=30)

WORKERS = ("a", "b", "c", "d")
own_times = st.one_of(st.floats(0.0078125, 0.25, width=32), st.floats(width=32))
# Whose record, how many steps (but one), what is odd about it (mostly nothing), how slow the worker is (but one). One
# number has them all: what is drawn takes longer than what is tested.
RADIX = 4, 6, 25, 3
events = st.integers(0, math.prod(RADIX) - 1)


def parts_of(event: int) -> list[int]:
    parts = []
    for radix in RADIX:
        event, part = divmod(event, radix)
        parts.append(part)
    return parts


@st.composite
def streams(draw: st.DrawFn) -> list[StepBatch]:
    """Steps that follow each other, with repeats, gaps, rollbacks, new incarnations and nonsense in between."""
    out: list[StepBatch] = []
    generation, first = 1, 0
    steps, lives = dict.fromkeys(WORKERS, 0), dict.fromkeys(WORKERS, 1)
    for number, less, odd, quick in map(parts_of, draw(st.lists(events, min_size=40, max_size=120))):
        size, slow = less + 1, quick + 1
        # In turn, unless it is odd: only then do windows close.
        worker = WORKERS[number if odd < 6 else len(out) % 4]
        if odd == 0:
            generation, first = generation + 1, max(0, steps[worker] - 3)
            steps = dict.fromkeys(WORKERS, first)
        lives[worker] += odd == 1
        begin = {2: 0, 3: steps[worker] + 10**9, 4: steps[worker] + 7}.get(odd, steps[worker])
        own_s = draw(own_times) if odd == 5 else 0.01 * slow
        rows = [(begin + k, 8 * number, generation % 3, own_s) for k in range(size)]
        if odd != 3:
            steps[worker] = max(steps[worker], begin + size)
        out.append(step_batch(worker, rows, generation=generation, incarnation=f"{worker}-{lives[worker]}"))
    return out


def fold(state: MonitorState, some: list[StepBatch], first: int) -> list[Measurement]:
    return [out for i, r in enumerate(some) for out in state.process(r, Position(0, first + i), 0)]


@given(streams(), st.integers(0, 120))
@settings(max_examples=80, deadline=None)
def test_a_restart_changes_nothing_and_memory_is_bounded(some: list[StepBatch], cut: int) -> None:
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
    for state in (whole, second):
        assert_bounded(state)


def assert_bounded(monitor: MonitorState) -> None:
    """Memory is, whatever has come."""
    for track in monitor.roster.tracks.values():
        assert len(track.open) <= OPTIONS.horizon_windows * OPTIONS.window_steps
        assert len(track.ring) <= OPTIONS.rate_samples
    assert len(monitor.windows.open_offsets) <= OPTIONS.horizon_windows


@given(streams())
@settings(max_examples=50, deadline=None)
def test_whatever_is_measured_a_plan_keeps_the_global_batch(some: list[StepBatch]) -> None:
    monitor, controller = MonitorState(OPTIONS), ControllerState(AdjustBatchSize())
    for offset, measurement in enumerate(fold(monitor, some, 0)):
        view = controller.view(measurement, offset * 60_000)
        for decision in controller.process(measurement, Position(0, offset), offset * 60_000):
            if decision.action is Action.ADJUST_BS:
                assert sum(a.batch_size for a in decision.assignments) == sum(n.batch_size for n in view.nodes)
                assert all(a.batch_size >= 1 for a in decision.assignments)
            assert codec.decode(codec.encode(decision), type(decision)) == decision
