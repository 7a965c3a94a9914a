"""Recorded steps across an upgrade of Monitor and Controller: what workers were told stands, and goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import blake2b
from typing import Any

import pytest
from antdt_schemas.records import Action, Cluster, Decision, Measurement, Parameter, Steering
from antdt_schemas.topics import DECISIONS, MEASUREMENTS
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.controller.service import VERSION as CONTROLLER_VERSION
from antdt_streams.controller.service import service as controller_service
from antdt_streams.monitor.core import DetectorOptions, MonitorState
from antdt_streams.monitor.service import VERSION as MONITOR_VERSION
from antdt_streams.monitor.service import service as monitor_service
from antdt_streams.policies import AdjustBatchSize, AdjustBatchSizeOptions
from antdt_streams.policies.find import find
from antdt_streams.runtime.memory import MemoryTopics
from antdt_streams.runtime.service import Service

from tests.helpers.memory_service import Crashed, MemoryDriver
from tests.replay.control_loop import Loop
from tests.replay.test_control_loop import one_slow_one_in_bursts
from tests.unit.test_effects import BALANCE, RESTART, Script, measured

RECORDS = Loop.of(one_slow_one_in_bursts).run(900).records
BEFORE = len(RECORDS) * 3 // 5


def monitor(version: int, window_steps: int) -> Service:
    """A Monitor whose windows are its own version's."""
    options = DetectorOptions(window_steps=window_steps)
    return replace(
        monitor_service(),
        version=version,
        new_state=lambda: MonitorState(options),
        load_state=lambda rows: MonitorState.load(rows, options),
    )


def controller(version: int, margin: float) -> Service:
    """A Controller whose policy asks for so much gain."""
    policy = AdjustBatchSize(AdjustBatchSizeOptions(gain_min=margin, gain_urgent_min=max(margin, 0.3)))
    return replace(
        controller_service(),
        version=version,
        new_state=lambda: ControllerState(policy),
        load_state=lambda rows: ControllerState.load(rows, policy),
    )


class Pair:
    """Both services over one set of topics."""

    def __init__(self) -> None:
        self.topics = MemoryTopics()
        self.monitor = MemoryDriver(monitor(1, 5), "j", self.topics)
        self.controller = MemoryDriver(controller(1, 0.05), "j", self.topics)

    def upgrade(self, crash_in: int | None = None) -> None:
        """Other rules from here on; the first process of each may die on its way."""
        for driver, service in ((self.monitor, monitor(2, 4)), (self.controller, controller(2, 0.25))):
            driver.service = service
            driver.crash_in = crash_in
            try:
                driver.restart()
                driver.run(3)
            except Crashed:
                driver.restart()
            driver.crash_in = None

    def feed(self, records: list[object]) -> None:
        """Steps one by one, as they came: the measurements of each are answered before the next."""
        for record in records:
            self.topics.now_ms += 100
            self.monitor.feed(record)
            self.monitor.run()
            self.controller.run()

    def told(self) -> tuple[list[Measurement], list[Decision]]:
        """Everything that was written, repeats included."""
        return self.topics.records(MEASUREMENTS, "j"), self.topics.records(DECISIONS, "j")


def causes(records: list[Measurement] | list[Decision]) -> list[tuple[int, int]]:
    return [(r.cause.offset, r.cause.index) for r in records]


def plans(decisions: list[Decision]) -> list[int]:
    """Numbers of those that changed the plan; the others say what has come of these."""
    return [d.plan for d in decisions if d.action is not Action.NONE]


@pytest.mark.parametrize("crash_in", [None, 1, 2, 3, 7])
def test_plans_go_on_behind_those_that_workers_have(crash_in: int | None) -> None:
    pair = Pair()
    pair.feed(list(RECORDS[:BEFORE]))
    measured, decided = pair.told()
    assert len(decided) >= 4
    pair.upgrade(crash_in)
    pair.monitor.run()
    pair.controller.run()
    assert pair.told() == (measured, decided), "nothing is written again"
    in_force = pair.controller.runner.state.in_force
    assert (in_force.plan, list(in_force.assignments.values())) == (decided[-1].plan, list(decided[-1].assignments))

    alone = MemoryDriver(monitor(2, 4), "j")
    for number, record in enumerate(RECORDS[:BEFORE]):
        alone.topics.now_ms = 100 * (number + 1)
        alone.feed(record)
    alone.run()
    assert pair.monitor.runner.digest() == alone.runner.digest(), "as if it had always been of this version"

    pair.feed(list(RECORDS[BEFORE:]))
    measured, decided = pair.told()
    assert causes(measured) == sorted(set(causes(measured)))
    assert causes(decided) == sorted(set(causes(decided)))
    assert plans(decided) == list(range(1, len(plans(decided)) + 1))
    digests = pair.monitor.runner.digest(), pair.controller.runner.digest()
    pair.monitor.restart()
    pair.controller.restart()
    assert digests == (pair.monitor.runner.digest(), pair.controller.runner.digest())


