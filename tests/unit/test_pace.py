"""Step times over time: percentiles of what came, in any order, and never more points than are drawn."""

from __future__ import annotations

import random

import pytest
from antdt_schemas.topics import STEPS
from antdt_streams.views.pace import POINTS_MAX, VALUES_MAX, Pace, Point

from tests.helpers.served_pages import step_batch


def test_a_point_has_the_median_and_the_99th_percentile_of_its_stretch() -> None:
    pace = Pace()
    for number in range(100):  # 6 ms of data and communication come to each
        pace.on_record(STEPS, step_batch(f"w{number}", 1, 1, 0.001 * (number + 1), 0.0), number, 5_400)
    found = pace.view()
    assert (found["at_s"], found["width_s"], found["steps"]) == ([5.0], 1.0, [100])
    assert (found["p50_ms"], found["p99_ms"]) == ([56.0], [105.0])


def test_points_are_bounded_and_cover_twice_the_time_when_there_are_too_many() -> None:
    pace, seconds = Pace(), list(range(1000))
    random.Random(7).shuffle(seconds)
    for second in seconds:
        pace.on_record(STEPS, step_batch("w0", second, 2, 0.01 + 0.001 * (second // 500), 0.0), second, 1000 * second)
    found = pace.view()
    assert len(found["at_s"]) <= POINTS_MAX and found["width_s"] == 8.0
    assert sum(found["steps"]) == 2000
    assert found["at_s"] == sorted(found["at_s"])
    assert (found["p50_ms"][0], found["p50_ms"][-1]) == (16.0, 17.0)


def test_what_is_older_than_a_curve_covers_is_left_out() -> None:
    pace, hour_ms = Pace(), 3600 * 1000
    for hour in (0, 1, 3, 4, 2):
        pace.on_record(STEPS, step_batch("w0", hour, 1, 0.1, 0.0), hour, hour * hour_ms)
    assert [at / 3600 for at in pace.view()["at_s"]] == [2.0, 3.0, 4.0]


def test_a_point_keeps_a_bounded_fair_sample() -> None:
    point, other = Point(), Point()
    for number in range(10_000):
        point.add(number / 10_000)
        other.add(1.0)
    assert len(point.values) <= VALUES_MAX
    assert point.told() == (pytest.approx(0.5, abs=0.02), pytest.approx(0.99, abs=0.02))
    point.absorb(other)
    assert point.count == 20_000 and len(point.values) <= VALUES_MAX
    assert point.told() == (pytest.approx(1.0, abs=0.02), 1.0)


def test_servers_and_steps_of_no_time_do_not_count() -> None:
    pace = Pace()
    pace.on_record(STEPS, step_batch("w0", 1, 0, 0.1, 0.1), 0, 1)
    assert pace.view()["at_s"] == []
