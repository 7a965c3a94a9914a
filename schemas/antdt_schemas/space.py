"""The positions of a topic: blocks of offsets of its partitions, laid end to end in one row of numbers.

Position k of an epoch is offset `offset` of partition `partition`, the same for everybody and for ever: blocks are
added behind those that are known, and none is changed. An offset at which there is no record (compaction, the marker of
a transaction) has a position, too. Owns this arithmetic, and how the blocks of a topic are cut at the begin. Must not
know who reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

TOPIC = "topic-1"  # as JobSpec.order: positions are those of its blocks
# Partitions take turns, so that all of them are read at the same time and no epoch is sorted by partition: blocks of so
# many offsets at least, and not many more of them than so many.
STRIPE_MIN, BLOCKS_MAX = 4096, 1024


class Block(NamedTuple):
    """Offsets [begin, end) of a partition."""

    partition: int
    begin: int
    end: int


class Run(NamedTuple):
    """`length` positions from `start` on are offsets of a partition from `offset` on."""

    start: int
    partition: int
    offset: int
    length: int


class Space:
    """Immutable. length: positions of an epoch. closed: no block follows any more. Blocks of nothing are left out: they
    only say where a partition begins.
    """

    def __init__(self, blocks: Iterable[Block] = (), *, closed: bool = True) -> None:
        self.blocks, self.closed = tuple(block for block in blocks if block.begin < block.end), closed
        self._starts, at = list[int](), 0
        for block in self.blocks:
            self._starts.append(at)
            at += block.end - block.begin
        self.length = at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and (self.blocks, self.closed) == (other.blocks, other.closed)

    def __hash__(self) -> int:
        return hash((self.blocks, self.closed))

    @classmethod
    def of(cls, flat: Sequence[int], *, closed: bool) -> Space:
        """Of triples, one behind the other, as records have them."""
        assert len(flat) % 3 == 0, flat
        return cls((Block(*flat[i : i + 3]) for i in range(0, len(flat), 3)), closed=closed)

    @property
    def flat(self) -> tuple[int, ...]:
        """Its blocks as records have them."""
        return tuple(chain.from_iterable(self.blocks))

    @property
    def ends(self) -> dict[int, int]:
        """The next offset of each partition."""
        return {block.partition: block.end for block in self.blocks}

    def extended(self, blocks: Iterable[Block], *, closed: bool) -> Space:
        """With these behind. What only goes on where the last one ends becomes part of that."""
        assert not self.closed, "the topic has ended"
        out, ends = list(self.blocks), self.ends
        for block in blocks:
            assert block.begin >= ends.get(block.partition, 0), (block, ends)
            ends[block.partition] = block.end
            if out and (out[-1].partition, out[-1].end) == (block.partition, block.begin):
                out[-1] = out[-1]._replace(end=block.end)
            else:
                out.append(block)
        return Space(out, closed=closed)

    def runs(self, start: int, length: int) -> Iterator[Run]:
        """Where [start, start + length) is in the topic, in order."""
        assert start >= 0 and start + length <= self.length, (start, length, self.length)
        at, end = start, start + length
        number = bisect_right(self._starts, start) - 1
        while at < end:
            block, begin = self.blocks[number], self._starts[number]
            stop = min(end, begin + block.end - block.begin)
            yield Run(at, block.partition, block.begin + at - begin, stop - at)
            at, number = stop, number + 1

    def at(self, position: int) -> tuple[int, int]:
        """(partition, offset) of a position."""
        (run,) = self.runs(position, 1)
        return run.partition, run.offset

    def position(self, partition: int, offset: int) -> int | None:
        """The position of an offset; None where it is not in the space."""
        for block, start in zip(self.blocks, self._starts, strict=True):
            if block.partition == partition and block.begin <= offset < block.end:
                return start + offset - block.begin
        return None


def striped(bounds: Mapping[int, tuple[int, int]]) -> list[Block]:
    """The blocks of partitions with these (first offset, next offset): stripes of each in turn, while it lasts."""
    total = sum(end - begin for begin, end in bounds.values())
    stripe, out = max(STRIPE_MIN, -(-total // BLOCKS_MAX)), list[Block]()
    fronts = {partition: begin for partition, (begin, end) in sorted(bounds.items()) if begin < end}
    while fronts:
        for partition, begin in list(fronts.items()):
            end = min(begin + stripe, bounds[partition][1])
            if out and (out[-1].partition, out[-1].end) == (partition, begin):
                out[-1] = out[-1]._replace(end=end)
            else:
                out.append(Block(partition, begin, end))
            fronts[partition] = end
            if end == bounds[partition][1]:
                del fronts[partition]
    return out


def record_name(topic: str, partition: int, offset: int) -> str:
    """What to call a record, everywhere."""
    return f"{topic}/{partition}@{offset}"
