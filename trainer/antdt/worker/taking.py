"""Which samples a member takes in a step: those at the front of what it holds on lease, or its part of a step of a
fixed size.

Owns the data path of a life. Must not know what becomes of the samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol
from zlib import crc32

from antdt_schemas import batches, records
from antdt_schemas.batches import Cursor, Layout, Piece, layout_of
from antdt_schemas.ranges import Range
from antdt_schemas.strategies import period_of, unit_of

from antdt.strategies.base import Outcome, Place
from antdt.worker.instructions import Wait
from antdt.worker.plans import Split
from antdt.worker.session import Phase, Session

IDLE_ROUND_S = 0.02
FIRST_LEASE_S = 1.0


class Taken(NamedTuple):
    """What a member takes. reference: what all members together are to take, the same number on each. place: of the
    step, where it has a fixed size. units: the ranges cut into micro-batches, where they must be computed apart. empty:
    positions of the ranges at which there is no sample.
    """

    ranges: Sequence[Range]
    reference: int
    place: Place | None = None
    units: Sequence[Sequence[Range]] = ()
    empty: int = 0


class Taking(Protocol):
    """whole: a step has all of its samples, or it is none; so whoever leaves behind a step does its part of it."""

    whole: ClassVar[bool]

    def begin(self, grant: records.Grant) -> None:
        """A generation begins."""

    def wait(self, session: Session) -> Generator[Wait, bool, None]:
        """A little, where there is nothing to take, and everybody else is idle, too."""

    def take(
        self, session: Session, at: Cursor, made: int, split: Split, *, idle: bool, undivided: bool = False
    ) -> Taken:
        """This member's part of the next step of a model that is at this place, with so many made. idle: it takes
        none. undivided: in one piece, whatever is suspected, and all parts in order; the same on all members.
        """

    def ahead(self, session: Session, samples: int) -> list[tuple[int, int, int]]:
        """(epoch, start, length) of what it will take next, of so many samples, behind what it took last."""

    def made(self, session: Session, outcome: Outcome) -> None:
        """A round is complete."""


class Leased:
    """Samples are leased by each member for itself, ahead of their use; a step takes what there is."""

    whole: ClassVar[bool] = False

    def __init__(self, ranges_max: int, period: int) -> None:
        """period: steps of the optimizer in one of the job."""
        self._ranges_max, self._period, self._previous_total = ranges_max, period, 1

    def begin(self, grant: records.Grant) -> None:
        """A generation begins."""
        self._previous_total = 1

    def wait(self, session: Session) -> Generator[Wait, bool, None]:
        """A little, where there is nothing to take, and everybody else is idle, too."""
        leases = session.leases
        if leases.takeable or session.phase is not Phase.MEMBER:
            return
        patience_s = IDLE_ROUND_S if self._previous_total == 0 else 0.0
        if not leases.answered:
            patience_s = FIRST_LEASE_S
        if patience_s:
            yield Wait(lambda: leases.takeable > 0 or session.phase is not Phase.MEMBER, patience_s)

    def take(
        self, session: Session, at: Cursor, made: int, split: Split, *, idle: bool, undivided: bool = False
    ) -> Taken:
        """At most what the plan gives this member."""
        reference = self._period * split.batch_size
        if idle:
            return Taken((), reference)
        # Who is to take no samples takes one: what it holds on lease would be held for ever.
        session.leases.batch_size = batch_size = self._period * max(1, split.shares[session.rank].batch_size)
        ranges = [Range(*r) for r in session.leases.take(batch_size, self._ranges_max)]
        return Taken(ranges, reference, empty=session.leases.empty)

    def ahead(self, session: Session, samples: int) -> list[tuple[int, int, int]]:
        """What is held, from the front."""
        return session.leases.ahead(samples)

    def made(self, session: Session, outcome: Outcome) -> None:
        """A round is complete."""
        self._previous_total = outcome.total
        if outcome.applied:
            session.leases.observe(outcome.total, outcome.rows[0].reference)


@dataclass(frozen=True, slots=True)
class _Granted:
    """What a generation's steps are derived from, beside the place of the model. stop_step: the last one, or 0."""

    generation: int
    layout: Layout
    excluded: tuple[Piece, ...] = ()
    tail: tuple[Piece, ...] = ()
    suspects: tuple[Piece, ...] = ()
    stop_step: int = 0

    def step(self, at: Cursor, made: int) -> tuple[tuple[Piece, ...], Cursor] | None:
        """The next one, which is due at this place; None at the end."""
        if self.stop_step and made >= self.stop_step:
            return None
        return self.layout.step_due(at, self.tail)


