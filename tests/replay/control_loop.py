"""Monitor and Controller in a loop with imagined workers, in virtual time: no broker, no clock, seeded.

Workers step in lockstep (BSP), report their own times in StepBatches as a trainer does (every `flush_s` or 64 steps),
and take a plan at the first step that begins `lag_s` after it was decided.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas.records import Action, Decision, Measurement, StepBatch
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.monitor.core import DetectorOptions, MonitorState, Position
from antdt_streams.policies import AdjustBatchSize

Slowness = Callable[[int, float], float]
"""How many times as slow worker number w is at a time in seconds."""
Column = tuple[int, int, int, float]
"""(step, batch size, plan, own seconds)"""


def steps_of(worker: str, first: int, own_s: list[float], batch_size: int = 32, plan: int = 0) -> StepBatch:
    """A StepBatch of consecutive steps of the first incarnation, in generation 1."""
    return step_batch(worker, [(first + i, batch_size, plan, own) for i, own in enumerate(own_s)])


def step_batch(worker: str, columns: list[Column], **other: Any) -> StepBatch:
    """A StepBatch of these steps; `other` sets its other fields."""
    zeros = (0.0,) * len(columns)
    fields: dict[str, Any] = {
        "worker": worker,
        "incarnation": f"{worker}-1",
        "generation": 1,
        "node": "",
        "hardware": "",
        "number": 1,
        "dropped": 0,
        "step": tuple(c[0] for c in columns),
        "batch_size": tuple(c[1] for c in columns),
        "plan": tuple(c[2] for c in columns),
        "data_s": zeros,
        "compute_s": tuple(c[3] for c in columns),
        "communication_s": zeros,
        "wait_s": zeros,
    }
    return StepBatch(**{**fields, **other})


@dataclass
class Worker:
    """One imagined worker and what it has not reported yet. away_until_s: it is being started again, as `life`."""

    name: str
    batch_size: int
    columns: list[Column] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    life: int = 0
    away_until_s: float = 0.0
    flushed_s: float = 0.0


@dataclass
class Loop:
    """All of it. `history` holds (step, step seconds, batch sizes) of every step; `said` decisions of action NONE."""

    slowness: Slowness
    workers: list[Worker]
    seconds_per_sample: float = 1e-3
    fixed_s: float = 2e-3
    noise: float = 0.05
    flush_s: float = 0.5
    lag_s: float = 0.1
    seed: int = 1
    control: bool = True
    away_s: float = 4.0
    generation: int = 1
    now_s: float = 0.0
    step: int = 0
    plan: int = 0
    offset: int = 0
    history: list[tuple[int, float, list[int]]] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    decisions: list[tuple[int, Decision]] = field(default_factory=list)
    said: list[tuple[int, Decision]] = field(default_factory=list)
    records: list[StepBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.monitor = MonitorState(DetectorOptions())
        self.controller = ControllerState(AdjustBatchSize())
        self.waiting: list[tuple[float, Decision]] = []
        self.batch_size = sum(worker.batch_size for worker in self.workers)
        self.shares: dict[str, int] = {}

    @classmethod
    def of(cls, slowness: Slowness, workers: int = 4, batch_size: int = 32, **options: Any) -> Loop:
        """Workers w0, w1, ... with the same batch size."""
        return cls(slowness, [Worker(f"w{i}", batch_size) for i in range(workers)], **options)

    def run(self, steps: int) -> Loop:
        """Train for so many steps."""
        for _ in range(steps):
            self._step()
        return self

    def _step(self) -> None:
        while self.waiting and self.waiting[0][0] <= self.now_s:
            self._take(self.waiting.pop(0)[1])
        self._come_back()
        here = [(number, worker) for number, worker in enumerate(self.workers) if not worker.away_until_s]
        own_s = [self._own_s(number, worker) for number, worker in here]
        slowest = max(own_s)
        for (_, worker), own in zip(here, own_s, strict=True):
            worker.columns.append((self.step, worker.batch_size, self.plan, own))
            worker.waits.append(slowest - own)
        self.history.append((self.step, slowest, [w.batch_size for w in self.workers]))
        self.now_s += slowest
        for _, worker in here:
            if len(worker.columns) == 64 or self.now_s - worker.flushed_s >= self.flush_s:
                self._report(worker)
        self.step += 1

    def _take(self, decision: Decision) -> None:
        if decision.action is Action.KILL_RESTART:
            for worker in self.workers:
                if decision.target == f"{worker.name}-{worker.life + 1}":
                    worker.life, worker.away_until_s = worker.life + 1, self.now_s + self.away_s
                    self._regroup()
            return
        self.plan = decision.plan
        self.shares = {a.worker: a.batch_size for a in decision.assignments}
        self._split()

    def _come_back(self) -> None:
        back = [worker for worker in self.workers if 0.0 < worker.away_until_s <= self.now_s]
        for worker in back:
            worker.away_until_s = 0.0
        if back:
            self._regroup()

    def _regroup(self) -> None:
        """The group forms anew, which takes a moment; what of the old one is not reported yet is."""
        for worker in self.workers:
            if worker.columns:
                self._report(worker)
        self.generation, self.now_s = self.generation + 1, self.now_s + 0.3
        self._split()

    def _split(self) -> None:
        """The plan's shares among those it was made for, equal ones among others."""
        here = [worker for worker in self.workers if not worker.away_until_s]
        if {worker.name for worker in here} == set(self.shares):
            for worker in here:
                worker.batch_size = self.shares[worker.name]
            return
        base, more = divmod(self.batch_size, len(here))
        for i, worker in enumerate(here):
            worker.batch_size = base + (i < more)

    def _own_s(self, number: int, worker: Worker) -> float:
        jitter = self.random.lognormvariate(0.0, self.noise)
        own = self.fixed_s + worker.batch_size * self.seconds_per_sample
        return own * jitter * self.slowness(number, self.now_s) if worker.batch_size else 0.0

    def _report(self, worker: Worker) -> None:
        of = {"incarnation": f"{worker.name}-{worker.life + 1}", "generation": self.generation}
        record = step_batch(worker.name, worker.columns, wait_s=tuple(worker.waits), strategy="allreduce", **of)
        worker.columns, worker.waits, worker.flushed_s = [], [], self.now_s
        self.records.append(record)
        now_ms = int(self.now_s * 1000)
        for measurement in self.monitor.process(record, Position(0, self.offset), now_ms):
            position = Position(0, len(self.measurements))
            self.measurements.append(measurement)
            for decision in self.controller.process(measurement, position, now_ms) if self.control else ():
                if decision.action is Action.NONE:
                    self.said.append((self.step, decision))
                    continue
                self.decisions.append((self.step, decision))
                self.waiting.append((self.now_s + self.lag_s, decision))
        self.offset += 1
