"""Where the samples of a job with fixed global batches are: before the cursor of the committed steps, or behind it.

Owns the cursor of what is committed, and the evidence that narrows down to a sample. What a step consists of is said by
`antdt_schemas.batches` alone. Rules
  1. A step is told by the generation that executed it and its place: (generation, epoch, start, length), with holes.
     Behind the last epoch, start counts along the tail.
  2. What is left out, and what is appended, is said by `holes`. A position is readmitted only once a committed step has
     left it out.
  3. A change of the batch size counts for what is executed from a generation on. It is not undone by a roll-back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from antdt_schemas import batches, records
from antdt_schemas.batches import Cursor, Layout, Layouts, Piece, layout_of

from antdt_streams.ledger.core.dirty import Dirty
from antdt_streams.ledger.core.holes import Holes
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.samples import Fault, Lease, Samples

EVIDENCE_MAX = 256
SUSPICIONS_MAX = 64


class Change(NamedTuple):
    """What this generation and later ones execute has another batch size. step: the first one of it; 0: none yet."""

    generation: int
    batch_size: int
    step: int
    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class Clue:
    """What a worker had at hand when it failed in a step. deadly: it died. counts: against one position alone, as an
    attempt; else it only narrows down what is suspected.
    """

    incarnation: str
    piece: Piece
    step: int
    key: str
    reason: str
    deadly: bool
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One of these positions is what workers fail of. failures: of whom it was proven, since it is one alone."""

    pieces: tuple[Piece, ...]
    failures: tuple[Clue, ...] = ()

    @property
    def is_proven(self) -> bool:
        """Whether it is one position alone."""
        return batches.total(self.pieces) == 1


