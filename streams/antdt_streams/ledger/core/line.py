"""The line of committed steps that leads to the model, and the files on it that can be gone back to.

Owns lineage, compositions and checkpoints. Must not know who took the steps, nor what state their samples are in now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from antdt_schemas import lineage, records
from antdt_schemas.limits import CHECKPOINTS_KEPT, INIT_FILE

from antdt_streams.ledger.core.dirty import Dirty
from antdt_streams.ledger.core.intervals import IntervalSet

Intervals = tuple[tuple[int, int], ...]
Inside = tuple[tuple[int, Intervals], ...]  # of each epoch


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the state. `steps` and `step_numbers` bound what is kept of past compositions."""

    checkpoints: int = CHECKPOINTS_KEPT
    steps: int = 4096
    step_numbers: int = 1 << 20


@dataclass(slots=True)
class Step:
    """A committed step: flat quadruples (lease, epoch, start, length), and the lineage after it. Never changed;
    `framed` is what it adds to a digest, once one was asked for.
    """

    step: int
    ranges: tuple[int, ...]
    lineage: bytes
    framed: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A durable file; `committed` are the intervals of each epoch that its model contains."""

    step: int
    lineage: bytes
    file: str
    committed: Inside


# The model before any step: its file is never removed, so the way back to it is always open.
BEFORE_ANY = Checkpoint(0, lineage.ROOT, INIT_FILE, ())


class Line:
    """`committed` steps, the lineage after them, the plan of the last one, and the kept checkpoints, oldest first.

    skipped: committed steps that the model was left out of, those undone by a roll-back included.
    """

    def __init__(self, bounds: Bounds, dirty: Dirty) -> None:
        self.bounds, self.dirty = bounds, dirty
        self.committed, self.lineage, self.plan = 0, lineage.ROOT, 0
        self.skipped = 0
        self.checkpoints = [BEFORE_ANY]
        self.steps: deque[Step] = deque()
        self.step_numbers = 0

    def lineage_at(self, step: int) -> bytes | None:
        """Lineage of a committed step, or None if it is not (or no longer) known."""
        if step == self.committed:
            return self.lineage
        if self.steps and self.steps[0].step <= step < self.committed:
            return self.steps[step - self.steps[0].step].lineage
        return next((c.lineage for c in self.checkpoints if c.step == step), None)

    def commit(self, e: records.Committed) -> None:
        """The next step is in the model."""
        assert e.step == self.committed + 1, (e, self.committed)
        self.lineage = lineage.next_lineage(self.lineage, e.step, e.ranges)
        assert e.lineage in (self.lineage, b""), (e, self.lineage)
        self.committed, self.plan = e.step, e.plan
        # One by one, as a ledger in office has them: `remember` without what it does for many.
        self.steps.append(Step(e.step, e.ranges, self.lineage))
        self.step_numbers += len(e.ranges)
        self.dirty.steps.add(e.step)
        if len(self.steps) > self.bounds.steps or self.step_numbers > self.bounds.step_numbers:
            self._forget(self.bounds.steps, self.bounds.step_numbers)

    def skip(self, e: records.StepSkipped) -> None:
        """The last step left the model as it was."""
        assert e.step == self.committed, (e, self.committed)
        self.skipped += 1
        self.dirty.others.add(("skipped", 0))

    def remember(self, steps: Sequence[Step]) -> None:
        """Keep the next steps apart, and forget the oldest ones beyond the bounds."""
        self.steps.extend(steps)
        self.step_numbers += sum([len(step.ranges) for step in steps])
        self.dirty.steps.update(range(steps[0].step, steps[-1].step + 1))
        self._forget(self.bounds.steps, self.bounds.step_numbers)

    def forget_steps(self) -> None:
        """Keep none of the steps so far apart."""
        self._forget(0, 0)

    def _forget(self, steps: int, numbers: int) -> None:
        """Keep as many of the newest steps apart, of as many numbers together."""
        first = self.steps[0].step if self.steps else 0
        forgotten = 0
        while len(self.steps) > steps or self.step_numbers > numbers:
            self.step_numbers -= len(self.steps.popleft().ranges)
            forgotten += 1
        self.dirty.steps.update(range(first, first + forgotten))

    def roll_back(self, step: int) -> Checkpoint:
        """Steps behind this one, which the newest kept checkpoint up to there holds, are undone."""
        kept = [c for c in self.checkpoints if c.step <= step] or [BEFORE_ANY]
        target = kept[-1]
        assert target.step == step, (step, self.checkpoints)
        while self.steps and self.steps[-1].step > step:
            undone = self.steps.pop()
            self.step_numbers -= len(undone.ranges)
            self.dirty.steps.add(undone.step)
        self.checkpoints = kept
        self.committed, self.lineage = step, target.lineage
        self.dirty.others.add(("checkpoints", 0))
        return target

    def checkpoint(self, e: records.Checkpointed, inside_at: Callable[[int], Inside]) -> None:
        """A durable file holds the model of a step. inside_at: what the model of a step contains."""
        assert self.lineage_at(e.step) == e.lineage, e
        # The same model in another file contains the same, also when the steps since are no longer kept apart.
        same = next((c.committed for c in self.checkpoints if c.step == e.step), None)
        inside = inside_at(e.step) if same is None else same
        self.checkpoints.append(Checkpoint(e.step, e.lineage, e.file, inside))
        self.checkpoints.sort(key=lambda c: c.step)
        del self.checkpoints[: -self.bounds.checkpoints]
        self.dirty.others.add(("checkpoints", 0))

    def ranges_of(self, step: int) -> tuple[int, ...]:
        """Those of a step that is still kept apart."""
        return self.steps[step - self.steps[0].step].ranges

    def inside(self, step: int, committed: Mapping[int, IntervalSet]) -> Inside:
        """Committed intervals of each epoch after this step: all that are committed, but those of later steps."""
        inside = {number: intervals.copy() for number, intervals in committed.items()}
        for later in reversed(self.steps):
            if later.step <= step:
                break
            for i in range(0, len(later.ranges), 4):
                _, number, start, length = later.ranges[i : i + 4]
                inside[number].remove(start, start + length)
        return tuple((number, tuple(s)) for number, s in sorted(inside.items()) if s)
