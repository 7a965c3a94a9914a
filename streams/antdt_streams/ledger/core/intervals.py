"""Sets of sample positions as sorted, disjoint half-open intervals: a billion positions cost nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """Invariant: starts[i] < ends[i] < starts[i + 1]; `total` is the number of positions."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in intervals:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """Number of intervals."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._starts == other._starts and self._ends == other._ends

    def __hash__(self) -> int:  # pragma: no cover  mutable: not for sets
        raise TypeError("unhashable")

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"

    def copy(self) -> IntervalSet:
        """An independent copy."""
        new = IntervalSet()
        new._starts, new._ends, new.total = self._starts.copy(), self._ends.copy(), self.total
        return new

    def add(self, start: int, end: int) -> None:
        """Add [start, end), which must not overlap what is there: a position is never added twice."""
        added = self.try_add(start, end)
        assert added, f"[{start}, {end}) overlaps {self.overlaps(start, end)}"

    def try_add(self, start: int, end: int) -> bool:
        """Add [start, end) and return True, or change nothing and return False if it overlaps what is there."""
        assert start < end, (start, end)
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start)
        before = ends[at - 1] if at else None
        after = starts[at] if at < len(starts) else None
        if (before is not None and before > start) or (after is not None and after < end):
            return False
        self.total += end - start
        if before == start:
            if after == end:
                ends[at - 1] = ends[at]
                del starts[at], ends[at]
            else:
                ends[at - 1] = end
        elif after == end:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)
        return True

    def remove(self, start: int, end: int) -> None:
        """Remove [start, end), all of which must be there."""
        assert start < end, (start, end)
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start) - 1
        assert at >= 0 and end <= ends[at], f"[{start}, {end}) is not all there"
        self.total -= end - start
        first, last = starts[at], ends[at]
        if first == start and last == end:
            del starts[at], ends[at]
        elif first == start:
            starts[at] = end
        elif last == end:
            ends[at] = start
        else:
            ends[at] = start
            starts.insert(at + 1, end)
            ends.insert(at + 1, last)

    def overlaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are there."""
        out = []
        at = max(bisect_right(self._starts, start) - 1, 0)
        while at < len(self._starts) and self._starts[at] < end:
            low, high = max(self._starts[at], start), min(self._ends[at], end)
            if low < high:
                out.append((low, high))
            at += 1
        return out

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are missing."""
        out, at = [], start
        for low, high in self.overlaps(start, end):
            if at < low:
                out.append((at, low))
            at = high
        if at < end:
            out.append((at, end))
        return out

    def first(self) -> tuple[int, int]:
        """The lowest interval of a set that is not empty."""
        return self._starts[0], self._ends[0]
