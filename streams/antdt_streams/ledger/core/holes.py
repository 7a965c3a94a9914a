"""What is left out of steps of a fixed size, and what is appended behind the last epoch instead.

Owns which samples lie at a place of the order. Rules
  1. An exclusion counts for steps that were executed from its generation on. Only one that no step has come to is ever
     taken back.
  2. A readmitted piece is appended to the tail, where only later exclusions count for it. Steps that older generations
     have executed know nothing of it: the last one of them is as long as the tail was then.
  3. Neither is undone by a roll-back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from antdt_schemas import batches
from antdt_schemas.batches import Piece


class Exclusion(NamedTuple):
    """`piece` is left out of steps that were executed in this generation or a later one."""

    generation: int
    piece: Piece


class Appended(NamedTuple):
    """A readmitted piece. exclusions: how many there were before it. since: the first generation that knows of it; 0:
    all do, as the rules were before version 4.
    """

    piece: Piece
    exclusions: int
    since: int = 0


@dataclass(frozen=True, slots=True)
class Holes:
    """Of a job with so many epochs; never changed."""

    epochs: int
    exclusions: tuple[Exclusion, ...] = ()
    appended: tuple[Appended, ...] = ()

    @property
    def tail(self) -> tuple[Piece, ...]:
        """All that was ever appended, in its order."""
        return tuple(found.piece for found in self.appended)

    def tail_of(self, executed: int) -> tuple[Piece, ...]:
        """What of it this generation knew."""
        return tuple(found.piece for found in self.appended if found.since <= executed)

    def exclude(self, generation: int, piece: Piece) -> Holes:
        """With one more exclusion."""
        return Holes(self.epochs, (*self.exclusions, Exclusion(generation, piece)), self.appended)

    def lift(self, piece: Piece) -> Holes:
        """Without an exclusion that nothing was executed under, nor appended for."""
        kept = tuple(e for e in self.exclusions if e.piece != piece)
        before = [number for number, e in enumerate(self.exclusions) if e.piece == piece]
        appended = (a._replace(exclusions=a.exclusions - sum(n < a.exclusions for n in before)) for a in self.appended)
        return Holes(self.epochs, kept, tuple(appended))

    def append(self, piece: Piece, since: int = 0) -> Holes:
        """With one more piece in the tail."""
        return Holes(self.epochs, self.exclusions, (*self.appended, Appended(piece, len(self.exclusions), since)))

    def live(self, executed: int, epoch: int, start: int, length: int) -> tuple[Piece, ...]:
        """The samples of the step at this place, as that generation executed it. Behind the last epoch, start counts
        along the tail.
        """
        if epoch < self.epochs:
            return batches.without((Piece(epoch, start, length),), self._since(0, executed))
        found, at = list[Piece](), 0
        for piece, known, _ in self.appended:
            low, high = max(start, at), min(start + length, at + piece.length)
            part = (Piece(piece.epoch, piece.start + low - at, high - low),) if low < high else ()
            found += batches.without(part, self._since(known, executed))
            at += piece.length
        return tuple(found)

    def _since(self, known: int, executed: int) -> Sequence[Piece]:
        return [e.piece for e in self.exclusions[known:] if e.generation <= executed]

    def shown(self, from_epoch: int) -> list[Piece]:
        """What whoever executes steps from here on leaves out, with positions of the tail counted along it."""
        found = [e.piece for e in self.exclusions if e.piece.epoch >= from_epoch]
        at = 0
        for piece, known, _ in self.appended:
            left = batches.without((piece,), [e.piece for e in self.exclusions[known:]])
            holes = batches.without((piece,), left)
            found += [Piece(self.epochs, at + hole.start - piece.start, hole.length) for hole in holes]
            at += piece.length
        return found