class _Cut(NamedTuple):
    """How a step is cut into parts."""

    sizes: list[int]
    mark: int


class Stepped:
    """Steps of a fixed size: what one consists of follows from the place of the model, and who takes which part from
    the plan in it and the members.
    """

    whole: ClassVar[bool] = True

    def __init__(self, spec: records.JobSpec) -> None:
        self.layout = layout_of(spec)
        self._unit = unit_of(spec.strategy)
        self._least = -(-spec.local_batch_min // self._unit) if self._unit else spec.local_batch_min
        self._granted = _Granted(0, self.layout)
        self._behind, self._made, self._idle, self._undivided = Cursor(), 0, False, False
        self._split: Split | None = None  # of the step before; what follows from it is kept, by the size of a step
        self._shares, self._cuts = list[int](), dict[int, _Cut]()

    def begin(self, grant: records.Grant) -> None:
        """A generation begins: what it leaves out, and its batch size, hold for all of its steps."""
        if grant.batch_size:
            self.layout = replace(self.layout, batch_size=grant.batch_size)
        excluded, tail, suspects = map(batches.pieces_of, (grant.excluded, grant.tail, grant.suspects))
        self._granted = _Granted(grant.generation, self.layout, excluded, tail, suspects, grant.stop_step)
        self._idle, self._split = False, None

    def wait(self, session: Session) -> Generator[Wait, bool, None]:
        """At the end, where all that is left to come is that it is known to be."""
        if self._idle and session.phase is Phase.MEMBER:
            yield Wait(lambda: session.phase is not Phase.MEMBER, IDLE_ROUND_S)

    def take(
        self, session: Session, at: Cursor, made: int, split: Split, *, idle: bool, undivided: bool = False
    ) -> Taken:
        """Its part of the next step; everybody knows of the whole step, whatever it takes."""
        at = self.layout.due(at, made)
        step = self._granted.step(at, made)
        self._idle, self._undivided = step is None, undivided
        if step is None:
            return Taken((), 1)
        (live, self._behind), self._made = step, made + 1
        if split is not self._split:
            self._split, self._shares, self._cuts = split, [share.batch_size for share in split.shares], {}
            # What a script does once, it does in the first member's loop: that one always has something to take.
            self._shares[0] = max(1, self._shares[0])
        size = length = batches.total(live)
        if self._granted.excluded:
            live = self._live(at, length)
            size = batches.total(live)
        cut = self._cut(length if self._unit else size)
        where = self._granted.generation, 0, at.epoch, at.position, length
        # In the tail it is the last epoch, where that is known; else the one that the model is at (Once.begins).
        epoch = at.epoch if at.epoch < self.layout.epochs else 0 if self.layout.steps else at.epoch - 1
        place = Place(where, self._behind, size, cut.mark, epoch, -self._shift() % len(cut.sizes))
        mine, units = self._part(at, length, live, size, session.rank) if not idle else ((), [])
        if self._granted.suspects and not (self._unit or undivided):  # in parts a unit would give other bits
            units = self._units(mine)
        return Taken(self._ranges(mine), max(1, size), place, [self._ranges(unit) for unit in units])

    def ahead(self, session: Session, samples: int) -> list[tuple[int, int, int]]:
        """Its parts of the next steps, if plan and members stay the same."""
        found, at, made, missing = list[tuple[int, int, int]](), self._behind, self._made, samples
        while missing > 0 and not self._idle:
            at = self.layout.due(at, made)
            step = self._granted.step(at, made)
            if step is None:
                break
            length = batches.total(step[0])
            live = self._live(at, length)
            mine, _ = self._part(at, length, live, batches.total(live), session.rank)
            found += mine
            missing -= max(1, batches.total(mine))
            at, made = step[1], made + 1
        return found

    def made(self, session: Session, outcome: Outcome) -> None:
        """A round is complete."""

    def _live(self, at: Cursor, length: int) -> tuple[Piece, ...]:
        """The samples of the step at this place."""
        return self._samples(batches.without((Piece(at.epoch, at.position, length),), self._granted.excluded))

    def _samples(self, places: tuple[Piece, ...]) -> tuple[Piece, ...]:
        """At these places of the order; behind the last epoch, of the tail."""
        if not places or places[0].epoch < self.layout.epochs:
            return places
        return tuple(piece for part in places for piece in batches.cut(self._granted.tail, part.start, part.length))

    def _shift(self) -> int:
        """While something is suspected, the parts go round: a machine that fails at whatever it gets must not make one
        sample look guilty.
        """
        watched = self._granted.suspects and not self._unit
        return self._granted.generation % len(self._shares) if watched else 0

    def _cut(self, size: int) -> _Cut:
        """Sizes of all parts of a step of so many samples, in the order of these; and their mark."""
        cut = self._cuts.get(size)
        if cut is None:
            world, shift = len(self._shares), self._shift()
            unit = self._unit or 1
            weights = [self._shares[(part - shift) % world] for part in range(world)]
            spares = self._split is not None and self._split.spares
            counts = batches.split(-(-size // unit), weights, self._least, spares=spares)
            sizes = [unit * count for count in counts]
            last = max((part for part in range(world) if sizes[part]), default=0)
            sizes[last] -= sum(sizes) - size  # the last unit of a step may be smaller
            cut = self._cuts[size] = _Cut(sizes, crc32(repr(sizes).encode()))
        return cut

    def _part(
        self, at: Cursor, length: int, live: Sequence[Piece], size: int, rank: int
    ) -> tuple[tuple[Piece, ...], list[Sequence[Piece]]]:
        """That of this member, of so many samples that are live; and the units that it is made of, which keep their
        places whatever is left out.
        """
        if not self._unit:
            if self._granted.suspects and not self._undivided:
                # One behind the other, so that two of them do not end two members in one step: who dies beside others
                # speaks against nothing.
                rest = batches.without(live, self._granted.suspects)
                live = (*batches.without(live, rest), *rest)
            sizes = self._cut(size).sizes
            return tuple(live) if len(sizes) == 1 else batches.share(
                live, sizes, (rank + self._shift()) % len(sizes)
            ), []
        sizes = self._cut(length).sizes
        index = (rank + self._shift()) % len(sizes)
        place = (Piece(at.epoch, at.position, length),)
        begin, end = sum(sizes[:index]), sum(sizes[: index + 1])
        cut = (batches.cut(place, start, min(self._unit, end - start)) for start in range(begin, end, self._unit))
        units = [self._samples(batches.without(one, self._granted.excluded)) for one in cut]
        return tuple(piece for unit in units for piece in unit), [unit for unit in units if unit]

    def _units(self, mine: Sequence[Piece]) -> list[Sequence[Piece]]:
        """Suspects apart from the others, and from each other: which unit fails tells more than that the part does."""
        suspects = batches.within(mine, self._granted.suspects)
        if not suspects:
            return []
        others = batches.without(mine, suspects)
        units: list[Sequence[Piece]] = [others] if others else []
        for piece in suspects:  # each by itself: cut together, one of several might stay whole for ever
            sizes = batches.split(piece.length, [1] * min(piece.length, max(2, len(self._shares))))
            units += [batches.share((piece,), sizes, index) for index in range(len(sizes))]
        return units

    def _ranges(self, pieces: Sequence[Piece]) -> list[Range]:
        generation = self._granted.generation
        return [Range(generation, 0, epoch, start, length) for epoch, start, length in pieces]


def taking_of(spec: records.JobSpec, ranges_max: int) -> Taking:
    """How members of this job take samples."""
    return Stepped(spec) if spec.batches else Leased(ranges_max, period_of(spec.strategy))
