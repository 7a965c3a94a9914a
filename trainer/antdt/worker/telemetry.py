"""StepBatch telemetry: columns that are filled by the training thread and sent by another one. Never blocks a step.

Batches keep the broker's load small, and make whoever decides wait for them. So what is worth knowing at once is sent
at once: a worker's first steps, and those after its speed or the time of the whole step has jumped (a step takes longer
for everybody when one of them is slow, so all of them speak up together). A job whose steps never settle must not send
every one of them on its own: early batches are taken from a small account that fills up slowly.

While the broker does not acknowledge, steps are gathered into full batches; a bounded number of them is on its way, the
rest waits here, and what does not fit is dropped and counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from antdt_schemas import records

STEPS_A_BATCH = 64
BATCH_EVERY_S = 0.5
STEPS_QUEUED_MAX = 4096
FIRST_STEPS = 8
JUMP = 1.3
STEPS_AFTER_A_JUMP = 4
EARLY_SAVED_MAX = 16
IN_FLIGHT_MAX = 8
AWAY_S = 1.0


class StepTiming(NamedTuple):
    """One step of this worker; seconds by a monotonic clock. lineage: of a step that is only watched, the hash of which
    samples this worker was given up to here; empty: not known.
    """

    generation: int
    step: int
    batch_size: int
    plan: int
    data_s: float
    compute_s: float
    communication_s: float
    wait_s: float
    micro_batches: int = 1
    lineage: bytes = b""


@dataclass(frozen=True, slots=True)
class Sort:
    """What kind of node this is: its role, its stage of a pipeline, and the strategy of the job."""

    role: str = "worker"
    stage: int = 0
    strategy: str = ""


@dataclass(slots=True)
class _Usual:
    """What a step took lately: seconds a sample of own work, and of the whole step. 0 while unknown."""

    sample_s: float = 0.0
    step_s: float = 0.0
    early_steps: int = FIRST_STEPS

    def early(self, timing: StepTiming) -> bool:
        """Whether this step is news: one of the first ones, or one of those after a jump."""
        own_s = timing.data_s + timing.compute_s
        step_s = own_s + timing.communication_s + timing.wait_s
        sample_s = own_s / timing.batch_size if timing.batch_size else self.sample_s
        if _far(sample_s, self.sample_s) or _far(step_s, self.step_s):
            self.sample_s, self.step_s, self.early_steps = sample_s, step_s, max(self.early_steps, STEPS_AFTER_A_JUMP)
        else:
            self.sample_s += (sample_s - self.sample_s) / 4
            self.step_s += (step_s - self.step_s) / 4
        early = self.early_steps > 0
        self.early_steps -= early
        return early


def _far(now: float, usual: float) -> bool:
    return not usual / JUMP <= now <= usual * JUMP


class Telemetry:
    """A bounded queue: what does not fit is dropped, oldest first, and counted in the next batch."""

    def __init__(
        self,
        worker: str,
        incarnation: str,
        node: str,
        hardware: str,
        batch_size_max: int = 0,
        sort: Sort | None = None,
    ) -> None:
        """batch_size_max: samples a step that this worker can hold; 0: not known."""
        self.sort = sort or Sort()
        self.identity, self.batch_size_max = (worker, incarnation), batch_size_max
        self.node, self.hardware = node, hardware
        self.dropped = 0
        self.order = ""  # what draws the samples of a job that is only watched
        self._queue: deque[StepTiming] = deque()
        self._number = 0
        self._in_flight, self._steps_in_flight, self._heard_at_s = 0, 0, 0.0
        self._sent_at_s = 0.0
        self._usual = _Usual()
        self._news = False
        self._early, self._early_at_s = float(EARLY_SAVED_MAX), 0.0

    @property
    def waiting(self) -> int:
        """Steps that were not sent yet, and those that are on their way."""
        return len(self._queue) + self._steps_in_flight

    def add(self, timing: StepTiming) -> None:
        """Called by the training thread after every step: appending to a deque is atomic."""
        self._queue.append(timing)
        if len(self._queue) > STEPS_QUEUED_MAX:
            self._queue.popleft()
            self.dropped += 1
        if self._usual.early(timing):
            self._news = True

    def batch(self, now_s: float, everything: bool = False) -> records.StepBatch | None:
        """The next batch if one is due: 64 steps, half a second, or news; and one generation only.

        everything: the rest, at the end.
        """
        queue = self._queue
        if not queue or not (everything or self._is_due(now_s)):
            return None
        self._sent_at_s, self._news = now_s, False
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
            batch_size_max=self.batch_size_max,
            role=self.sort.role,
            stage=self.sort.stage,
            strategy=self.sort.strategy,
            micro_batches=tuple(r.micro_batches for r in rows) if any(r.micro_batches > 1 for r in rows) else (),
            order=self.order,
            lineage=rows[-1].lineage,
        )

    def _is_due(self, now_s: float) -> bool:
        if self._in_flight >= IN_FLIGHT_MAX:
            return False
        if len(self._queue) >= STEPS_A_BATCH:
            return True
        if self._in_flight and now_s - self._heard_at_s > AWAY_S:
            return False  # nobody acknowledges: full batches only
        return now_s - self._sent_at_s >= BATCH_EVERY_S or (self._news and self._may_be_early(now_s))

    def _may_be_early(self, now_s: float) -> bool:
        """Takes one from the account: one for each ordinary batch's time, some of them saved up."""
        self._early = min(EARLY_SAVED_MAX, self._early + (now_s - self._early_at_s) / BATCH_EVERY_S)
        self._early_at_s = now_s
        if self._early < 1.0:
            return False
        self._early -= 1.0
        return True

    def sent(self, now_s: float, steps: int = 0) -> None:
        """A batch of so many steps is on its way."""
        self._steps_in_flight += steps
        if not self._in_flight:
            self._heard_at_s = now_s
        self._in_flight += 1

    def acknowledged(self, steps: int, now_s: float, *, arrived: bool) -> None:
        """A batch of so many steps is not on its way any more; if it did not arrive, it is counted as dropped."""
        self._in_flight -= 1
        self._steps_in_flight = max(0, self._steps_in_flight - steps)
        if arrived:
            self._heard_at_s = now_s
        else:
            self.dropped += steps
