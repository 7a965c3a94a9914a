"""AntDT-ND in a loop with imagined workers that can be started again: when it does that, what it is measured to have
saved, and above all when it does not. A restart is cheap here, so that a false alarm would be one.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from antdt_schemas.records import Action, Effect, Verdict
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.policies import NonDedicated, NonDedicatedParameters

from tests.replay.control_loop import Loop, Slowness

CHEAP = replace(NonDedicatedParameters(), restart_s=4.0, pause_s=0.6, cooldown_s=20.0)


def loop_of(slowness: Slowness, **options: object) -> Loop:
    loop = Loop.of(slowness, seconds_per_sample=3e-3, **options)  # type: ignore[arg-type]
    loop.controller = ControllerState(NonDedicated(CHEAP))
    return loop


def restarts(loop: Loop) -> list[int]:
    return [step for step, decision in loop.decisions if decision.action is Action.KILL_RESTART]


def effects(loop: Loop) -> list[Effect]:
    """What was measured of restarts."""
    found = [d.effect for _, d in loop.said if d.effect is not None]
    return [effect for effect in found if effect.action is Action.KILL_RESTART]


def nobody(worker: int, now_s: float) -> float:
    return 1.0


def transient(seed: int) -> Slowness:
    """Each worker in an eighth of all slots of three seconds."""
    return lambda worker, now_s: 3.0 if random.Random(f"{seed}/{worker}/{int(now_s / 3.0)}").random() < 0.12 else 1.0


@pytest.mark.parametrize("seed", range(20))
def test_no_slowness_and_bursts_are_no_reason_to_start_anybody_again(seed: int) -> None:
    for slowness in (nobody, transient(seed)):
        loop = loop_of(slowness, seed=seed, noise=0.1).run(350)
        assert restarts(loop) == []


def test_pauses_of_everybody_are_no_reason_either() -> None:
    """A checkpoint every ten seconds, a long evaluation every forty, and slow first steps."""

    def pauses(worker: int, now_s: float) -> float:
        return 20.0 if now_s < 1.0 or now_s % 40.0 < 3.0 else 6.0 if now_s % 10.0 < 0.5 else 1.0

    loop = loop_of(pauses).run(600)
    assert loop.decisions == []


def test_a_worker_that_has_fallen_ill_is_started_again_and_that_is_measured() -> None:
    steps, onset_s = 1200, 24.0
    loop = loop_of(lambda worker, now_s: 1.0)

    def ill(worker: int, now_s: float) -> float:
        return 3.0 if worker == 1 and now_s > onset_s and loop.workers[1].life == 0 else 1.0

    loop.slowness = ill
    loop.run(steps)
    assert len(restarts(loop)) == 1
    (effect,) = effects(loop)
    assert (effect.worker, effect.verdict) == ("w1", Verdict.HELPED)
    assert effect.measured_gain == pytest.approx(1 / 6, abs=0.06), "what balancing could not give back"
    well_s = loop_of(nobody).run(steps).now_s
    assert loop.now_s < 1.15 * well_s
    plans = [d.effect for _, d in loop.said if d.effect is not None and d.effect.action is Action.ADJUST_BS]
    assert plans[0].verdict is Verdict.HELPED
    assert plans[0].measured_gain == pytest.approx(plans[0].predicted_gain, abs=0.06), "both plans together"
    unbalanced = loop_of(lambda worker, now_s: 3.0 if worker == 1 and now_s > onset_s else 1.0, control=False).run(
        steps
    )
    assert unbalanced.now_s > 2.0 * loop.now_s
    assert {worker.batch_size for worker in loop.workers} <= set(range(28, 37)), "and shares are even again"


def test_where_a_restart_does_not_help_it_is_not_repeated() -> None:
    """It is the machine, and the next life is on it again."""
    loop = loop_of(lambda worker, now_s: 3.0 if worker == 1 and now_s > 24.0 else 1.0).run(1500)
    assert len(restarts(loop)) == 1
    (effect,) = effects(loop)
    assert effect.verdict in (Verdict.NO_EFFECT, Verdict.HARMED)
    assert loop.workers[1].batch_size < 16, "it goes on with what it can do"


def test_who_was_slow_from_the_start_must_cost_more_first() -> None:
    hardware = loop_of(lambda worker, now_s: 3.0 if worker == 1 else 1.0).run(500)
    fallen_ill = loop_of(lambda worker, now_s: 3.0 if worker == 1 and now_s > 12.0 else 1.0).run(500)
    since = 100  # about
    assert restarts(fallen_ill)[0] - since < (restarts(hardware) or [500])[0]