def test_a_controller_whose_measurements_are_gone_keeps_what_is_in_force() -> None:
    pair = Pair()
    pair.feed(list(RECORDS[:BEFORE]))
    _, decided = pair.told()
    driver = pair.controller
    driver.service = controller(2, 0.25)
    driver.restart()
    driver.runner.skip_to(driver.runner.rebuilt_below, "retention")
    in_force = driver.runner.state.in_force
    assert (in_force.plan, list(in_force.assignments.values())) == (decided[-1].plan, list(decided[-1].assignments))
    pair.feed(list(RECORDS[BEFORE:]))
    before, later = plans(decided), plans(pair.told()[1][len(decided) :])
    assert later == list(range(len(before) + 1, len(before) + 1 + len(later)))


def coarse(value: Any) -> Any:
    """With six digits of each float, which are the same on every machine."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): coarse(inner) for key, inner in value.items()}
    return [coarse(inner) for inner in value] if isinstance(value, list | tuple) else value


# What each version of the Monitor makes of the recorded steps: its outputs and its rows.
SAID = {2: "7acd52ca683fc19f", 3: "5105a090da65b460"}


def test_a_monitor_that_says_or_keeps_something_else_has_another_version() -> None:
    """Otherwise it would go on from rows of other rules. Raise VERSION with whatever changes this, and add its line."""
    driver = MemoryDriver(monitor_service(), "j")
    # Of workers that nobody commands, so that what a policy decides does not matter.
    for number, record in enumerate(Loop.of(one_slow_one_in_bursts, control=False).run(300).records):
        driver.topics.now_ms = 100 * (number + 1)
        driver.feed(record)
    driver.run()
    said = [asdict(m) for m in driver.outputs(MEASUREMENTS)]
    rows = {key.hex(): json.loads(row) for key, row in driver.runner.state.rows().items()}
    digest = blake2b(json.dumps(coarse([said, rows]), sort_keys=True).encode(), digest_size=8).hexdigest()
    assert max(SAID) == MONITOR_VERSION
    assert digest == SAID[MONITOR_VERSION]


# What each version of the Controller makes of the same record, whatever the policy: its outputs and its rows.
DECIDED = {3: "886d00fc8e0567ea"}


def test_a_controller_that_says_or_keeps_something_else_has_another_version() -> None:
    """A plan that saves, one whose loss was predicted, a restart, and each word of an operator."""
    loss = replace(BALANCE, predicted_gain=-0.3)
    driver = MemoryDriver(replace(controller_service(), new_state=lambda: ControllerState(
        Script(w6=BALANCE, w18=loss, w30=RESTART), find=find)), "j")  # fmt: skip
    said: dict[int, Steering] = {
        40: Steering("ops", restart="w1.1.l", reason="its disk is new"),
        50: Steering("ops", cluster=Cluster.BUSY, busy_s=9.0),
        51: Steering("ops", promote="even"),
        52: Steering("ops", promote="nd", parameters=(Parameter("restart", "off"),)),
    }
    for at in range(60):
        life, plan = (at > 32) + (at > 44), (at > 7) + (at > 19)
        rate = (1000.0, 1340.0, 1150.0)[plan] * (1.0 + 0.01 * (at % 3))
        driver.topics.now_ms = 1000 * at
        driver.feed(said[at] if at in said else measured(at, rate, plan, life))
        driver.run()
    decided = [asdict(decision) for decision in driver.outputs(DECISIONS)]
    assert {d["effect"]["verdict"] for d in decided if d["effect"]} == {"helped", "no_effect", "unclear"}
    rows = {key.hex(): json.loads(row) for key, row in driver.runner.state.rows().items()}
    digest = blake2b(json.dumps(coarse([decided, rows]), sort_keys=True).encode(), digest_size=8).hexdigest()
    assert max(DECIDED) == CONTROLLER_VERSION
    assert digest == DECIDED[CONTROLLER_VERSION]
