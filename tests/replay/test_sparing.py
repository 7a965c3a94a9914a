"""Backup workers under AllReduce in a loop with imagined workers: who is spared and tried, and what it is measured to
have saved.
"""

from __future__ import annotations

import random

import pytest
from antdt_schemas.records import Action, Effect, Verdict
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.monitor.core import Position
from antdt_streams.policies.find import find

from tests.replay.control_loop import Loop, Slowness
from tests.replay.test_control_loop import even, mean_s, one_slow


def loop_of(slowness: Slowness, **options: object) -> Loop:
    loop = Loop.of(slowness, **options)  # type: ignore[arg-type]
    loop.controller = ControllerState(find("backup"))
    return loop


def effects(loop: Loop) -> list[Effect]:
    return [decision.effect for _, decision in loop.said if decision.effect is not None]


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_a_slow_worker_is_spared_and_a_step_takes_what_the_others_need(noise: float) -> None:
    loop = loop_of(one_slow, noise=noise).run(400)
    assert loop.decisions[0][0] <= 30
    assert loop.decisions[0][1].action is Action.BACKUP_WORKERS
    assert mean_s(loop, 100) < (1.05 + 1.2 * noise) * (0.002 + 128 / 3 * 1e-3)
    assert all(sum(sizes) == 128 for _, _, sizes in loop.history), "a step has what it always has"
    first = effects(loop)[0]
    assert (first.action, first.verdict) == (Action.BACKUP_WORKERS, Verdict.HELPED)
    assert first.measured_gain == pytest.approx(first.predicted_gain, abs=0.1)
    assert {e.verdict for e in effects(loop)} <= {Verdict.HELPED, Verdict.UNCLEAR, Verdict.NO_EFFECT}


def test_whoever_is_well_again_has_its_share_again_and_that_helps() -> None:
    loop = loop_of(lambda worker, now_s: 3.0 if worker == 1 and 2.0 < now_s < 12.0 else 1.0).run(1200)
    spared = [d for _, d in loop.decisions if d.backup_workers]
    assert spared and loop.decisions[-1][1].backup_workers == 0
    assert loop.history[-1][2] == [32] * 4
    assert any("an even share again" in d.reason for _, d in loop.decisions)


@pytest.mark.parametrize("workers", [2, 4, 16])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_equal_workers_are_left_alone(workers: int, noise: float) -> None:
    found = [len(loop_of(even, workers=workers, noise=noise, seed=seed).run(300).decisions) for seed in range(1, 5)]
    assert sum(found) <= 1, found


def test_bursts_end_with_even_shares_and_the_time_is_no_longer_than_without() -> None:
    def bursts(worker: int, now_s: float) -> float:
        return 3.0 if random.Random(f"{worker}/{int(now_s / 3.0)}").random() < 0.12 else 1.0

    loop, alone = loop_of(bursts).run(1500), Loop.of(bursts, control=False).run(1500)
    assert loop.now_s < 1.05 * alone.now_s


def test_a_restart_from_rows_changes_nothing() -> None:
    loop = loop_of(one_slow).run(400)
    rows, found, again = dict[bytes, bytes](), list[str](), ControllerState(find("backup"))
    for number, measurement in enumerate(loop.measurements):
        state, at = ControllerState.load(rows, find("backup")), Position(0, number)
        said = state.process(measurement, at, number)
        assert said == again.process(measurement, at, number)
        found += [d.reason for d in said]
        rows = state.rows()
        assert state.digest() == again.digest()
    assert len(found) > 3
