"""What gives the samples of positions, in any process: nothing else of a source travels to a data process.

Must not know which sample is at a position, nor who wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from antdt_schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class Piece:
    """Contiguous positions of one epoch, [start, start + length). indices: of their samples, where those have any."""

    epoch: int
    start: int
    length: int
    indices: tuple[int, ...] | None = None

    @property
    def stop(self) -> int:
        """The position behind the last one."""
        return self.start + self.length

    def part(self, at: int) -> Piece:
        """Its sample number `at` alone."""
        return Piece(self.epoch, self.start + at, 1, None if self.indices is None else (self.indices[at],))

    def name(self, at: int = 0) -> str:
        """What to call its sample number `at`, counted from its beginning."""
        at = min(at, self.length - 1)
        where = f"position {self.start + at} of epoch {self.epoch}"
        return f"the sample at {where}" if self.indices is None else f"sample {self.indices[at]} ({where})"


class Reader(Protocol):
    """Gives the samples of pieces, in any process: nothing else of a source travels there."""

    @property
    def dataset(self) -> Any:
        """The data set itself."""

    @property
    def at_once(self) -> bool:
        """Whether all samples of a piece are loaded by one call of the data set."""

    def samples(self, piece: Piece, before: Callable[[int], None]) -> Iterator[Any]:
        """One after another; calls before(position) first."""


@dataclass(frozen=True, slots=True)
class ItemReader:
    """Samples by index. A data set with `__getitems__` is asked for all of a piece at once."""

    dataset: Any

    @property
    def at_once(self) -> bool:
        """Whether all samples of a piece are loaded by one call of the data set."""
        return hasattr(self.dataset, "__getitems__")

    def samples(self, piece: Piece, before: Callable[[int], None]) -> Iterator[Any]:
        """One after another."""
        assert piece.indices is not None
        fetch_many = getattr(self.dataset, "__getitems__", None)
        if fetch_many is not None:
            before(piece.start)
            yield from fetch_many(list(piece.indices))
            return
        for position, index in enumerate(piece.indices, piece.start):
            before(position)
            yield self.dataset[index]


@dataclass(frozen=True, slots=True)
class RangeReader:
    """Samples by position, from a data set with `iter_range(start, stop)`."""

    dataset: Any
    size: int

    @property
    def at_once(self) -> bool:
        """One after another."""
        return False

    def samples(self, piece: Piece, before: Callable[[int], None]) -> Iterator[Any]:
        """One after another."""
        found = iter(self.dataset.iter_range(piece.start, piece.stop))
        for position in range(piece.start, piece.stop):
            before(position)
            try:
                sample = next(found)
            except StopIteration:
                raise UsageError(too_few(position - piece.start, piece.start, piece.stop, self.size)) from None
            yield sample


def too_few(got: int, start: int, stop: int, size: int) -> str:
    """What to say of an iteration that ended too early."""
    return (
        f"The data set gave {got} samples for positions [{start}, {stop}), its size was stated as {size}: "
        "state as many as an iteration gives; they must be the same ones in every iteration."
    )
