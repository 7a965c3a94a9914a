"""The detector on imagined nodes: one record a step, rows in lockstep, seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from antdt_schemas.records import Measurement, NodeClass, NodeMeasurement
from antdt_streams.monitor.core import DetectorOptions, MonitorState, Position

from tests.replay.control_loop import step_batch

Own = Callable[[int, int], float]
"""Own seconds of node w in step s, without noise."""


def watch(
    own: Own,
    steps: int,
    nodes: int = 10,
    noise: float = 0.03,
    sizes: Callable[[int, int], int] = lambda w, s: 32,
    hardware: Callable[[int], str] = lambda w: "",
    options: DetectorOptions | None = None,
) -> list[Measurement]:
    """Everything that the Monitor says about these nodes."""
    seeded, monitor, out = random.Random(7), MonitorState(options), []
    for step in range(steps):
        for w in range(nodes):
            own_s = own(w, step) * seeded.lognormvariate(0.0, noise)
            record = step_batch(f"w{w}", [(step, sizes(w, step), 0, own_s)], hardware=hardware(w))
            out += monitor.process(record, Position(0, step * nodes + w), 0)
    return out


def windows(measurements: list[Measurement]) -> list[Measurement]:
    return [m for m in measurements if not m.urgent]


def node(measurement: Measurement, w: int) -> NodeMeasurement:
    return next(n for n in measurement.nodes if n.worker == f"w{w}")


def classes(measurement: Measurement) -> list[str]:
    return [n.node_class.value for n in measurement.nodes]


def first_step(measurements: list[Measurement], w: int, wanted: NodeClass) -> int | None:
    """The last step of the first window after which node w is of this class."""
    return next((m.last_step for m in measurements if node(m, w).node_class is wanted), None)


def of_class(measurements: list[Measurement], wanted: NodeClass) -> set[str]:
    return {n.worker for m in measurements for n in m.nodes if n.node_class is wanted}


def test_healthy_nodes_are_never_persistent() -> None:
    found = watch(lambda w, s: 0.1, 600, noise=0.05)
    assert not of_class(found, NodeClass.PERSISTENT)
    assert classes(found[-1]).count("healthy") >= 8
    assert not found[-1].rotating


def test_a_node_that_falls_ill_is_persistent_after_thirty_steps_and_clears_when_it_recovers() -> None:
    found = windows(watch(lambda w, s: 0.15 if w == 3 and 100 <= s < 200 else 0.1, 300))
    assert first_step(found, 3, NodeClass.PERSISTENT) in range(124, 135)
    assert of_class(found, NodeClass.PERSISTENT) == {"w3"}
    ill = next(m for m in found if m.last_step == 199)
    assert node(ill, 3).severity == pytest.approx(math.log(1.5), abs=0.1)
    assert node(ill, 3).persistent_windows == 20
    assert node(found[-1], 3).node_class is NodeClass.HEALTHY
    assert node(found[-1], 3).persistent_windows == 0


def test_a_node_that_is_ill_from_the_first_step_is_persistent_too() -> None:
    found = windows(watch(lambda w, s: 0.3 if w == 1 else 0.1, 60, nodes=4))
    assert first_step(found, 1, NodeClass.PERSISTENT) == 29  # the first window is warm-up, five flags are needed
    assert of_class(found, NodeClass.PERSISTENT) == {"w1"}


def test_slow_steps_now_and_then_are_transient_only() -> None:
    found = windows(watch(lambda w, s: 0.3 if w == 6 and s % 50 in (20, 21, 22) else 0.1, 400))
    assert of_class(found, NodeClass.TRANSIENT) == {"w6"}
    assert not of_class(found, NodeClass.PERSISTENT)
    slow = [m for m in found if m.last_step % 50 == 24]
    assert all(node(m, 6).node_class is NodeClass.TRANSIENT for m in slow[1:])


def test_pauses_that_hit_everyone_are_nobodys_fault() -> None:
    found = watch(lambda w, s: 2.0 if s % 40 in (11, 12, 13) else 0.1 * (1 + s / 300), 400)
    assert not of_class(found, NodeClass.PERSISTENT) | of_class(found, NodeClass.TRANSIENT)


def test_half_of_the_nodes_being_slower_from_the_start_are_a_class_and_one_of_them_may_fall_ill() -> None:
    def own(w: int, s: int) -> float:
        return (0.1 if w < 5 else 0.3) * (2.0 if w == 7 and s >= 150 else 1.0)

    found = windows(watch(own, 300))
    early = [m for m in found if 9 <= m.last_step < 149]
    assert all(classes(m)[5:].count("deterministic") >= 4 for m in early)
    assert all(classes(m)[:5].count("leader") >= 4 for m in early)
    assert of_class(found, NodeClass.PERSISTENT) == {"w7"}
    assert first_step(found, 7, NodeClass.PERSISTENT) in range(174, 185)


def test_declared_hardware_needs_no_second_member() -> None:
    def own(w: int, s: int) -> float:
        return 0.3 if w == 0 else 0.1

    found = watch(own, 100, nodes=5, hardware=lambda w: "old" if w == 0 else "new")
    assert classes(found[-1]) == ["deterministic", "leader", "leader", "leader", "leader"]


def test_a_better_node_gets_a_new_baseline_a_worse_one_does_not() -> None:
    found = windows(watch(lambda w, s: 0.05 if w == 2 and 100 <= s < 200 else 0.1, 300))
    # Its better time is its own baseline from then on, so going back to where it began is falling ill.
    assert first_step(found, 2, NodeClass.PERSISTENT) in range(220, 240)


def test_stragglers_that_rotate_are_told_from_sick_ones() -> None:
    def own(w: int, s: int) -> float:
        return 0.2 if (s * 7) % 10 == w else 0.1

    found = watch(own, 200)
    assert found[-1].rotating
    assert found[-1].loss > 0.5
    assert not of_class(found, NodeClass.PERSISTENT)


def test_two_nodes_that_fall_ill_together_are_no_rotation() -> None:
    found = watch(lambda w, s: 0.4 if w in (5, 6) and s >= 100 else 0.1, 130)
    assert not any(m.rotating for m in found)


def test_a_change_of_plan_is_no_sickness_and_tells_the_fixed_cost() -> None:
    fixed_s, each_s = 0.02, 0.0025

    def size(w: int, s: int) -> int:
        return (32, 16, 48, 24, 40)[s // 60 % 5] if w < 4 else 32

    found = windows(watch(lambda w, s: fixed_s + size(w, s) * each_s, 300, sizes=size, noise=0.01))
    assert not of_class(found, NodeClass.PERSISTENT)
    assert node(found[-1], 0).fixed_s == pytest.approx(fixed_s, rel=0.25)
    assert node(found[-1], 0).seconds_per_sample == pytest.approx(each_s, rel=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1, 0.0, 1e6])
def test_absurd_timings_are_counted_and_move_nothing(bad: float) -> None:
    liar = windows(watch(lambda w, s: bad if w == 0 and s % 2 else 0.1, 100, noise=0.0))
    assert node(liar[-1], 0).rejected == 50
    assert all(n.seconds_per_sample == pytest.approx(0.1 / 32) for n in liar[-1].nodes)
    assert not of_class(liar, NodeClass.PERSISTENT)


def test_a_liar_moves_only_itself() -> None:
    found = windows(watch(lambda w, s: 1e-6 if w == 0 else 0.1, 100, noise=0.01))
    assert all(node(found[-1], w).seconds_per_sample == pytest.approx(0.1 / 32, rel=0.05) for w in range(1, 10))
    assert not of_class(found, NodeClass.PERSISTENT)
