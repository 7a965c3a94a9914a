"""Rows, rounds and their way through a sum of floats."""

from __future__ import annotations

import pytest
import torch
from antdt.strategies.allreduce import Composition, ReplicasDiffer, Row
from antdt.strategies.allreduce.composition import RANGES_MAX, ROW_WIDTH, Round
from antdt.strategies.allreduce.rows import Rows, digits_in
from antdt_schemas.lineage import ROOT, next_lineage
from antdt_schemas.ranges import Range
from hypothesis import given
from hypothesis import strategies as st

int64 = st.integers(-(2**63), 2**63 - 1)
ranges = st.builds(Range, int64, int64, int64, int64, int64)
rows = st.builds(
    Row,
    samples=int64,
    plan_seen=int64,
    plan=int64,
    lineage=st.binary(min_size=16, max_size=16),
    step=int64,
    ended=st.booleans(),
    reference=int64,
    ranges=st.lists(ranges, max_size=RANGES_MAX).map(tuple),
)


def row(**changes: object) -> Row:
    found: dict[str, object] = {"samples": 2, "plan_seen": 0, "plan": 0, "lineage": ROOT, "step": 0}
    return Row(**(found | changes))  # type: ignore[arg-type]


@given(rows)
def test_unpack_is_the_inverse_of_pack(one: Row) -> None:
    columns = one.pack()
    assert len(columns) == ROW_WIDTH
    assert Row.unpack(columns) == one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@given(members=st.lists(st.lists(int64, min_size=ROW_WIDTH, max_size=ROW_WIDTH), min_size=1, max_size=4))
def test_numbers_survive_a_sum_of_floats(dtype: torch.dtype, members: list[list[int]]) -> None:
    world, width = len(members), digits_in(ROW_WIDTH, dtype)
    each = [Rows(torch.full((world, width), 3.0, dtype=dtype), ROW_WIDTH) for _ in members]
    for _ in range(2):  # as the next step does
        for rank, columns in enumerate(members):
            each[rank].put(rank, columns)
        total = torch.stack([one.within for one in each]).sum(0)
        for one in each:
            one.within.copy_(total)
            assert one.all() == members
    each[0].put(0, None)
    assert not each[0].within.any()


def test_more_ranges_than_a_row_holds_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="9 ranges"):
        row(ranges=(Range(1, 2, 0, 0, 1),) * 9)


def test_a_number_wider_than_64_bits_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        row(ranges=(Range(1, 2**63, 0, 0, 1),)).pack()


def test_plan_takes_effect_when_everybody_has_seen_it() -> None:
    assert Round.of([row(plan_seen=3), row(plan_seen=1), row(plan_seen=2)]).plan == 1


def test_plan_in_the_model_is_never_taken_back() -> None:
    assert Round.of([row(plan=5, plan_seen=7), row(plan=5, plan_seen=0)]).plan == 5


def test_one_member_told_the_end_ends_the_round_for_all() -> None:
    assert Round.of([row(), row(ended=True)]).ended
    assert not Round.of([row(), row()]).ended


@pytest.mark.parametrize("change", [{"lineage": b"x" * 16}, {"step": 4}, {"plan": 1}, {"reference": 9}])
def test_replicas_that_differ_are_named(change: dict[str, object]) -> None:
    with pytest.raises(ReplicasDiffer, match=r"rank 1 .* expected .* found") as caught:
        Round.of([row(), row(**change)])
    assert caught.value.expected != caught.value.found


def test_composition_keeps_rank_order_and_tokens_and_lineage_leaves_tokens_out() -> None:
    made = Round.of(
        [row(ranges=(Range(7, -1, 0, 10, 1), Range(8, -2, 0, 90, 1))), row(ranges=(Range(3, -3, 0, 5, 2),))]
    )
    assert made.composition(6) == Composition(6, (7, -1, 0, 10, 1, 8, -2, 0, 90, 1, 3, -3, 0, 5, 2), 0)
    assert made.lineage_after(ROOT, 6) == next_lineage(ROOT, 6, (7, 0, 10, 1, 8, 0, 90, 1, 3, 0, 5, 2))
