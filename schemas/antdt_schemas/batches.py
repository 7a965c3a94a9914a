"""Fixed global batches: which positions a step consists of, and who computes which of them.

The one arithmetic of the "steps" order: members, a joiner, the ledger and an audit call the same functions, so the log
needs nothing of a step but its place. A step is the next `size` positions of its epoch, whoever takes part; how many
these are follows from the batch size of the generation that executes it. Excluded positions leave a hole: ranges are
over all positions, so that an exclusion shifts nothing behind it. What was excluded and readmitted is appended behind
the last step of the epochs, as the tail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from antdt_schemas.records import JobSpec

EVEN, SMALL, DROP = "even", "small", "drop"
LASTS = (EVEN, SMALL, DROP)


class Piece(NamedTuple):
    """`length` positions of an epoch from `start`."""

    epoch: int
    start: int
    length: int


class Cursor(NamedTuple):
    """The next position of a model. In the tail `epoch` is the number of epochs, and `position` counts along it."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What a job fixes for ever, but for its batch size (see `Layouts`). last: what becomes of the samples of an epoch
    that fill no batch: all steps of the epoch are a little smaller ("even", sizes differ by at most 1), the last one is
    ("small"), or they are left out of every epoch ("drop", the last positions of its order: as many as do not fill the
    batch of the step that would be next). steps: the job ends behind so many, and `epochs` are no fewer than they
    reach; 0: it ends behind its epochs.
    """

    samples: int
    epochs: int
    batch_size: int
    last: str = EVEN
    steps: int = 0

    @property
    def epoch_length(self) -> int:
        """Positions of an epoch that are trained on, where the batch size is this one all the time."""
        return self.samples - (self.samples % self.batch_size if self.last == DROP else 0)

    @property
    def steps_per_epoch(self) -> int:
        """How many steps a whole epoch has."""
        return self.steps_of(self.samples)

    def step(self, at: Cursor, tail: Sequence[Piece] = (), made: int = 0) -> tuple[tuple[Piece, ...], Cursor] | None:
        """The positions of the next step, and where the one behind it begins; None at the end. tail: all that was
        readmitted so far. made: steps before it.
        """
        return self.step_due(self.due(at, made), tail)

    def step_due(self, at: Cursor, tail: Sequence[Piece] = ()) -> tuple[tuple[Piece, ...], Cursor] | None:
        """The same, for who knows already where it begins."""
        epoch, position = at
        if epoch < self.epochs:
            size = self.size(self.samples - position)
            return (Piece(epoch, position, size),), self.behind(epoch, position, size)
        size = min(self.batch_size, total(tail) - position)
        if size <= 0:
            return None
        return cut(tail, position, size), self.behind(epoch, position, size)

    def due(self, at: Cursor, made: int) -> Cursor:
        """Where the next step begins, with so many made: in the next epoch, where what is left of this one fills none
        any more; in the tail, where the job ends behind its steps.
        """
        epoch, position = at
        if epoch < self.epochs and not self.steps_of(self.samples - position):
            at = Cursor(epoch + 1)
        if self.steps and made >= self.steps and at.epoch < self.epochs:
            at = Cursor(self.epochs)
        return at

    def behind(self, epoch: int, start: int, length: int) -> Cursor:
        """Where the step behind this place begins."""
        end = start + length
        over = epoch < self.epochs and not self.steps_of(self.samples - end)
        return Cursor(epoch + 1) if over else Cursor(epoch, end)

    def size(self, left: int) -> int:
        """Of the next step, with so many positions of the epoch left: never above the batch size, and it follows from
        what is left alone, so that a batch size may change in mid epoch.
        """
        if self.last == EVEN:
            return -(-left // -(-left // self.batch_size))
        return min(self.batch_size, left)

    def steps_of(self, left: int) -> int:
        """How many steps so many positions of an epoch are."""
        return left // self.batch_size if self.last == DROP else -(-left // self.batch_size)

    def ahead(self, at: Cursor, made: int) -> Iterator[tuple[Piece, int]]:
        """What the steps from here on consist of, but for the tail: a piece of each epoch, and how many steps it is."""
        epoch, position = self.due(at, made)
        while epoch < self.epochs and (not self.steps or made < self.steps):
            left = self.samples - position
            steps = whole = self.steps_of(left)
            if self.steps:
                steps = min(whole, self.steps - made)
            length = steps * self.batch_size
            if self.last == EVEN:
                length = steps * (left // whole) + min(steps, left % whole)
            yield Piece(epoch, position, min(length, left)), steps
            made, epoch, position = made + steps, epoch + 1, 0

    def steps_ahead(self, at: Cursor, made: int) -> int:
        """How many steps are left behind `made`, but for the tail."""
        epoch, position = self.due(at, made)
        if epoch >= self.epochs:
            return 0
        if self.steps:
            return self.steps - made
        return self.steps_of(self.samples - position) + self.steps_per_epoch * (self.epochs - epoch - 1)


@dataclass(frozen=True, slots=True)
class Layouts:
    """A job's layouts, one behind the other. changes: (generation, batch size): what was executed from that generation
    on has it, up to the next one of them; what was executed before has it as it was, whenever it is committed.
    """

    first: Layout
    changes: tuple[tuple[int, int], ...] = ()

    def of(self, generation: int) -> Layout:
        """Of the steps that this generation executes."""
        for since, batch_size in reversed(self.changes):
            if since <= generation:
                return replace(self.first, batch_size=batch_size)
        return self.first

    @property
    def newest(self) -> Layout:
        """Of the steps that nobody has begun yet."""
        return self.of(self.changes[-1][0]) if self.changes else self.first

    def resized(self, generation: int, batch_size: int) -> Layouts:
        """With one more change."""
        return Layouts(self.first, (*self.changes, (generation, batch_size)))


def layout_of(spec: JobSpec) -> Layout:
    """Of a job with steps of a fixed size, as it begins."""
    return Layout(spec.samples, spec.epochs, spec.batch_size, spec.batches, spec.steps)


def total(pieces: Iterable[Piece]) -> int:
    """How many positions they have."""
    return sum([piece.length for piece in pieces])


def cut(pieces: Iterable[Piece], start: int, length: int) -> tuple[Piece, ...]:
    """`length` positions from the `start`-th one on, counted along the pieces."""
    found, end = list[Piece](), start + length
    at = 0
    for piece in pieces:
        low, high = max(start, at), min(end, at + piece.length)
        if low < high:
            found.append(Piece(piece.epoch, piece.start + low - at, high - low))
        at += piece.length
        if at >= end:
            break
    return tuple(found)


def without(pieces: Iterable[Piece], excluded: Sequence[Piece]) -> tuple[Piece, ...]:
    """What is left of the pieces, in their order. excluded: in any order, may overlap."""
    if not excluded:
        return tuple(pieces)
    found = list[Piece]()
    for epoch, start, length in pieces:
        at, end = start, start + length
        holes = sorted((e.start, e.start + e.length) for e in excluded if e.epoch == epoch)
        for low, high in holes:
            if high <= at or low >= end:
                continue
            if low > at:
                found.append(Piece(epoch, at, low - at))
            at = max(at, high)
        if at < end:
            found.append(Piece(epoch, at, end - at))
    return tuple(found)


def within(pieces: Iterable[Piece], others: Sequence[Piece]) -> tuple[Piece, ...]:
    """What of the pieces is in the others as well, in their order. others: not overlapping."""
    found = list[Piece]()
    for epoch, start, length in pieces:
        for other in sorted(others):
            low, high = max(start, other.start), min(start + length, other.start + other.length)
            if other.epoch == epoch and low < high:
                found.append(Piece(epoch, low, high - low))
    return tuple(found)


def split(size: int, weights: Sequence[int], least: int = 1, *, spares: bool = False) -> list[int]:
    """Parts of a step in proportion to the weights, in rank order. Nobody gets less than `least` of it, as far as there
    is enough; sizes follow from whole numbers alone, so they are the same everywhere. spares: who has no weight gets
    nothing, if anybody has any.
    """
    if spares and 0 < sum(map(bool, weights)) < len(weights):
        some = iter(split(size, [weight for weight in weights if weight], least))
        return [next(some) if weight else 0 for weight in weights]
    world = len(weights)
    least = min(least, size // world)
    rest, whole = size - least * world, sum(weights)
    wanted = [max(0, weight * size - least * whole) for weight in weights]
    scale, upto, parts = sum(wanted) or 1, 0, list[int]()
    for want in wanted:
        parts.append(least + (upto + want) * rest // scale - upto * rest // scale)
        upto += want
    if not sum(wanted):  # nobody is to have more than the least
        parts = [least + (rank + 1) * rest // world - rank * rest // world for rank in range(world)]
    return parts


def share(pieces: Sequence[Piece], sizes: Sequence[int], index: int) -> tuple[Piece, ...]:
    """The `index`-th part of pieces that are cut one behind the other into parts of these sizes."""
    return cut(pieces, sum(sizes[:index]), sizes[index])


def pieces_of(flat: Sequence[int]) -> tuple[Piece, ...]:
    """The inverse of `flat_of`."""
    assert len(flat) % 3 == 0, flat
    return tuple(Piece(*flat[i : i + 3]) for i in range(0, len(flat), 3))


def flat_of(pieces: Iterable[Piece]) -> tuple[int, ...]:
    """Triples (epoch, start, length), one behind the other, as records have them."""
    return tuple(number for piece in pieces for number in piece)
