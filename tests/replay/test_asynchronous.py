"""The Monitor and AntDT-ND where workers do not wait for each other, and servers: imagined nodes in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from antdt_schemas.records import Action, Decision, Measurement, NodeClass
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.monitor.core import MonitorState, Position
from antdt_streams.policies import NonDedicated, NonDedicatedParameters

from tests.replay.control_loop import step_batch

STRATEGY = "ps-asp/servers=2"
Slowness = Callable[[str, float], float]


@dataclass
class Free:
    """Workers that go on by themselves, and servers that report each half second; what Monitor and Controller say."""

    slowness: Slowness
    step_s: float = 0.2
    workers: int = 4
    servers: int = 0
    seed: int = 1
    noise: float = 0.05
    now_s: float = 0.0
    offset: int = 0
    measurements: list[Measurement] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random, self.monitor = random.Random(self.seed), MonitorState()
        parameters = NonDedicatedParameters(restart_s=4.0, pause_s=0.5, rollback_s=2.0, from_start_factor=1.0)
        self.controller = ControllerState(NonDedicated(parameters))
        self.names = [*(f"w{i}" for i in range(self.workers)), *(f"s{i}" for i in range(self.servers))]
        self.ends = {name: 0.01 * i for i, name in enumerate(self.names)}
        self.steps = dict.fromkeys(self.names, 0)
        self.columns: dict[str, list[tuple[int, int, int, float]]] = {name: [] for name in self.names}
        self.sent = dict.fromkeys(self.names, 0.0)

    def run(self, until_s: float) -> Free:
        while self.now_s < until_s:
            name = min(self.ends, key=lambda one: (self.ends[one], one))
            self.now_s = self.ends[name]
            self._step(name)
        return self

    def _step(self, name: str) -> None:
        jitter = self.random.lognormvariate(0.0, self.noise) * self.slowness(name, self.now_s)
        server = name.startswith("s")
        own_s = (0.1 if server else self.step_s) * jitter
        taken = int(1e6 * self.random.uniform(0.8, 1.2)) if server else 32
        own_s *= taken / 1e6 if server else 1.0
        self.columns[name].append((self.steps[name], taken, 0, own_s))
        self.steps[name] += 1
        self.ends[name] = self.now_s + (max(0.5, own_s) if server else own_s)
        if self.now_s - self.sent[name] >= 0.5:
            self._report(name, wait_s=max(0.5 - own_s, 0.0) if server else 0.0)

    def _report(self, name: str, wait_s: float) -> None:
        columns, self.columns[name] = self.columns[name], []
        self.sent[name] = self.now_s
        role = "server" if name.startswith("s") else "worker"
        waits = (wait_s,) * len(columns)
        record = step_batch(name, columns, strategy=STRATEGY, role=role, wait_s=waits)
        now_ms = int(1000 * self.now_s)
        for found in self.monitor.process(record, Position(0, self.offset), now_ms):
            position = Position(0, len(self.measurements))
            self.measurements.append(found)
            self.decisions += self.controller.process(found, position, now_ms)
        self.offset += 1

    def classes(self, name: str) -> list[NodeClass]:
        return [node.node_class for one in self.measurements for node in one.nodes if node.worker == name]

    def restarted(self) -> list[str]:
        return [d.target for d in self.decisions if d.action is Action.KILL_RESTART]


def even(name: str, now_s: float) -> float:
    return 1.0


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_called_sick_without_a_reason(seed: int) -> None:
    free = Free(even, seed=seed, servers=2, noise=0.1).run(120.0)
    assert len(free.measurements) > 15
    assert not free.decisions
    assert not any(NodeClass.PERSISTENT in free.classes(name) for name in free.names)
    assert free.measurements[-1].samples_per_s == pytest.approx(4 * 32 / 0.2, rel=0.1)


def test_a_worker_that_becomes_slow_is_seen_and_started_again_and_nothing_is_balanced() -> None:
    free = Free(lambda name, now_s: 4.0 if name == "w1" and now_s > 60.0 else 1.0).run(150.0)
    assert NodeClass.PERSISTENT in free.classes("w1")
    assert not any(NodeClass.PERSISTENT in free.classes(name) for name in ("w0", "w2", "w3"))
    assert free.restarted()[0] == "w1-1"
    assert {d.action for d in free.decisions} <= {Action.KILL_RESTART, Action.NONE}


def test_half_of_them_slower_from_the_start_are_a_class_and_not_sick() -> None:
    free = Free(lambda name, now_s: 3.0 if name in ("w2", "w3") else 1.0).run(90.0)
    assert [free.classes(name)[-1] for name in free.names] == [NodeClass.LEADER] * 2 + [NodeClass.DETERMINISTIC] * 2
    assert not free.restarted()


def test_a_slow_server_is_seen_by_its_service_time_and_started_again() -> None:
    free = Free(lambda name, now_s: 5.0 if name == "s1" and now_s > 60.0 else 1.0, servers=2).run(150.0)
    assert NodeClass.PERSISTENT in free.classes("s1")
    assert NodeClass.PERSISTENT not in free.classes("s0")
    assert free.restarted()[0] == "s1-1"
    last = {node.worker: node for node in free.measurements[-1].nodes}
    assert (last["s1"].role, last["s1"].busy > 0.8, last["s0"].busy < 0.4) == ("server", True, True)


def test_steps_of_many_seconds_have_longer_ticks() -> None:
    free = Free(lambda name, now_s: 3.0 if name == "w1" and now_s > 400.0 else 1.0, step_s=4.0).run(1500.0)
    assert free.monitor.tick_ms >= 8000
    assert NodeClass.PERSISTENT in free.classes("w1")
    again = MonitorState.load(free.monitor.rows())
    assert again.digest() == free.monitor.digest()


def test_who_falls_silent_is_absent() -> None:
    free = Free(even).run(30.0)
    free.ends["w2"] = 1e9
    free.run(70.0)
    assert free.classes("w2")[-1] is NodeClass.ABSENT
    assert free.measurements[-1].window > free.measurements[0].window