class Batches(Samples):
    """`cursor`: behind the last committed step. `made`: how many are. `generation_of_steps`: that of the newest one.
    `changes`: of the batch size, in order; `stated`: what scripts state; `plan`: the newest one that has changed it.
    """

    # What only leased samples have; whoever shows a state finds none.
    leases: ClassVar[Mapping[int, Lease]] = {}
    held: ClassVar[Mapping[str, Mapping[int, None]]] = {}
    next_lease = 1

    def __init__(self, spec: records.JobSpec, dirty: Dirty) -> None:
        super().__init__(spec, dirty)
        self.layouts = Layouts(layout_of(spec))
        self.changes, self.stated, self.plan = tuple[Change, ...](), spec.batch_size, 0
        self.cursor, self.made = Cursor(), 0
        self.generation_of_steps = 0
        self.holes = Holes(spec.epochs)
        self.clues: tuple[Clue, ...] = ()
        self.suspicions: tuple[Suspicion, ...] = ()

    @property
    def layout(self) -> Layout:
        """That of the steps which nobody has begun yet."""
        return self.layouts.newest

    @property
    def total(self) -> int:
        """Of all epochs together, without what is not trained on."""
        layout = self.layout
        if not (self.layouts.changes or layout.steps):
            return layout.epoch_length * self.spec.epochs
        passed = sum(found.cursor for found in self.epochs.values())
        return passed + batches.total(piece for piece, _ in layout.ahead(self.cursor, self.made))

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.place() is None

    def nothing_left_for(self, generation: int) -> bool:
        """Whether no step is left of the size that this generation's have."""
        return self.layouts.of(generation).step(self.cursor, self.holes.tail, self.made) is None

    def resize(self, e: records.Resized) -> None:
        """What is executed from this generation on has another batch size."""
        self.layouts = self.layouts.resized(e.generation, e.batch_size)
        self.changes = (*self.changes, Change(e.generation, e.batch_size, 0, e.author, e.reason))
        self.stated, self.plan = e.stated, max(self.plan, e.plan)
        self._mark()

    def begin(self, step: int) -> None:
        """A generation begins behind this step: what was asked for counts from the next one on."""
        if self.changes and not self.changes[-1].step:
            self.changes = tuple(c if c.step else c._replace(step=step + 1) for c in self.changes)
            self._mark()

    @property
    def blamed(self) -> tuple[Clue, ...]:
        """What is not judged yet."""
        return self.clues

    def _mark(self) -> None:
        self.dirty.others.add(("batches", 0))

    def seal(self, token: int) -> None:
        """An entry has its place in the log: nothing here rests on it."""

    # -- steps

    def follows(self, ranges: tuple[int, ...], generation: int) -> str:
        """Why these are not the next step, reported in this generation; empty where they are."""
        if len(ranges) != 4:
            return f"it has {len(ranges)} numbers, not (generation, epoch, start, length)"
        executed, *place = ranges
        if not self.generation_of_steps <= executed <= generation:
            known = f"between {self.generation_of_steps} and {generation}"
            return f"generation {executed} has executed it, which is not {known}"
        due = self.place(executed)
        return "" if due == tuple(place) else f"it is {tuple(place)}, where {due} is due"

    def place(self, executed: int | None = None) -> tuple[int, int, int] | None:
        """(epoch, start, length) of the next step; None at the end. executed: by this generation, else by the next."""
        layout = self.layout if executed is None else self.layouts.of(executed)
        tail = self.holes.tail if executed is None else self.holes.tail_of(executed)
        step = layout.step(self.cursor, tail, self.made)
        return None if step is None else (*layout.due(self.cursor, self.made), batches.total(step[0]))

    def commit(self, ranges: tuple[int, ...]) -> None:
        """The next step is in the model."""
        assert not self.follows(ranges, ranges[0]), (ranges, self.cursor, self.follows(ranges, ranges[0]))
        executed, epoch, start, length = ranges
        live = self.holes.live(executed, epoch, start, length)
        for piece in live:
            self._add(piece)
        self.pass_over(ranges)
        if epoch < self.spec.epochs:
            self.epoch(epoch).cursor = start + length
        self.dirty.epochs.add(epoch if epoch < self.spec.epochs else 0)
        if self.suspicions:
            self._clear(live)
        self._mark()

    def pass_over(self, ranges: tuple[int, ...]) -> None:
        """The cursor is behind this step, which is the next one."""
        self.generation_of_steps, *place = ranges
        self.cursor, self.made = self.layouts.of(ranges[0]).behind(*place), self.made + 1

    def _add(self, piece: Piece) -> None:
        """In the model: also what was excluded only after a step that has it was executed."""
        epoch = self.epoch(piece.epoch)
        if epoch.quarantined and epoch.quarantined.overlaps(piece.start, piece.start + piece.length):
            for low, high in epoch.quarantined.overlaps(piece.start, piece.start + piece.length):
                self._release(piece.epoch, low, high)
        epoch.committed.add(piece.start, piece.start + piece.length)
        self.committed_total += piece.length
        self.dirty.epochs.add(piece.epoch)

    def undo_all_but(self, inside: Mapping[int, tuple[tuple[int, int], ...]]) -> None:
        """Steps behind a place are undone. inside: that place, as `reached` has it; nothing: the beginning."""
        ((epoch, ((_, position),)),) = inside.items() if inside else ((0, ((0, 0),)),)
        former, self.cursor = self.cursor, Cursor(epoch, position)
        for number, found in self.epochs.items():
            kept = position if number == epoch else 0 if number > epoch else self.layout.samples
            for low, high in found.committed.overlaps(kept, self.layout.samples):
                found.committed.remove(low, high)
            found.cursor = min(found.cursor, kept)
            self.dirty.epochs.add(number)
        if former.epoch == self.spec.epochs:
            begin = position if epoch == self.spec.epochs else 0
            for piece in batches.cut(self.holes.tail, begin, former.position - begin):
                inside_of = self.epoch(piece.epoch).committed
                for low, high in inside_of.overlaps(piece.start, piece.start + piece.length):
                    inside_of.remove(low, high)
        self.committed_total = sum(found.committed.total for found in self.epochs.values())
        self._quarantine_again()
        self._mark()

    def reached(self, ranges: tuple[int, ...]) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
        """The place behind a step as checkpoints keep it: all before it is in their model, or was left out."""
        behind = self.layouts.of(ranges[0]).behind(*ranges[1:])
        return ((behind.epoch, ((0, behind.position),)),)

    # -- what is left out

    def ahead(self) -> tuple[tuple[int, ...], ...]:
        """What a member must know to derive steps from the cursor on: positions that are left out, where the tail's
        are counted along it; the tail; and the suspects. Flat triples, all of them.
        """
        out = self.holes.shown(min(self.cursor.epoch, self.spec.epochs - 1))
        suspects = [piece for suspicion in self.suspicions for piece in suspicion.pieces]
        return tuple(map(batches.flat_of, (out, self.holes.tail, suspects)))

    def exclude(self, e: records.Excluded) -> None:
        """No step from this generation on takes it."""
        piece = Piece(e.epoch, e.start, e.length)
        self.holes = self.holes.exclude(e.generation, piece)
        self.faults[e.epoch, e.start] = Fault(e.length, e.key, e.reason)
        self.dirty.others.add(("fault", (e.epoch, e.start)))
        self._quarantine(piece)
        self._mark()

    def lift(self, e: records.Lifted) -> None:
        """It is taken in its place after all."""
        piece = Piece(e.epoch, e.start, e.length)
        assert self.cursor < (e.epoch, e.start + 1), (e, self.cursor)
        assert not batches.within(self.holes.tail, (piece,)), (e, self.holes.tail)
        self.holes = self.holes.lift(piece)
        self._release(e.epoch, e.start, e.start + e.length)
        self._mark()

    def _quarantine(self, piece: Piece) -> None:
        epoch, end = self.epoch(piece.epoch), piece.start + piece.length
        for low, high in epoch.committed.gaps(piece.start, end):
            for start, stop in epoch.quarantined.gaps(low, high):
                epoch.quarantined.add(start, stop)
                self.quarantined_total += stop - start
        self.dirty.epochs.add(piece.epoch)

    def _quarantine_again(self) -> None:
        """After a roll-back: what was excluded and is neither in the model nor appended since."""
        for number, (_, piece) in enumerate(self.holes.exclusions):
            later = [found.piece for found in self.holes.appended if found.exclusions > number]
            for left in batches.without((piece,), later):
                self._quarantine(left)

    def _release(self, epoch: int, start: int, end: int) -> None:
        """Out of quarantine."""
        self.epoch(epoch).quarantined.remove(start, end)
        self.quarantined_total -= end - start
        for at in [at for at in self.faults if at[0] == epoch and start <= at[1] < end]:
            del self.faults[at]
            self.dirty.others.add(("fault", at))
        self.dirty.epochs.add(epoch)

    def readmittable(self) -> Iterator[Piece]:
        """What is in quarantine and was left out by a committed step; what is still ahead stays there until then."""
        for number in sorted(self.epochs):
            for start, end in list(self.epochs[number].quarantined):
                passed = min(end, self.epochs[number].cursor)
                if start < passed and not self._is_ahead_in_tail(number, start):
                    yield Piece(number, start, passed - start)

    def _is_ahead_in_tail(self, epoch: int, start: int) -> bool:
        """Whether the position was appended, excluded again, and that place is not passed."""
        return bool(batches.within((Piece(epoch, start, 1),), _merged(self._rest_of_tail())))

    def readmit(self, e: records.Readmitted, since: int = 0) -> None:
        """What is in quarantine is appended to the tail, to be tried again. since: the first generation that knows."""
        self._release(e.epoch, e.start, e.start + e.length)
        self.holes = self.holes.append(Piece(e.epoch, e.start, e.length), since)
        self._mark()

    # -- evidence

    def blame(self, e: records.Blamed, deadly: bool, *, counts: bool = True) -> None:
        """There is evidence, to be judged at the next grant."""
        clue = Clue(e.incarnation, Piece(e.epoch, e.start, e.length), e.step, e.key, e.reason, deadly, counts)
        self.clues = (*self.clues, clue)[-EVIDENCE_MAX:]
        self._mark()

    def pardon(self, dead: set[str]) -> None:
        """These did not die alone: nothing follows from it."""
        self.clues = tuple(c for c in self.clues if not (c.deadly and c.incarnation in dead))
        self._mark()

    def doubt(self) -> None:
        """Nobody has survived: what the dead had at hand is suspected, and no death counts as an attempt."""
        self.clues = tuple(replace(c, counts=False) if c.deadly else c for c in self.clues)
        self._mark()

    def judged(self, source_step: int) -> tuple[Suspicion, ...]:
        """What is suspected once the evidence is taken in. What a worker had at hand, all of it together, is suspected
        only if the step it was in is not in the model that all go on with: the smallest suspicion that it meets becomes
        what both have; where it meets none, there is a second one.
        """
        found = list(self.suspicions)
        for clue, pieces in self._at_hand(source_step):
            met = [s for s in found if batches.within(s.pieces, pieces)]
            if not met:
                found.append(self._counted(Suspicion(pieces), clue, pieces))
                continue
            smallest = min(met, key=lambda s: batches.total(s.pieces))
            narrower = replace(smallest, pieces=batches.within(smallest.pieces, pieces))
            found[found.index(smallest)] = self._counted(narrower, clue, pieces)
        return tuple(found[-SUSPICIONS_MAX:])

    def _at_hand(self, source_step: int) -> Iterator[tuple[Clue, tuple[Piece, ...]]]:
        """What each worker had that failed in a step behind this one, with one clue of it."""
        together: dict[tuple[str, int], list[Clue]] = {}
        for clue in self.clues:
            if clue.step > source_step:
                together.setdefault((clue.incarnation, clue.step), []).append(clue)
        for clues in together.values():
            pieces: tuple[Piece, ...] = ()
            for clue in clues:
                pieces += batches.without((clue.piece,), pieces)
            yield clues[0], pieces

    def _counted(self, suspicion: Suspicion, clue: Clue, pieces: tuple[Piece, ...]) -> Suspicion:
        """With this failure, if it was of one position alone."""
        alone = suspicion.is_proven and batches.total(pieces) == 1 and clue.counts
        return replace(suspicion, failures=(*suspicion.failures, clue)) if alone else suspicion

    def exclusions_due(self, generation: int, source_step: int) -> Iterator[records.Excluded]:
        """What has failed alone, often enough, is left out from this generation on."""
        for suspicion in self.judged(source_step):
            if len(suspicion.failures) >= self.spec.max_attempts:
                (piece,), last = suspicion.pieces, suspicion.failures[-1]
                yield records.Excluded(generation, *piece, last.key, last.reason)

    def judge(self, source_step: int, generation: int) -> None:
        """A generation is granted: the evidence is taken in. What it leaves out is suspected no more."""
        if self.clues or self.suspicions:
            out = [e.piece for e in self.holes.exclusions if e.generation == generation]
            kept = (replace(s, pieces=batches.without(s.pieces, out)) for s in self.judged(source_step))
            self.suspicions, self.clues = tuple(s for s in kept if s.pieces), ()
            self._mark()

    def _clear(self, live: tuple[Piece, ...]) -> None:
        """What is committed is above suspicion."""
        kept = (replace(s, pieces=batches.without(s.pieces, live)) for s in self.suspicions)
        self.suspicions = tuple(s for s in kept if s.pieces)

    # -- invariants

    def check(self) -> None:
        """Every position before the cursor is in the model or in quarantine, and in one of them only."""
        last = self.spec.epochs
        for number, found in self.epochs.items():
            for start, end in found.quarantined:
                assert not found.committed.overlaps(start, end), (number, start, end)
            passed = found.cursor
            assert passed == self.cursor.position if number == self.cursor.epoch else passed >= 0, (number, self.cursor)
            rest = self._rest_of_tail() if self.holes.appended else ()
            for low, high in found.committed.gaps(0, passed):
                left = IntervalSet(found.quarantined.overlaps(low, high))
                for start, end in left.gaps(low, high):
                    gap = Piece(number, start, end - start)
                    assert not batches.without((gap,), rest), (gap, self.cursor)
        assert self.cursor.epoch <= last
        super().check()

    def _rest_of_tail(self) -> tuple[Piece, ...]:
        passed = self.cursor.position if self.cursor.epoch == self.spec.epochs else 0
        return batches.cut(self.holes.tail, passed, batches.total(self.holes.tail) - passed)


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """The same positions in pieces that do not overlap."""
    found: list[Piece] = []
    for piece in sorted(pieces):
        found += batches.without((piece,), found)
    return found
