"""Coverage: how often each position of each epoch is in the model, counted from the entries of a log that count.

A projection beside the fold. It adds up what the state asserts event by event: positions, steps and lineage; where a
roll-back takes the model back to is taken from the state, which must not have gained a position by it. The opinion that
shares no code with any of this is the stand-alone verifier's. Knows neither the hash chain nor what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from antdt_schemas import lineage, records
from antdt_schemas.batches import Piece, layout_of

from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.fold import Verdict
from antdt_streams.ledger.core.holes import Holes
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.walker import Read, Run

RANGES_LISTED_MAX = 1000

Range = tuple[int, int, int]  # epoch, start, end
Sets = dict[int, IntervalSet]


@dataclass(slots=True)
class Coverage:
    """repeated, wrong_lineage: what an entry says that the state refuses as well; the log then breaks there.

    voids: offsets of void entries. rolled_back: steps that were undone. Memory does not grow with the steps.
    """

    committed: Sets = field(default_factory=dict)
    quarantined: Sets = field(default_factory=dict)
    repeated: list[Range] = field(default_factory=list)
    wrong_lineage: list[int] = field(default_factory=list)
    voids: list[int] = field(default_factory=list)
    step: int = 0
    lineage: bytes = lineage.ROOT
    rolled_back: int = 0
    first_lease_ms: int | None = None
    last_commit_ms: int | None = None
    losses: list[records.Regressed] = field(default_factory=list)
    moves: list[records.RequestsMoved] = field(default_factory=list)
    holes: Holes | None = None  # where steps have a fixed size
    added: int = 0  # positions that an epoch has by now beside those of Genesis
    grows: bool = False  # a topic to which more may be added
    vacant: Sets = field(default_factory=dict)  # where a topic has no record, as was found, whatever became of it

    # -- what was read

    def on_entry(self, read: Read) -> None:
        """Count one entry; of one that the state refuses, only what is wrong with it."""
        if isinstance(read.body, records.Genesis) and read.verdict is Verdict.GENESIS:
            spec = read.body.spec
            self.holes = Holes(spec.epochs) if spec.batches else None
            self.grows = spec.growing
        if read.verdict is Verdict.VOID:
            self.voids.append(read.offset)
        elif read.verdict is Verdict.REFUSED and isinstance(read.body, records.Cycle):
            self._accuse(read.body)
        elif read.verdict is Verdict.COUNTED:
            assert isinstance(read.body, records.Cycle) and read.state is not None
            for event in read.events:
                self._enter(event, read.body.now_ms)
            if any(isinstance(event, records.RolledBack) for event in read.events):
                self._go_back(read.state)

    def on_run(self, run: Run) -> None:
        """Count the entries of a run."""
        if self.first_lease_ms is None:
            self.first_lease_ms = run.first_lease_ms
        if not run.steps:
            return
        for epoch, parts in run.unions.items():
            for start, end in parts:
                self._cover(epoch, start, end)
        right = run.lineages_after(self.lineage)
        steps = range(self.step + 1, self.step + 1 + run.steps)
        self.wrong_lineage += [step for step, a, b in zip(steps, right, run.lineages, strict=True) if a != b]
        self.step, self.lineage, self.last_commit_ms = steps[-1], right[-1], run.last_commit_ms

    def _enter(self, event: records.Event, now_ms: int) -> None:
        if isinstance(event, records.Committed):
            for epoch, start, end in self._ranges(event):
                self._cover(epoch, start, end)
            self._advance(event)
            self.first_lease_ms = now_ms if self.first_lease_ms is None else self.first_lease_ms
            self.last_commit_ms = now_ms
        elif isinstance(event, records.Leased):
            self.first_lease_ms = now_ms if self.first_lease_ms is None else self.first_lease_ms
        elif isinstance(event, records.RolledBack):
            self.rolled_back += self.step - event.step
            self.step = event.step
        elif isinstance(event, records.SetAside) or (isinstance(event, records.Returned) and event.quarantined):
            self.quarantined.setdefault(event.epoch, IntervalSet()).add(event.start, event.start + event.length)
        elif isinstance(event, records.Excluded) and self.holes is not None:
            self._exclude(self.holes, event)
        elif isinstance(event, records.Readmitted):
            self.quarantined[event.epoch].remove(event.start, event.start + event.length)
            if self.holes is not None:
                self.holes = self.holes.append(Piece(event.epoch, event.start, event.length))
        elif isinstance(event, records.Regressed):
            self.losses.append(event)
        elif isinstance(event, records.RequestsMoved):
            self.moves.append(event)
        elif isinstance(event, records.Vacant):
            places = iter(event.places)
            _join(self.vacant, event.epoch, ((start, start + n) for start, n in zip(places, places, strict=True)))
        elif isinstance(event, records.Extended):
            ends, begins = event.blocks[2::3], event.blocks[1::3]
            self.added, self.grows = self.added + sum(ends) - sum(begins), not event.closed

    def _exclude(self, holes: Holes, event: records.Excluded) -> None:
        piece = Piece(event.epoch, event.start, event.length)
        self.holes = holes.exclude(event.generation, piece)
        inside = self.committed.get(event.epoch, IntervalSet())
        apart = self.quarantined.setdefault(event.epoch, IntervalSet())
        for low, high in inside.gaps(event.start, event.start + event.length):
            for start, end in apart.gaps(low, high):
                apart.add(start, end)

    def _ranges(self, event: records.Committed) -> Iterator[Range]:
        """The samples of a step."""
        if self.holes is None:
            yield from _ranges(event)
            return
        for epoch, start, length in self.holes.live(*event.ranges):
            apart = self.quarantined.get(epoch, IntervalSet())
            for low, high in apart.overlaps(start, start + length):
                apart.remove(low, high)  # excluded only after the step was executed
            yield epoch, start, start + length

    def _cover(self, epoch: int, start: int, end: int) -> None:
        inside = self.committed.get(epoch)
        if inside is None:
            inside = self.committed[epoch] = IntervalSet()
        if not inside.try_add(start, end):
            self.repeated += ((epoch, low, high) for low, high in inside.overlaps(start, end))
            del self.repeated[RANGES_LISTED_MAX:]
            for low, high in inside.gaps(start, end):
                inside.add(low, high)

    def _advance(self, event: records.Committed) -> None:
        self.step += 1
        self.lineage = lineage.next_lineage(self.lineage, self.step, event.ranges)
        if (event.step, event.lineage) != (self.step, self.lineage):
            self.wrong_lineage.append(event.step)

    def _go_back(self, state: State) -> None:
        """After an entry with a roll-back: what the state still has. What was never committed stays out, so that the
        two disagree for ever.
        """
        left: Sets = {}
        for epoch, inside in _sets(state)[0].items():
            before = self.committed.get(epoch, IntervalSet())
            left[epoch] = IntervalSet(part for start, end in inside for part in before.overlaps(start, end))
        self.committed, self.lineage = left, state.line.lineage
        if self.holes is not None:  # a sample that was in the model, and is excluded by now
            for epoch, apart in _sets(state)[1].items():
                mine = self.quarantined.setdefault(epoch, IntervalSet())
                for start, end in apart:
                    for low, high in mine.gaps(start, end):
                        mine.add(low, high)

    def _accuse(self, body: records.Cycle) -> None:
        """Nothing of such an entry is in the model. What it says behind a roll-back is not looked at."""
        trial = replace(self, committed=_copied(self.committed), quarantined=_copied(self.quarantined))
        for event in body.events:
            if isinstance(event, records.RolledBack):
                break
            if isinstance(event, records.Committed) and _whole(event):
                for epoch, start, end in trial._ranges(event):
                    trial._cover(epoch, start, end)
                trial._advance(event)
        self.repeated, self.wrong_lineage = trial.repeated, trial.wrong_lineage

    # -- against the state

    def agrees(self, state: State) -> bool:
        """Whether the state has the same samples in the model and in quarantine, at the same step and lineage."""
        same = (self.step, self.lineage) == (state.line.committed, state.line.lineage)
        return same and _filled(self.committed, self.quarantined) == _filled(*_sets(state))

    def missing(self, spec: records.JobSpec) -> list[Range]:
        """Positions that are neither committed nor quarantined."""
        out: list[Range] = []
        for epoch in range(spec.epochs):
            inside = self.committed.get(epoch, IntervalSet())
            apart = self.quarantined.get(epoch, IntervalSet())
            for start, end in inside.gaps(0, trained_of_an_epoch(spec) + self.added):
                out += ((epoch, low, high) for low, high in apart.gaps(start, end))
                if len(out) >= RANGES_LISTED_MAX:
                    return out[:RANGES_LISTED_MAX]
        return out

    @property
    def vacancies(self) -> int:
        """How many of the committed positions have no record."""
        sets = ((apart, self.committed.get(epoch, IntervalSet())) for epoch, apart in self.vacant.items())
        return sum(high - low for apart, inside in sets for a, b in apart for low, high in inside.overlaps(a, b))

    # -- in parts

    @classmethod
    def opened(cls, state: State) -> Coverage:
        """That of the part of a log that begins with this state."""
        inside, apart = map(_copied, _sets(state))
        holes = state.shards.holes if isinstance(state.shards, Batches) else None
        out = cls(inside, apart, step=state.line.committed, lineage=state.line.lineage, holes=holes)
        out.added, out.grows = state.shards.samples - state.spec.samples, not state.shards.space.closed
        return out

    def closed(self) -> Coverage:
        """What it adds to that of the parts behind: all but where the samples are."""
        return replace(self, committed={}, quarantined={})

    def follow(self, before: Coverage) -> None:
        """Take in what `closed` left of the part before."""
        self.repeated = (before.repeated + self.repeated)[:RANGES_LISTED_MAX]
        self.wrong_lineage = before.wrong_lineage + self.wrong_lineage
        self.voids = before.voids + self.voids
        self.losses = before.losses + self.losses
        self.moves = before.moves + self.moves
        self.rolled_back += before.rolled_back
        for epoch, apart in before.vacant.items():
            _join(self.vacant, epoch, apart)
        if before.first_lease_ms is not None:
            self.first_lease_ms = before.first_lease_ms
        if self.last_commit_ms is None:
            self.last_commit_ms = before.last_commit_ms


def trained_of_an_epoch(spec: records.JobSpec) -> int:
    """How many positions of an epoch are trained on: its first ones."""
    return layout_of(spec).epoch_length


def _sets(state: State) -> tuple[Sets, Sets]:
    """What is committed and what is in quarantine."""
    epochs = state.shards.epochs.items()
    return {n: epoch.committed for n, epoch in epochs}, {n: epoch.quarantined for n, epoch in epochs}


def _join(sets: Sets, epoch: int, parts: Iterable[tuple[int, int]]) -> None:
    """With these: what was found there before, by somebody else or in another generation, is found again."""
    inside = sets.setdefault(epoch, IntervalSet())
    for start, end in parts:
        for low, high in inside.gaps(start, end):
            inside.add(low, high)


def _copied(sets: Sets) -> Sets:
    return {epoch: inside.copy() for epoch, inside in sets.items()}


def _filled(*kinds: Sets) -> list[dict[int, tuple[tuple[int, int], ...]]]:
    return [{n: tuple(inside) for n, inside in sets.items() if inside} for sets in kinds]


def _ranges(event: records.Committed) -> Iterator[Range]:
    values = iter(event.ranges)
    for _, epoch, start, length in zip(values, values, values, values, strict=True):
        yield epoch, start, start + length


def _whole(event: records.Committed) -> bool:
    """Whether its ranges are ranges at all."""
    return len(event.ranges) % 4 == 0 and all(length > 0 for length in event.ranges[3::4])
