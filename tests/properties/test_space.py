"""Positions of a topic: every offset has one, for ever, whatever is added."""

from __future__ import annotations

from itertools import pairwise

from antdt_schemas.space import BLOCKS_MAX, STRIPE_MIN, Block, Space, striped
from hypothesis import given
from hypothesis import strategies as st

BOUNDS = st.dictionaries(
    st.integers(0, 20),
    st.tuples(st.integers(0, 10**6), st.integers(0, 4 * STRIPE_MIN)).map(lambda t: (t[0], t[0] + t[1])),
    min_size=1,
    max_size=6,
)


@given(BOUNDS, st.data())
def test_every_offset_has_one_position_and_every_position_one_offset(
    bounds: dict[int, tuple[int, int]], data: st.DataObject
) -> None:
    space = Space(striped(bounds))
    assert space.length == sum(end - begin for begin, end in bounds.values())
    for partition, (begin, end) in bounds.items():
        mine = sorted((b.begin, b.end) for b in space.blocks if b.partition == partition)
        assert sum(high - low for low, high in mine) == end - begin
        for (_, left), (right, _) in pairwise(mine):
            assert left == right
    if space.length:
        at = data.draw(st.integers(0, space.length - 1))
        assert space.position(*space.at(at)) == at
        start = data.draw(st.integers(0, at))
        runs = list(space.runs(start, at + 1 - start))
        assert [r.start for r in runs] == [start + sum(r.length for r in runs[:i]) for i in range(len(runs))]
        assert sum(r.length for r in runs) == at + 1 - start
        assert all(space.at(r.start) == (r.partition, r.offset) for r in runs)
    assert space.position(99, 0) is None
    assert Space.of(space.flat, closed=True).blocks == space.blocks


@given(BOUNDS, st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50), st.integers(0, 5)), max_size=8))
def test_what_is_added_moves_nothing(bounds: dict[int, tuple[int, int]], more: list[tuple[int, int, int]]) -> None:
    space = before = Space(striped(bounds), closed=False)
    for partition, count, gap in more:  # a gap where a partition is new
        begin = space.ends.get(partition, gap)
        space = space.extended([Block(partition, begin, begin + count)], closed=False)
    assert space.length == before.length + sum(count for _, count, _ in more)
    for at in range(0, before.length, max(1, before.length // 7)):
        assert space.at(at) == before.at(at)
    for at in range(before.length, space.length):
        assert space.position(*space.at(at)) == at


def test_partitions_take_turns_and_there_are_not_many_blocks() -> None:
    even = striped({0: (0, 3 * STRIPE_MIN), 1: (10, 10 + 2 * STRIPE_MIN)})
    assert [block.partition for block in even] == [0, 1, 0, 1, 0]
    assert striped({4: (0, 10**9)}) == [Block(4, 0, 10**9)]
    assert len(striped(dict.fromkeys(range(64), (0, 10**9)))) <= BLOCKS_MAX + 64
    assert striped({0: (5, 5)}) == []


def test_a_topic_of_one_partition_that_grows_stays_one_block() -> None:
    space = Space([Block(0, 0, 10)], closed=False)
    for end in range(11, 2000):
        space = space.extended([Block(0, space.length, end)], closed=False)
    assert space.blocks == (Block(0, 0, 1999),)
