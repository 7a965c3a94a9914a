"""Who keeps the position of each partition of a source, and what a source says of a partition. Knows no client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition holds: offsets from `low` up to, not including, `high`."""

    low: int
    high: int


class Owner(Protocol):
    """Keeps the position of each partition. Called from the source's thread."""

    def begin(self, partition: int, assignment: int, bounds: Bounds) -> int:
        """A partition was assigned; the offset to read from. Its batches will carry the number of the assignment."""

    def end(self, partitions: Iterable[int], *, lost: bool) -> None:
        """Partitions go to somebody else; `lost`: they have them already."""

    def positions(self) -> Mapping[int, int]:
        """Next offset of each partition, committed."""
