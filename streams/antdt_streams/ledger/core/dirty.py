"""Which rows (see `rows`) of a state changed since they were last written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Dirty:
    """Names of changed rows. The kinds that change with every step have sets of their own: numbers hash faster than
    pairs of kind and name.
    """

    leases: set[int] = field(default_factory=set)
    epochs: set[int] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)
    others: set[tuple[str, Any]] = field(default_factory=lambda: {("meta", 0), ("checkpoints", 0)})

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """(kind, name) of each row."""
        for kind, numbers in (("lease", self.leases), ("epoch", self.epochs), ("step", self.steps)):
            yield from ((kind, number) for number in numbers)
        yield from self.others

    def __bool__(self) -> bool:
        return bool(self.others or self.leases or self.epochs or self.steps)

    def clear(self) -> None:
        """All of them are written, or nobody will."""
        self.leases.clear()
        self.epochs.clear()
        self.steps.clear()
        self.others.clear()
