"""What is known of workers and servers, and commanded to them: from steps, measurements and decisions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from antdt_schemas import records
from antdt_schemas.strategies import WATCHED
from antdt_schemas.topics import Topic

from antdt_streams.views.projection import Projection

STEPS_KEPT = 32  # of each worker or server
MEANS_OF = 8  # of the newest of them, what is said in numbers
UNKNOWN = "unknown"
SLOW = ("persistent", "transient", "deterministic", "absent")  # classes of nodes
WORKER = "worker"
NODES_MAX = 8192  # names of each kind, as many as the Monitor takes in
SECONDS_MAX = 1e5  # more, or what is no number, is absurd


class Step(NamedTuple):
    """One step of a worker: its samples, its seconds by part, and where in `steps` the record lies that says so."""

    step: int
    samples: int
    data_s: float
    compute_s: float
    communication_s: float
    wait_s: float
    offset: int = 0

    @property
    def own_s(self) -> float:
        """Without what it waited for others."""
        return self.data_s + self.compute_s


class Command(NamedTuple):
    """A decision that counts, where in `decisions` it lies, and the broker's time of it."""

    decision: records.Decision
    offset: int
    time_ms: int


@dataclass(slots=True)
class WorkerView:
    """The newest steps of one worker. batch_size: the most it took in one step under the plan. measured_s: seconds a
    sample takes it, as the Monitor has it; 0 while that is not known. row, lane: what was told of it last, and of its
    steps; None once that has changed. watched, order, lineage: of one that is only watched, what draws its samples, and
    the hash of those up to its newest step.
    """

    batch_size: int = 0
    plan: int = 0
    node_class: str = UNKNOWN
    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    measured_s: float = 0.0
    row: dict[str, Any] | None = None
    lane: list[int] | None = None
    watched: bool = False
    order: str = ""
    lineage: str = ""

    @property
    def own_s(self) -> list[tuple[int, float]]:
        """Samples and seconds of own work of the newest steps in which it had any samples."""
        newest = list(self.steps)[-MEANS_OF:]
        return [(step.samples, step.own_s) for step in newest if step.samples]

    @property
    def wait_s(self) -> float:
        """Of the newest step."""
        return self.steps[-1].wait_s if self.steps else 0.0

    @property
    def samples_per_s(self) -> float:
        own = self.own_s
        seconds = sum(s for _, s in own)
        return sum(n for n, _ in own) / seconds if seconds else 0.0

    def take(self, batch: records.StepBatch, offset: int) -> None:
        """The next steps that it has told of."""
        times = (batch.data_s, batch.compute_s, batch.communication_s, batch.wait_s)
        for number, samples, plan, *parts in zip(batch.step, batch.batch_size, batch.plan, *times, strict=True):
            data_s, compute_s, communication_s, wait_s = (s if 0.0 <= s < SECONDS_MAX else 0.0 for s in parts)
            step = Step(number, samples, data_s, compute_s, communication_s, wait_s, offset)
            self.batch_size = max(step.samples, self.batch_size if plan == self.plan else 0)
            self.plan = plan
            self.steps.append(step)
        self.watched, self.order, self.lineage = batch.strategy == WATCHED, batch.order, batch.lineage.hex()
        self.row = self.lane = None

    def judge(self, node: records.NodeMeasurement) -> None:
        """What the Monitor makes of it."""
        if str(node.node_class) != self.node_class or not self.steps:
            self.row = None
        self.node_class = str(node.node_class)
        self.measured_s = node.seconds_per_sample if node.seconds_per_sample < float("inf") else 0.0


@dataclass(slots=True)
class Control(Projection[Sequence[records.Decision]]):
    """workers, servers: by name. commands: plans, restarts and promotions of policies, each once; a repetition of one
    or what an older plan says is none. effects: what has come of a decision, by its cause. measured: the newest
    measurement, at this offset. keep: how many commands are kept, the newest; None: all. changes: how many records
    there were.
    """

    keep: int | None = None
    workers: dict[str, WorkerView] = field(default_factory=dict)
    servers: dict[str, WorkerView] = field(default_factory=dict)
    commands: deque[Command] = field(default_factory=deque)
    effects: dict[records.Cause, records.Effect] = field(default_factory=dict)
    measured: records.Measurement | None = None
    measured_at: int = -1
    policy: str = ""
    changes: int = 0
    _plan: int = -1
    _targets: set[str] = field(default_factory=set)
    _promoted: tuple[int, int] = (-1, -1)

    def on_record(self, topic: Topic, record: Any, offset: int, time_ms: int = 0) -> None:
        self.changes += 1
        if isinstance(record, records.StepBatch):
            if (view := self._view(record.role, record.worker)) is not None:
                view.take(record, offset)
        elif isinstance(record, records.Measurement):
            self.measured, self.measured_at = record, offset
            for node in record.nodes:
                if (view := self._view(node.role, node.worker)) is not None:
                    view.judge(node)
        elif isinstance(record, records.Decision):
            self.policy = record.policy
            if record.effect is not None:
                self.effects[record.effect.decision] = record.effect
            if self._counts(record):
                self._enter(Command(record, offset, time_ms))

    def view(self) -> Sequence[records.Decision]:
        return self.decisions

    @property
    def decisions(self) -> list[records.Decision]:
        """Those of the commands."""
        return [command.decision for command in self.commands]

    def _view(self, role: str, name: str) -> WorkerView | None:
        """Of one node; None where there are more names than any job has."""
        nodes = self.workers if role == WORKER else self.servers
        found = nodes.get(name)
        if found is None and len(nodes) < NODES_MAX:
            found = nodes[name] = WorkerView()
        return found

    def _enter(self, command: Command) -> None:
        self.commands.append(command)
        if self.keep is not None and len(self.commands) > self.keep:
            self.effects.pop(self.commands.popleft().decision.cause, None)

    def _counts(self, decision: records.Decision) -> bool:
        """A plan that is newer than all before, an incarnation that is to go and was not to before, or another policy
        that decides, which nobody's action says but its author's.
        """
        if decision.action is records.Action.KILL_RESTART:
            new = decision.target not in self._targets
            self._targets.add(decision.target)
            return new
        if decision.action is records.Action.NONE and decision.author:
            at = decision.cause.partition, decision.cause.offset
            before, self._promoted = self._promoted, max(at, self._promoted)
            return at > before
        newer = decision.action is not records.Action.NONE and decision.plan > self._plan
        if newer:
            self._plan = decision.plan
        return newer
