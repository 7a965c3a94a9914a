"""Monitor and Controller in virtual time: the real services under the runtime's driver in memory.

They may crash at any moment of a commit; in the end they are compared with services that nobody ever disturbed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from antdt_schemas import codec, records
from antdt_schemas.records import Action, Assignment
from antdt_schemas.topics import DEAD_LETTERS, DECISIONS, MEASUREMENTS, STEPS, Topic
from antdt_streams.controller import service as controller
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.monitor import service as monitor
from antdt_streams.monitor.core import DetectorOptions, MonitorState
from antdt_streams.policies.policy import CHANGES, ClusterView, Memory, Proposal
from antdt_streams.runtime.memory import MemoryTopics, without_repeats
from antdt_streams.runtime.service import Service

from tests.helpers.memory_service import Crashed, MemoryDriver

if TYPE_CHECKING:
    from tests.simulation.world import World

JOB = "sim"
DECIDED = DECISIONS.name(JOB)
# Jobs here last some dozen steps: windows are short, and a rate is believed early.
EAGER = DetectorOptions(
    window_steps=2, long_windows=3, persistent_windows=2, warm_up_windows=0, rate_samples_min=1, rate_warm_up_steps=0
)


def eager_monitor() -> Service:
    """The Monitor, with windows that a short job fills."""

    def load(rows: Mapping[bytes, bytes]) -> MonitorState:
        return MonitorState.load(rows, EAGER)

    return replace(monitor.service(), new_state=lambda: MonitorState(EAGER), load_state=load)


class Fickle:
    """A policy that gives shares by chance, and often nobody or almost nobody any: backup workers of a collective."""

    name, version = "fickle", 1

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        rng = random.Random(f"{view.window}/{view.last_step}")
        if view.pending or view.urgent or rng.random() < 0.5:
            return (), memory
        sizes = [rng.choice((0, 0, 1, 3)) for _ in view.workers]
        given = tuple(Assignment(node.worker, size, 1) for node, size in zip(view.workers, sizes, strict=True))
        return (Proposal(Action.BACKUP_WORKERS, "by chance", 0.0, given, backup_workers=sizes.count(0)),), memory


def fickle_controller() -> Service:
    """The Controller by that policy."""
    policy = Fickle()
    new, load = partial(ControllerState, policy), partial(ControllerState.load, policy=policy)
    return replace(controller.service(), new_state=new, load_state=load)


def told(driver: MemoryDriver, topic: Topic) -> list[bytes | None]:
    """What a service has written, as bytes, without what it has repeated."""
    written = driver.topics.records(topic, JOB)
    kept = set(map(id, without_repeats(written)))
    raws = driver.topics.logs.get(topic.name(JOB), [])
    return [raw.value for raw, record in zip(raws, written, strict=True) if id(record) in kept]


class Services:
    """Both services of a job, and their topics."""

    def __init__(self, world: World, monitor: Service, *, spares: bool = False) -> None:
        """spares: some workers take part with no samples."""
        self.world, self.topics = world, MemoryTopics()
        decides = fickle_controller() if spares else controller.service()
        self.drivers = [MemoryDriver(service, JOB, self.topics) for service in (monitor, decides)]
        self._decoded: list[records.Decision] = []

    def report(self, batch: records.StepBatch) -> bool:
        """Telemetry on its way: it may come twice, or be lost, which False says."""
        luck = self.world.rng.random()
        if luck < 0.03:
            self.world.count("telemetry_lost")
            return False
        self.topics.now_ms = self.world.broker.now_ms
        for _ in range(2 if luck > 0.97 else 1):
            self.topics.append(STEPS.name(JOB), codec.encode(batch))
        return True

    def decisions(self, start: int, limit: int) -> list[records.Decision]:
        """Decisions from a position on, as they are in the topic."""
        log = self.topics.logs.get(DECIDED, ())
        for raw in log[len(self._decoded) :] if len(log) > len(self._decoded) else ():
            self._decoded.append(codec.decode(raw.value, records.Decision))
            self.world.count("decision")
        return self._decoded[start : start + limit]

    def step(self) -> None:
        """One of them works on what is there, in batches of any size."""
        rng = self.world.rng
        driver = rng.choice(self.drivers)
        self.topics.now_ms = self.world.broker.now_ms
        try:
            driver.run(rng.choice((1, 3, 100)))
        except Crashed:
            self.world.count(f"{driver.service.name}_crashed")
            self.world.say(driver.service.name, "crashed and starts again")
            driver.restart()

    def crash_soon(self) -> None:
        """Whichever: after this many moments of its commits."""
        self.world.rng.choice(self.drivers).crash_in = self.world.rng.randint(0, 6)

    def check(self) -> None:
        """The same input gives the same outputs and the same state, whatever crashed when; no plan is told twice."""
        for driver, kind in zip(self.drivers, (MEASUREMENTS, DECISIONS), strict=True):
            driver.crash_in = None
            driver.run()
            calm = MemoryDriver(driver.service, JOB, MemoryTopics())
            for raw in self.topics.logs.get(driver.service.input.name(JOB), []):
                calm.topics.now_ms = raw.timestamp_ms
                calm.feed(raw.value)
            calm.run()
            # As bytes: nan is not nan. Nobody has disturbed the other one, so it repeats nothing.
            expected = [raw.value for raw in calm.topics.logs.get(kind.name(JOB), [])]
            assert told(driver, kind) == expected, f"{driver.service.name} tells something else"
            assert driver.runner.digest() == calm.runner.digest(), f"{driver.service.name} has another state"
            assert not driver.outputs(DEAD_LETTERS), driver.outputs(DEAD_LETTERS)[0].reason
            if kind is DECISIONS:
                plans = [d.plan for d in driver.outputs(kind) if d.action in CHANGES]
                assert plans == list(range(1, len(plans) + 1)), f"plans are told twice or left out: {plans}"
