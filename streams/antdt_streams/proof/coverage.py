"""Coverage: how often each position of each epoch is in the model, counted from the entries of a log that count.

A projection beside the fold. It adds up what the state asserts event by event: positions, steps and lineage; where a
roll-back takes the model back to is taken from the state, which must not have gained a position by it. The opinion that
shares no code with any of this is the stand-alone verifier's. Knows neither the hash chain nor what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from antdt_schemas import batches, lineage, records
from antdt_schemas.batches import Cursor, Layout, Layouts, Piece, layout_of

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

    voids: offsets of void entries. rolled_back: steps that were undone. Memory does not grow with the steps. Of steps
    of a fixed size: `holes`, `layouts`, where the next one begins (`cursor`), where the last one of each epoch `ends`.
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
    layouts: Layouts | None = None
    cursor: Cursor = field(default_factory=Cursor)
    ends: dict[int, int] = field(default_factory=dict)
    stop: records.Stopped | None = None
    added: int = 0  # positions that an epoch has by now beside those of Genesis
    grows: bool = False  # a topic to which more may be added
    vacant: Sets = field(default_factory=dict)  # where a topic has no record, as was found, whatever became of it

    # -- what was read

    def on_entry(self, read: Read) -> None:
        """Count one entry; of one that the state refuses, only what is wrong with it."""
        if isinstance(read.body, records.Genesis) and read.verdict is Verdict.GENESIS:
            spec = read.body.spec
            if spec.batches:
                self.holes, self.layouts = Holes(spec.epochs), Layouts(layout_of(spec))
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
        elif isinstance(
            event, records.Leased | records.Settled
        ):  # a group that leases nothing settles at its first step
            self.first_lease_ms = now_ms if self.first_lease_ms is None else self.first_lease_ms
        elif isinstance(event, records.RolledBack):
            self.rolled_back += self.step - event.step
            self.step = event.step
        elif isinstance(event, records.SetAside) or (isinstance(event, records.Returned) and event.quarantined):
            self.quarantined.setdefault(event.epoch, IntervalSet()).add(event.start, event.start + event.length)
        elif isinstance(event, records.Excluded) and self.holes is not None:
            self._exclude(self.holes, event)
        elif isinstance(event, records.Lifted) and self.holes is not None:
            self.holes = self.holes.lift(Piece(event.epoch, event.start, event.length))
            self.quarantined[event.epoch].remove(event.start, event.start + event.length)
        elif isinstance(event, records.Resized) and self.layouts is not None:
            self.layouts = self.layouts.resized(event.generation, event.batch_size)
        elif isinstance(event, records.Stopped):
            self.stop = event
        elif isinstance(event, records.Readmitted):
            self.quarantined[event.epoch].remove(event.start, event.start + event.length)
            if self.holes is not None:
                self.holes = self.holes.append(Piece(event.epoch, event.start, event.length))
        else:
            self._enter_rarer(event)

    def _enter_rarer(self, event: records.Event) -> None:
        """What a broker lost or moved, and what is found in a topic."""
        if isinstance(event, records.Regressed):
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
        if self.layouts is not None:
            executed, epoch, start, length = event.ranges
            self.cursor, self.ends[epoch] = self.layouts.of(executed).behind(epoch, start, length), start + length
        self.lineage = lineage.next_lineage(self.lineage, self.step, event.ranges)
        # Of steps that are reported together the last one has a lineage, which is wrong if that of any of them is.
        if event.step != self.step or event.lineage not in (self.lineage, b""):
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
        if isinstance(state.shards, Batches):
            self.cursor, self.ends = state.shards.cursor, _ends(state.shards)
        if self.holes is not None:  # a sample that was in the model, and is excluded by now
            for epoch, apart in _sets(state)[1].items():
                mine = self.quarantined.setdefault(epoch, IntervalSet())
                for start, end in apart:
                    for low, high in mine.gaps(start, end):
                        mine.add(low, high)

    def _accuse(self, body: records.Cycle) -> None:
        """Nothing of such an entry is in the model. What it says behind a roll-back is not looked at."""
        sets = _copied(self.committed), _copied(self.quarantined)
        trial = replace(self, committed=sets[0], quarantined=sets[1], ends=dict(self.ends))
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
        """Positions that are neither committed nor quarantined, and meant to be trained."""
        gaps = (Piece(epoch, start, end - start) for epoch, start, end in self._gaps(self._meant(spec)))
        return [(p.epoch, p.start, p.start + p.length) for p in batches.without(gaps, self._rest_of_tail())]

    def not_trained(self, spec: records.JobSpec) -> tuple[list[Range], int]:
        """Positions that are not meant to be trained, as the job ends behind a step, and how many these are: the rest
        of the epoch that it reaches; and all others of the job, where it was finished early, with what was readmitted.
        """
        if self.layouts is None:
            every = ((epoch, 0, spec.samples + self.added) for epoch in range(spec.epochs))
            left = self._gaps(every) if self.stop is not None and self.step >= self.stop.step else []
            return left, sum(end - start for _, start, end in left)
        cursor, made = self._end_of_epochs()
        found: Sets = {}
        if self.stop is not None:
            ahead = [piece for piece, _ in self.layouts.newest.ahead(cursor, made)]
            rest = ((p.epoch, p.start, p.start + p.length) for p in batches.without(self._rest_of_tail(), ahead))
            for epoch, start, end in [*((p.epoch, p.start, p.start + p.length) for p in ahead), *self._gaps(rest)]:
                _join(found, epoch, [(start, end)])
        elif spec.steps:
            ends = {epoch: end for epoch, start, end in self._meant(spec) if end > start}  # a later one is further
            last = max(ends, default=0)
            if 0 < ends.get(last, 0) < spec.samples:
                _join(found, last, [(ends[last], spec.samples)])
        listed = [(epoch, *part) for epoch, parts in sorted(found.items()) for part in parts]
        return listed[:RANGES_LISTED_MAX], sum(parts.total for parts in found.values())

    def _end_of_epochs(self) -> tuple[Cursor, int]:
        """Where the steps that are left end, but for the tail; and how many are made by then."""
        assert self.layouts is not None
        cursor, made = self.cursor, self.step
        for piece, steps in self._to_the_end().ahead(cursor, made):
            cursor, made = self.layouts.newest.behind(*piece), made + steps
        return cursor, made

    def _rest_of_tail(self) -> tuple[Piece, ...]:
        """What was readmitted, and the job is finished before it."""
        if self.stop is None or self.layouts is None or self.holes is None:
            return ()
        (epoch, position), made = self._end_of_epochs()
        steps = max(0, self.stop.step - made)
        begin = (position if epoch == self.holes.epochs else 0) + steps * self.layouts.newest.batch_size
        return batches.cut(self.holes.tail, begin, batches.total(self.holes.tail))

    def _to_the_end(self) -> Layout:
        """That of the steps which are left."""
        assert self.layouts is not None
        layout = self.layouts.newest
        stop = self.stop.step if self.stop is not None else 0
        return replace(layout, steps=min(stop, layout.steps or stop)) if stop else layout

    def _meant(self, spec: records.JobSpec) -> Iterator[Range]:
        """Where samples are meant to be in the model at the end."""
        if self.layouts is None:
            if self.stop is None or self.step < self.stop.step:
                yield from ((epoch, 0, spec.samples + self.added) for epoch in range(spec.epochs))
            return
        yield from ((epoch, 0, end) for epoch, end in sorted(self.ends.items()) if epoch < spec.epochs)
        for (epoch, start, length), _ in self._to_the_end().ahead(self.cursor, self.step):
            yield epoch, start, start + length

    def apart(self, spec: records.JobSpec) -> list[Range]:
        """What is in quarantine and would be meant to be in the model."""
        if self.stop is None and not spec.steps:
            return [(e, a, b) for e, found in sorted(self.quarantined.items()) for a, b in found]
        out: list[Range] = []
        for epoch, low, high in self._meant(spec):
            found = self.quarantined.get(epoch, IntervalSet())
            out += ((epoch, a, b) for a, b in found.overlaps(low, high))
        return out

    def _gaps(self, ranges: Iterator[Range]) -> list[Range]:
        """What of these is neither committed nor in quarantine; RANGES_LISTED_MAX at most."""
        out: list[Range] = []
        for epoch, low, high in ranges:
            inside = self.committed.get(epoch, IntervalSet())
            apart = self.quarantined.get(epoch, IntervalSet())
            for start, end in inside.gaps(low, high):
                out += ((epoch, first, last) for first, last in apart.gaps(start, end))
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
        found = cls(inside, apart, step=state.line.committed, lineage=state.line.lineage, stop=state.stop)
        if isinstance(state.shards, Batches):
            fixed = state.shards
            found.holes, found.layouts = fixed.holes, fixed.layouts
            found.cursor, found.ends = fixed.cursor, _ends(fixed)
        found.added, found.grows = state.shards.samples - state.spec.samples, not state.shards.space.closed
        return found

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


def _ends(shards: Batches) -> dict[int, int]:
    return {number: found.cursor for number, found in shards.epochs.items() if found.cursor}


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
