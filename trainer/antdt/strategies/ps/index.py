"""Where the row of an id lies, for many ids at once, growing without a pause.

Where there are not so many ids, each has a place in a plain array, of which only what is touched takes memory. Where
there are more, it is open addressing, which looks up ten times as long. A table of it that is half full gets a
successor of twice its size; ids are then looked up in both, and each insertion moves some entries of the old one, so no
call takes long because of its size.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np

from antdt.strategies.ps.layout import mixed

Ids = np.ndarray[Any, np.dtype[np.int64]]
MISSING = -1
PLAIN_MAX = 2**26  # ids: a quarter of a gigabyte if all are touched, beside the rows themselves
# Slots of the old table for each id that is inserted: it is empty long before the new one is half full.
MOVED_A_ROUND = 4
LARGE_PAGES: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
NORESERVE = 0x4000  # of Linux; not every Python names it


class PlainIndex:
    """id -> place, for ids from 0 to `count` - 1. A place is kept with one added, as 0 is what nobody has touched."""

    def __init__(self, count: int) -> None:
        assert count <= PLAIN_MAX, count
        # Half as long as ids are: looking up is waiting for memory.
        self._places = zeros((count + 1) // 2).view(np.int32)[:count]

    def find(self, ids: Ids) -> Ids:
        """Of each id its place, or MISSING."""
        found: Ids = self._places.take(ids).astype(np.int64)
        found -= 1
        return found

    def insert(self, ids: Ids, places: Ids) -> None:
        """Ids that are not in it, each once."""
        self._places[ids] = places + 1


class Slots:
    """One table. keys: id + 1, or 0 for a free slot. Memory is taken when it is touched."""

    def __init__(self, capacity: int) -> None:
        assert capacity & (capacity - 1) == 0, capacity
        self.capacity = capacity
        self.keys = zeros(capacity)
        self.places = zeros(capacity)
        self.used = 0

    def find(self, ids: Ids) -> Ids:
        """Of each id its place, or MISSING."""
        mask = self.capacity - 1
        at = (mixed(ids) & np.uint64(mask)).astype(np.int64)
        keys = self.keys.take(at)
        hit = keys == ids + 1
        out = np.where(hit, self.places.take(at), MISSING)
        left = np.flatnonzero(~hit & (keys != 0))
        at = at[left]
        while len(left):
            at = (at + 1) & mask
            keys = self.keys.take(at)
            hit = keys == ids[left] + 1
            out[left[hit]] = self.places.take(at[hit])
            going = ~hit & (keys != 0)
            left, at = left[going], at[going]
        return out

    def insert(self, ids: Ids, places: Ids) -> None:
        """Ids that are not in it, each once."""
        mask = self.capacity - 1
        at = (mixed(ids) & np.uint64(mask)).astype(np.int64)
        self.used += len(ids)
        assert self.used < self.capacity, "a table that is full"
        while len(ids):
            free = self.keys.take(at) == 0
            self.keys[at[free]] = ids[free] + 1  # of several that want one slot, the last has it
            got = self.keys.take(at) == ids + 1
            self.places[at[got]] = places[got]
            ids, places, at = ids[~got], places[~got], (at[~got] + 1) & mask


class KeyIndex:
    """id -> place, for ids of at least 0."""

    def __init__(self, capacity: int = 2**13) -> None:
        self._slots = Slots(capacity)
        self._old: Slots | None = None
        self._moved = 0

    def find(self, ids: Ids) -> Ids:
        """Of each id its place, or MISSING."""
        found = self._slots.find(ids)
        if self._old is not None:
            missing = np.flatnonzero(found == MISSING)
            found[missing] = self._old.find(ids[missing])
        return found

    def insert(self, ids: Ids, places: Ids) -> None:
        """Ids that are not in it, each once."""
        while self._old is not None and 2 * (self._slots.used + len(ids)) > self._slots.capacity:
            self._move(self._old.capacity)  # more at once than was foreseen
        if 2 * (self._slots.used + len(ids)) > self._slots.capacity:
            self._grow(len(ids))
        self._slots.insert(ids, places)
        if self._old is not None:
            self._move(MOVED_A_ROUND * len(ids))

    def _grow(self, more: int) -> None:
        capacity = 2 * self._slots.capacity
        while 2 * self._slots.used + 4 * more > capacity:
            capacity *= 2
        self._old, self._slots, self._moved = self._slots, Slots(capacity), 0

    def _move(self, count: int) -> None:
        """The next slots of the old table. They stay in it as well, so what probes it finds its way."""
        old = self._old
        assert old is not None
        keys = old.keys[self._moved : self._moved + count]
        full = np.flatnonzero(keys)
        if len(full):
            self._slots.insert(keys[full] - 1, old.places[self._moved + full])
        self._moved += len(keys)
        if self._moved >= old.capacity:
            self._old = None


def index_of(rows: int, known: int = 0) -> PlainIndex | KeyIndex:
    """For ids below `rows`, so many of which are to be inserted at once."""
    if rows <= PLAIN_MAX:
        return PlainIndex(rows)
    return KeyIndex(max(2**13, 1 << (3 * known).bit_length()))


NONE = np.empty(0, np.int64)


def missing_of(places: Ids) -> Ids:
    """Where there is none: mostly nowhere, which is seen at once."""
    return np.flatnonzero(places == MISSING) if len(places) and places.min() == MISSING else NONE


def zeros(count: int, *, in_large_pages: bool = False) -> Ids:
    """Memory that is taken from the machine as it is touched, however much it is. in_large_pages: where it gives such,
    for what is touched from the front on: rows are found faster.

    Raises OSError or ValueError where the machine reserves none.
    """
    room = mmap.mmap(-1, max(8 * count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    if in_large_pages and LARGE_PAGES is not None:
        with suppress(OSError):  # a system without
            room.madvise(LARGE_PAGES)
    return np.frombuffer(room, np.int64, count)
