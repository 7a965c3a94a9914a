"""What is known of the workers and commanded to them: from steps, measurements and decisions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import records
from antdt_schemas.topics import Topic

from antdt_streams.views.projection import Projection

STEPS_KEPT = 8
SLOW = ("persistent", "transient", "deterministic", "absent")  # classes of nodes


@dataclass(slots=True)
class WorkerView:
    """The newest steps of one worker, up to `step`. batch_size: the most it took in one step under the plan."""

    batch_size: int = 0
    plan: int = 0
    node_class: str = "unknown"
    own_s: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    wait_s: float = 0.0
    step: int = 0

    @property
    def samples_per_s(self) -> float:
        seconds = sum(s for _, s in self.own_s)
        return sum(n for n, _ in self.own_s) / seconds if seconds else 0.0


@dataclass(slots=True)
class Control(Projection["list[records.Decision]"]):
    """workers: without servers, which take no samples. decisions: plans and restarts, each once; a repetition of one or
    what an older plan says is none.
    """

    workers: dict[str, WorkerView] = field(default_factory=dict)
    decisions: list[records.Decision] = field(default_factory=list)

    def on_record(self, topic: Topic, record: Any, offset: int) -> None:
        if isinstance(record, records.StepBatch):
            if record.role == "worker":
                self._steps(record)
        elif isinstance(record, records.Measurement):
            for node in record.nodes:
                self.workers.setdefault(node.worker, WorkerView()).node_class = str(node.node_class)
        elif isinstance(record, records.Decision) and self._counts(record):
            self.decisions.append(record)

    def view(self) -> list[records.Decision]:
        return self.decisions

    def _counts(self, decision: records.Decision) -> bool:
        """A plan that is newer than all before, or an incarnation that is to go and was not to before."""
        if decision.action is records.Action.KILL_RESTART:
            return all(decision.target != before.target for before in self.decisions)
        plans = [d.plan for d in self.decisions if d.action is not records.Action.KILL_RESTART]
        return decision.action is not records.Action.NONE and (not plans or decision.plan > plans[-1])

    def _steps(self, batch: records.StepBatch) -> None:
        view = self.workers.setdefault(batch.worker, WorkerView())
        view.step = batch.step[-1] if batch.step else view.step
        for i in range(len(batch.step)):
            size, same = batch.batch_size[i], batch.plan[i] == view.plan
            view.plan, view.batch_size = batch.plan[i], max(size, view.batch_size if same else 0)
            view.wait_s = batch.wait_s[i]
            if size:
                view.own_s.append((size, batch.data_s[i] + batch.compute_s[i]))
