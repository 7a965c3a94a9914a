"""StepBatch telemetry: columns that are filled by the training thread and sent by another one. Never blocks a step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from antdt_schemas import records

STEPS_A_BATCH = 64
BATCH_EVERY_S = 0.5
STEPS_QUEUED_MAX = 4096


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One step of this worker; seconds by a monotonic clock."""

    generation: int
    step: int
    batch_size: int
    plan: int
    data_s: float
    compute_s: float
    communication_s: float
    wait_s: float


class Telemetry:
    """A bounded queue: what does not fit is dropped, oldest first, and counted in the next batch."""

    def __init__(self, worker: str, incarnation: str, node: str, hardware: str) -> None:
        self.identity = worker, incarnation
        self.node, self.hardware = node, hardware
        self.dropped = 0
        self._queue: deque[StepTiming] = deque()
        self._number = 0
        self._sent_at_s = 0.0

    def add(self, timing: StepTiming) -> None:
        """Called by the training thread after every step: appending to a deque is atomic."""
        self._queue.append(timing)
        if len(self._queue) > STEPS_QUEUED_MAX:
            self._queue.popleft()
            self.dropped += 1

    def batch(self, now_s: float, everything: bool = False) -> records.StepBatch | None:
        """The next batch if one is due: 64 steps or half a second, and one generation only."""
        queue = self._queue
        due = len(queue) >= STEPS_A_BATCH or now_s - self._sent_at_s >= BATCH_EVERY_S or everything
        if not queue or not due:
            return None
        self._sent_at_s = now_s
        generation, rows = queue[0].generation, list[StepTiming]()
        while queue and queue[0].generation == generation and len(rows) < STEPS_A_BATCH:
            rows.append(queue.popleft())
        self._number += 1
        worker, incarnation = self.identity
        return records.StepBatch(
            worker=worker,
            incarnation=incarnation,
            generation=generation,
            node=self.node,
            hardware=self.hardware,
            number=self._number,
            dropped=self.dropped,
            step=tuple(r.step for r in rows),
            batch_size=tuple(r.batch_size for r in rows),
            plan=tuple(r.plan for r in rows),
            data_s=tuple(r.data_s for r in rows),
            compute_s=tuple(r.compute_s for r in rows),
            communication_s=tuple(r.communication_s for r in rows),
            wait_s=tuple(r.wait_s for r in rows),
        )

    def drop(self, batch: records.StepBatch) -> None:
        """This batch could not be sent."""
        self.dropped += len(batch.step)
