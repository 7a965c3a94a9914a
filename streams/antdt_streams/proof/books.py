"""The books of an audit: an accounting of its own, from the entries of a log that count.

Shares only the interval sets with the ledger's state, and takes nothing from it but where a part of a log begins, which
the books of the part before must agree with. Knows neither the hash chain nor the rule that says what counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from antdt_schemas import lineage, records
from antdt_schemas.errors import LogTampered
from antdt_schemas.limits import CHECKPOINTS_KEPT

from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.line import Bounds
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.fast.columns import union
from antdt_streams.proof.fast.runs import Run

RANGES_LISTED_MAX = 1000
CHECKPOINTS_MAX = 2 * CHECKPOINTS_KEPT
STEPS_KEPT = Bounds().steps  # the ledger takes no checkpoint of an older one that it has not had before


@dataclass(slots=True)
class Model:
    """What a checkpoint contains, and the lineage of its step."""

    lineage: bytes
    inside: dict[int, IntervalSet]


class Step(NamedTuple):
    """A committed step: flat quadruples (lease, epoch, start, length), and the lineage after it."""

    step: int
    ranges: tuple[int, ...]
    lineage: bytes


def _before_any() -> dict[int, Model]:
    return {0: Model(lineage.ROOT, {})}


@dataclass(slots=True)
class Books:
    """What the entries that count say: which positions are in the model, by how many steps.

    Memory does not grow with the log: steps are kept apart for as long as a checkpoint of them may still come.
    """

    spec: records.JobSpec
    committed: dict[int, IntervalSet] = field(default_factory=dict)
    quarantined: dict[int, IntervalSet] = field(default_factory=dict)
    repeated: list[tuple[int, int, int]] = field(default_factory=list)
    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    checkpoints: dict[int, Model] = field(default_factory=_before_any)
    lineage: bytes = lineage.ROOT
    wrong_lineage: list[int] = field(default_factory=list)
    step: int = 0
    refused: int = 0
    skipped: int = 0
    first_lease_ms: int | None = None
    last_commit_ms: int | None = None
    done: str | None = None
    reopened: bool = False
    rolled_back: int = 0
    regressions: list[records.Regressed] = field(default_factory=list)
    moves: list[records.RequestsMoved] = field(default_factory=list)

    @classmethod
    def opened(cls, state: State) -> Books:
        """Books of the part of a log that begins with this state."""
        books = cls(state.spec, step=state.line.committed, lineage=state.line.lineage)
        for number, epoch in state.shards.epochs.items():
            books.committed[number] = epoch.committed.copy()
            books.quarantined[number] = epoch.quarantined.copy()
        books.steps.extend(Step(s.step, s.ranges, s.lineage) for s in state.line.steps)
        books.checkpoints = {
            c.step: Model(c.lineage, {n: IntervalSet(parts) for n, parts in c.committed})
            for c in state.line.checkpoints
        }
        return books

    def agree(self, state: State) -> bool:
        """Whether the books of the part before would go on as these rows say: the same samples in the model and in
        each checkpoint, the same lineage.
        """
        return (
            (self.step, self.lineage) == (state.line.committed, state.line.lineage)
            and _filled(self.committed) == _filled({n: e.committed for n, e in state.shards.epochs.items()})
            and _filled(self.quarantined) == _filled({n: e.quarantined for n, e in state.shards.epochs.items()})
            and all(
                c.step in self.checkpoints and _filled(self.checkpoints[c.step].inside) == dict(c.committed)
                for c in state.line.checkpoints
            )
        )

    def closed(self) -> Books:
        """What these books add to those of the parts behind: all but where the samples are."""
        return replace(self, committed={}, quarantined={}, steps=deque(), checkpoints={})

    def follow(self, before: Books) -> None:
        """Take in what `closed` left of the part before."""
        self.repeated = (before.repeated + self.repeated)[:RANGES_LISTED_MAX]
        self.wrong_lineage = before.wrong_lineage + self.wrong_lineage
        self.regressions = before.regressions + self.regressions
        self.moves = before.moves + self.moves
        self.refused += before.refused
        self.skipped += before.skipped
        self.rolled_back += before.rolled_back
        if before.first_lease_ms is not None:
            self.first_lease_ms = before.first_lease_ms
        if self.last_commit_ms is None:
            self.last_commit_ms = before.last_commit_ms
        if not self.reopened:
            self.done, self.reopened = self.done or before.done, before.reopened

    def enter(self, event: records.Event, now_ms: int) -> None:
        """Book one event of an entry that counts."""
        if isinstance(event, records.Committed):
            self._commit(event)
            self.last_commit_ms = now_ms
        elif isinstance(event, records.Leased) and self.first_lease_ms is None:
            self.first_lease_ms = now_ms
        elif isinstance(event, records.RolledBack):
            self._roll_back(event.step)
        elif isinstance(event, records.Checkpointed):
            self._checkpoint(event.step)
        elif isinstance(event, records.Returned) and event.quarantined:
            self.quarantined.setdefault(event.epoch, IntervalSet()).add(event.start, event.start + event.length)
        elif isinstance(event, records.Readmitted):
            self.quarantined[event.epoch].remove(event.start, event.start + event.length)
            self.done, self.reopened = None, True
        elif isinstance(event, records.Refused):
            self.refused += 1
        elif isinstance(event, records.StepSkipped):
            self.skipped += 1
        elif isinstance(event, records.Regressed):
            self.regressions.append(event)
        elif isinstance(event, records.RequestsMoved):
            self.moves.append(event)
        elif isinstance(event, records.Done):
            self.done = event.file

    def enter_run(self, run: Run) -> None:
        """Book all entries of a run, which count."""
        if self.first_lease_ms is None:
            self.first_lease_ms = run.first_lease_ms
        if run.steps:
            if not self._commit_together(run):
                for event in run.committed():
                    self._commit(event)
            self.last_commit_ms = run.last_commit_ms

    def _commit_together(self, run: Run) -> bool:
        """Book the steps of a run, or nothing if that is not all there is to say of them."""
        unions = {}
        for epoch in np.unique(run.ranges[:, 1]).tolist():
            inside = self.committed.setdefault(epoch, IntervalSet())
            found = union(run.ranges[run.ranges[:, 1] == epoch, 2:])
            if found is None or any(inside.overlaps(*part) for part in found):
                return False
            unions[epoch] = found
        lineages = run.lineages_after(self.lineage)
        if lineages != run.lineages or (run.step_numbers != self.step + 1 + np.arange(run.steps)).any():
            return False
        for epoch, parts in unions.items():
            for start, end in parts:
                self.committed[epoch].add(start, end)
        self.step, self.lineage = self.step + run.steps, lineages[-1]
        last = run.compositions(STEPS_KEPT)
        numbers = range(self.step - len(last) + 1, self.step + 1)
        self.steps.extend(map(Step, numbers, last, lineages[-len(last) :]))
        return True

    def _commit(self, event: records.Committed) -> None:
        r = event.ranges
        values = iter(r)
        for _, epoch, start, length in zip(values, values, values, values, strict=True):
            inside = self.committed.get(epoch)
            if inside is None:
                inside = self.committed[epoch] = IntervalSet()
            if not inside.try_add(start, start + length):
                self._repeat(epoch, start, start + length)
        self.step += 1
        self.lineage = lineage.next_lineage(self.lineage, self.step, r)
        if event.step != self.step or event.lineage != self.lineage:
            self.wrong_lineage.append(event.step)
        self.steps.append(Step(self.step, r, self.lineage))

    def _repeat(self, epoch: int, start: int, end: int) -> None:
        inside = self.committed[epoch]
        for low, high in inside.overlaps(start, end):
            if len(self.repeated) < RANGES_LISTED_MAX:
                self.repeated.append((epoch, low, high))
        for low, high in inside.gaps(start, end):
            inside.add(low, high)

    def _checkpoint(self, step: int) -> None:
        """What the model of this step contains: all that is committed but the steps after it."""
        if step not in self.checkpoints:
            inside, after = {epoch: s.copy() for epoch, s in self.committed.items()}, self.lineage
            for number, r, before in reversed(self.steps):
                if number <= step:
                    after = before
                    break
                for i in range(0, len(r), 4):
                    inside[r[i + 1]].remove(r[i + 2], r[i + 2] + r[i + 3])
            self.checkpoints[step] = Model(after, inside)
        for old in sorted(self.checkpoints)[:-CHECKPOINTS_MAX]:
            del self.checkpoints[old]

    def _roll_back(self, step: int) -> None:
        self.rolled_back += self.step - step
        if step == 0:  # the model before any step is always kept
            self.checkpoints = _before_any()
        model = self.checkpoints.get(step)
        if model is None:
            raise LogTampered("The step that the log rolls back to", sorted(self.checkpoints), step)
        self.committed = {epoch: s.copy() for epoch, s in model.inside.items()}
        self.checkpoints = {s: c for s, c in self.checkpoints.items() if s <= step}
        while self.steps and self.steps[-1].step > step:
            self.steps.pop()
        self.step, self.lineage = step, model.lineage

    def missing(self) -> list[tuple[int, int, int]]:
        """(epoch, start, end) of positions that are neither committed nor quarantined."""
        out: list[tuple[int, int, int]] = []
        for epoch in range(self.spec.epochs):
            inside = self.committed.get(epoch, IntervalSet())
            apart = self.quarantined.get(epoch, IntervalSet())
            for start, end in inside.gaps(0, self.spec.samples):
                out += ((epoch, low, high) for low, high in apart.gaps(start, end))
                if len(out) >= RANGES_LISTED_MAX:
                    return out[:RANGES_LISTED_MAX]
        return out


def _filled(sets: dict[int, IntervalSet]) -> dict[int, tuple[tuple[int, int], ...]]:
    return {number: tuple(inside) for number, inside in sets.items() if inside}
