"""Rates, fixed costs and groups by themselves."""

from __future__ import annotations

import math

import pytest
from antdt_schemas.errors import UsageError
from antdt_streams.monitor.core.baselines import Residuals
from antdt_streams.monitor.core.classes import structural
from antdt_streams.monitor.core.fixed_cost import FixedCosts
from antdt_streams.monitor.core.node import Health, Sample, Track
from antdt_streams.monitor.core.options import DetectorOptions
from antdt_streams.monitor.core.rates import UNKNOWN, Rate, add_sample, own_rate, shrunk

OPTIONS = DetectorOptions()


def track(worker: str = "w0", role: str = "worker", stage: int = 0) -> Track:
    return Track(worker, f"{worker}-1", "", "", 1, role, stage)


def feed(node: Track, own_s: list[float], noise: float = 0.01, batch_size: int = 10) -> list[int]:
    """Where the rate jumped."""
    costs = FixedCosts(OPTIONS)
    return [i for i, x in enumerate(own_s) if add_sample(node, Sample(i, batch_size, x), costs, noise)]


def test_a_rate_is_unknown_before_it_has_three_samples() -> None:
    node = track()
    feed(node, [1.0, 1.0])
    assert own_rate(node, FixedCosts(OPTIONS), 0.1) is UNKNOWN
    feed(node, [1.0])
    assert own_rate(node, FixedCosts(OPTIONS), 0.1).seconds_per_sample == 0.1


def test_one_slow_sample_is_no_jump_two_in_three_are() -> None:
    assert feed(track(), [1.0] * 10 + [3.0] + [1.0] * 10) == []
    node = track()
    assert feed(node, [1.0] * 10 + [3.0, 3.0]) == [11]
    assert [s.own_s for s in node.ring] == [1.0, 3.0, 3.0]
    assert own_rate(node, FixedCosts(OPTIONS), 0.01).seconds_per_sample == pytest.approx(0.3)


def test_a_jump_must_rise_above_the_noise() -> None:
    assert feed(track(), [1.0] * 10 + [1.5] * 3, noise=0.05) == [11]
    assert feed(track(), [1.0] * 10 + [1.5] * 3, noise=0.3) == []


def test_a_rate_rests_on_thirty_samples_at_most() -> None:
    node = track()
    feed(node, [1.0 + i / 1000 for i in range(100)])
    assert [s.step for s in node.ring] == list(range(70, 100))


def test_shrinkage_draws_noise_in_and_leaves_what_is_far_away() -> None:
    rates = {f"w{i}": Rate(1.0 + x, 0.05) for i, x in enumerate((-0.05, -0.02, 0.0, 0.02, 0.05))}
    out = shrunk({**rates, "far": Rate(3.0, 0.05)}, OPTIONS)
    assert out["far"] == Rate(3.0, 0.05)
    assert all(
        abs(math.log(out[w].seconds_per_sample)) < abs(math.log(rates[w].seconds_per_sample)) for w in ("w0", "w4")
    )
    assert out["w0"].error < 0.05
    real = {f"w{i}": Rate(1.0 + i / 10, 0.001) for i in range(5)}
    assert shrunk(real, DetectorOptions(shrink_errors=1e9))["w4"].seconds_per_sample == pytest.approx(1.4, rel=1e-3)


def test_two_rates_are_no_group() -> None:
    rates = {"a": Rate(1.0, 0.1), "b": Rate(1.1, 0.1), "c": UNKNOWN}
    assert shrunk(rates, OPTIONS) == rates


def learn(costs: FixedCosts, health: Health, points: list[tuple[int, float]]) -> None:
    for size, own_s in points:
        costs.learn("p", health, [Sample(0, size, own_s)] * 5)


def test_three_lines_make_a_fixed_cost() -> None:
    costs = FixedCosts(OPTIONS)
    for known in range(3):
        assert not costs.known("p")
        assert costs.of("p") == 0.0
        learn(costs, Health(), [(32, 0.52), (16, 0.36), (16, 0.36)])
        assert len(costs.found["p"]) == known + 1
    assert costs.of("p") == pytest.approx(0.2)


def test_a_change_of_speed_is_not_taken_for_a_change_of_plan() -> None:
    costs = FixedCosts(OPTIONS)
    learn(costs, Health(), [(32, 0.52), (16, 0.90), (16, 0.90)])
    learn(costs, Health(), [(32, 0.52), (30, 0.40), (30, 0.40)])
    assert not costs.found


def test_a_node_is_not_judged_after_a_change_of_plan_until_the_fixed_cost_is_known() -> None:
    unknown, known, health = FixedCosts(OPTIONS), FixedCosts(DetectorOptions(fixed_s=0.2)), Health()
    learn(unknown, health, [(32, 0.52), (16, 0.36)])
    assert health.blind == 2
    health = Health()
    learn(known, health, [(32, 0.52), (16, 0.36)])
    assert health.blind == 0
    assert known.of("anything") == 0.2


def test_a_slow_group_is_structural() -> None:
    tracks = {f"{stage}-{i}": track(f"{stage}-{i}", stage=stage) for stage in range(3) for i in range(3)}
    levels = {w: (0.5 if w.startswith("2") else 0.0) for w in tracks}
    assert structural(Residuals(level=levels), tracks, 1.35) == ("worker.2",)
    assert structural(Residuals(level={"0-0": 0.0, "0-1": 9.0}), tracks, 1.35) == ()


def test_servers_are_no_stage_and_are_not_compared_with_workers() -> None:
    tracks = {w: track(w) for w in ("w0", "w1", "w2")} | {s: track(s, "server") for s in ("s0", "s1")}
    found = Residuals(level=dict.fromkeys(("w0", "w1", "w2"), -7.0) | dict.fromkeys(("s0", "s1"), -20.0))
    assert structural(found, tracks, 1.35) == ()
    assert {t.group for t in tracks.values()} == {"worker", "server"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"persistent_windows": 7},
        {"window_steps": 0},
        {"rate_samples": 5},
        {"hold_windows": 200},
        {"absent_windows": 99},
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        DetectorOptions(**wrong)
