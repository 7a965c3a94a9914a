"""Interval sets against sets of integers."""

from __future__ import annotations

from itertools import pairwise

from antdt_streams.ledger.core.intervals import IntervalSet
from hypothesis import given
from hypothesis import strategies as st

SPAN = 40
ranges = st.tuples(st.integers(0, SPAN - 1), st.integers(1, 10)).map(lambda t: (t[0], min(SPAN, t[0] + t[1])))


@given(st.lists(st.tuples(st.booleans(), ranges), max_size=40))
def test_like_a_set_of_integers(operations: list[tuple[bool, tuple[int, int]]]) -> None:
    ours, model = IntervalSet(), set[int]()
    for add, (start, end) in operations:
        inside = set(range(start, end))
        if add and not inside & model:
            ours.add(start, end)
            model |= inside
        elif not add and inside <= model:
            ours.remove(start, end)
            model -= inside
        pieces = list(ours)
        assert {p for a, b in pieces for p in range(a, b)} == model
        assert all(b < c for (_, b), (c, _) in pairwise(pieces)), "sorted, never adjacent"
        assert ours.total == len(model)
        assert {p for a, b in ours.overlaps(start, end) for p in range(a, b)} == inside & model
        assert {p for a, b in ours.gaps(start, end) for p in range(a, b)} == inside - model
