"""A member's part of a step of a fixed size: derived, never asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from antdt.strategies.base import Place
from antdt.worker.plans import Share, Split
from antdt.worker.session import Session, Where
from antdt.worker.taking import Stepped, Taken
from antdt_schemas import records
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import Mismatch
from antdt_schemas.lineage import ROOT, next_lineage

from tests.helpers.allreduce import each, generation_of, mean_loss, replica, same, state_of
from tests.helpers.ledger import SPEC

STEPS = replace(SPEC, samples=22, epochs=2, batch_size=8, batches="even")


def taking(
    world: int, spec: records.JobSpec = STEPS, generation: int = 3, **said: Any
) -> list[tuple[Stepped, Session]]:
    """Members of a generation, each with what it was granted."""
    members = tuple(records.Member(f"w{n}.0", f"w{n}", "h", 1) for n in range(world))
    grant = records.Grant("run", generation, members, None, None, 0, "init", **said)
    found = []
    for rank in range(world):
        session = Session(f"w{rank}", f"w{rank}.0", spec, Where("h", 1))
        session.rank = rank
        one = Stepped(spec)
        one.begin(grant)
        found.append((one, session))
    return found


def taken(world: int, at: Cursor, sizes: Sequence[int] = (), **said: tuple[int, ...]) -> list[Taken]:
    """What each member takes at this place. sizes: of the plan."""
    shares = split(*(sizes or [1] * world))
    return [one.take(session, at, 0, shares, idle=False) for one, session in taking(world, **said)]


def split(*sizes: int) -> Split:
    """What a plan gives to each member."""
    return Split([Share(size) for size in sizes], sum(sizes))


def positions(found: Taken) -> list[tuple[int, int]]:
    return [(r.epoch, r.start + k) for r in found.ranges for k in range(r.length)]


@pytest.mark.parametrize("sizes", [(1,), (4, 4), (6, 1, 1), (2, 2, 2, 1, 1)])
def test_a_step_is_the_same_for_any_number_of_members_and_any_plan(sizes: tuple[int, ...]) -> None:
    at, steps = Cursor(), 0
    while True:
        found = taken(len(sizes), at, sizes)
        assert len({one.place for one in found}) == 1
        place = found[0].place
        if place is None:
            break
        _, _, epoch, start, length = place.ranges
        assert [p for one in found for p in positions(one)] == [(epoch, start + k) for k in range(length)]
        assert {one.reference for one in found} == {length}
        assert min(len(positions(one)) for one in found) >= 1, "everybody runs the loop's body"
        at, steps = place.behind, steps + 1
    assert (at, steps) == (Cursor(2, 0), 6)


def test_what_is_left_out_moves_nobody_else() -> None:
    (alone,) = taken(1, Cursor(0, 8), excluded=(0, 10, 2, 1, 0, 1))
    assert positions(alone) == [(0, 8), (0, 9), (0, 12), (0, 13), (0, 14)]
    assert alone.place == replace_split(Place((3, 0, 0, 8, 7), Cursor(0, 15), 5), alone.place)
    (nothing,) = taken(1, Cursor(0, 8), excluded=(0, 8, 7))
    assert nothing.place is not None and (nothing.place.total, nothing.ranges) == (0, [])


def replace_split(place: Place, other: Place | None) -> Place:
    assert other is not None
    return place._replace(split=other.split)


def test_the_tail_is_told_by_where_it_lies_in_it() -> None:
    found = taken(2, Cursor(2, 1), tail=(0, 4, 2, 1, 9, 3), excluded=(2, 3, 1, 0, 4, 2))
    assert [p for one in found for p in positions(one)] == [(0, 5), (1, 9), (1, 11)]
    assert found[0].place is not None and found[0].place.ranges == (3, 0, 2, 1, 4)
    assert taken(2, Cursor(2, 5), tail=(0, 4, 2, 1, 9, 3))[0].place is None


def test_suspects_are_computed_apart_and_by_another_member_each_time() -> None:
    seen = set()
    for generation in range(3):
        members = taking(3, generation=generation, suspects=(0, 0, 2, 0, 7, 1))
        parts = [one.take(session, Cursor(), 0, split(4, 2, 2), idle=False) for one, session in members]
        assert sorted(p for one in parts for p in positions(one)) == [(0, k) for k in range(8)]
        units = [[[(r.start, r.length) for r in unit] for unit in one.units] for one in parts]
        seen.add(next(rank for rank, mine in enumerate(units) if [(0, 1)] in mine))
        assert all([r for unit in one.units for r in unit] for one in parts if one.units)
        assert [(7, 1)] in [unit for mine in units for unit in mine]
    assert seen == {0, 1, 2}


def test_two_suspects_do_not_end_two_members_in_one_step() -> None:
    """Found by simulation: of two that die together each pardons the other, and neither sample was ever blamed."""
    for generation in range(2):
        members = taking(2, generation=generation, suspects=(0, 1, 1, 0, 6, 1))
        parts = [one.take(session, Cursor(), 0, split(4, 4), idle=False) for one, session in members]
        assert sorted(p for one in parts for p in positions(one)) == [(0, k) for k in range(8)]
        held = [{(0, 1), (0, 6)} & set(positions(one)) for one in parts]
        assert sorted(map(len, held)) == [0, 2]
        (units,) = [one.units for one in parts if one.units]
        assert [[(r.start, r.length) for r in unit] for unit in units][1:] == [[(1, 1)], [(6, 1)]]


@pytest.mark.parametrize("sizes", [(1,), (4, 4), (2, 5, 1)])
def test_where_scripts_need_them_undivided_parts_are_in_order_from_the_first_rank_on(sizes: tuple[int, ...]) -> None:
    """And still go round: a machine that fails must not make one sample look guilty."""
    firsts, world = set[int](), len(sizes)
    for generation in range(world):
        members = taking(world, generation=generation, suspects=(0, 1, 1, 0, 5, 2))
        plan = split(*sizes)
        parts = [one.take(session, Cursor(), 0, plan, idle=False, undivided=True) for one, session in members]
        assert [one.units for one in parts] == [[]] * world
        (place,) = {one.place for one in parts}
        assert place is not None
        firsts.add(place.first)
        in_order = parts[place.first :] + parts[: place.first]
        assert [p for one in in_order for p in positions(one)] == [(0, k) for k in range(8)]
        cut = [one.take(session, Cursor(), 0, plan, idle=False) for one, session in members]
        assert any(one.units for one in cut), "not where scripts need nothing"
    assert firsts == set(range(world))


def test_each_suspect_is_cut_wherever_the_others_lie() -> None:
    """Found by simulation: with one position alone beside it, a pair was always computed in one go."""
    (alone,) = taken(1, Cursor(), suspects=(0, 3, 1, 0, 5, 2))
    assert [[(r.start, r.length) for r in unit] for unit in alone.units] == [
        [(0, 3), (4, 1), (7, 1)],
        [(3, 1)],
        [(5, 1)],
        [(6, 1)],
    ]


@pytest.mark.parametrize("sizes", [(1,), (4, 4), (6, 1, 1), (2, 2, 2, 1, 1)])
@pytest.mark.parametrize("excluded", [(), (0, 2, 1, 0, 7, 2)])
def test_units_are_the_same_whoever_computes_which(sizes: tuple[int, ...], excluded: tuple[int, ...]) -> None:
    """And keep their places in the step: what is left out makes one smaller, and suspects cut none."""
    spec = replace(SPEC, strategy="allreduce/unit=3", samples=15, epochs=1, batch_size=8, batches="small")
    holes = {(0, 2), (0, 7), (0, 8)} if excluded else set()
    for at, whole in ((Cursor(), [[0, 1, 2], [3, 4, 5], [6, 7]]), (Cursor(0, 8), [[8, 9, 10], [11, 12, 13], [14]])):
        members = taking(len(sizes), spec, excluded=excluded, suspects=(0, 4, 1))
        found = [one.take(session, at, 0, split(*sizes), idle=False) for one, session in members]
        units = [[r.start + k for r in unit for k in range(r.length)] for one in found for unit in one.units]
        wanted = [[n for n in unit if (0, n) not in holes] for unit in whole]
        assert units == [unit for unit in wanted if unit]
        assert [n for one in found for _, n in positions(one)] == [n for unit in wanted for n in unit]


def test_what_comes_next_is_known() -> None:
    for one, session in taking(2):
        shares = split(4, 4)
        one.take(session, Cursor(), 0, shares, idle=False)
        ahead = one.ahead(session, 9)
        at, due = Cursor(0, 8), []
        while len(due) < 9:
            found = one.take(session, at, 0, shares, idle=False)
            assert found.place is not None
            due += positions(found)
            at = found.place.behind
        assert [(e, s + k) for e, s, length in ahead for k in range(length)] == due
    assert one.take(session, Cursor(2, 0), 6, shares, idle=False).place is None
    assert one.ahead(session, 9) == []


def test_a_generation_has_its_batch_size_and_what_is_left_is_cut_anew() -> None:
    ((one, session),) = taking(1)
    grant = records.Grant("run", 4, (records.Member("w0.0", "w0", "h", 1),), "w0.0", 1, 1, None, batch_size=5)
    one.begin(grant)
    at, made, found = Cursor(0, 8), 1, []
    while (step := one.take(session, at, made, split(8), idle=False)).place is not None:
        found.append(step.place.ranges[2:])
        at, made = step.place.behind, made + 1
    assert found[:4] == [(0, 8, 5), (0, 13, 5), (0, 18, 4), (1, 0, 5)] and at == Cursor(2, 0)


def test_nothing_is_taken_behind_the_last_step() -> None:
    spec = replace(STEPS, epochs=9, steps=4)
    ((one, session),) = taking(1, spec, tail=(0, 4, 1))
    assert one.take(session, Cursor(1, 0), 3, split(8), idle=False).place is not None
    assert one.ahead(session, 99) == [(0, 4, 1)], "but what was readmitted"
    ((one, session),) = taking(1, stop_step=2)
    assert one.take(session, Cursor(0, 8), 1, split(8), idle=False).place is not None
    assert one.ahead(session, 99) == []
    assert one.take(session, Cursor(0, 15), 2, split(8), idle=False).place is None


def test_who_leaves_without_its_part_knows_of_the_step() -> None:
    ((one, session),) = taking(1)
    found = one.take(session, Cursor(), 0, split(8), idle=True)
    assert (found.ranges, found.reference) == ([], 8)
    assert found.place is not None and found.place.total == 8


# -- with tensors


def make(member: object, samples: int, place: Place) -> object:
    """One round: this member's part of the step at `place`."""
    member.take([(1, 0, 0, k, 1) for k in range(samples)], samples, 0, False, max(1, place.total), place=place)  # type: ignore[attr-defined]
    if samples:
        x = torch.rand(samples, 6, dtype=torch.float64)
        member.backward(mean_loss(member, x, x[:, :3]), samples)  # type: ignore[attr-defined, arg-type]
    return member.step()  # type: ignore[attr-defined]


def test_a_step_without_one_of_its_parts_is_none_and_comes_again() -> None:
    members = [replica() for _ in range(3)]
    place = Place((1, 0, 0, 0, 12), Cursor(0, 12), 12)
    with generation_of(members):
        each(3, lambda rank: make(members[rank], 4, place))
        before = [state_of(member) for member in members]
        found = each(3, lambda rank: make(members[rank], (4, 0, 4)[rank], place))
        assert [(one.total, one.applied) for one in found] == [(0, False)] * 3
        assert all(same(kept, state_of(member)) for kept, member in zip(before, members, strict=True))
        found = each(3, lambda rank: make(members[rank], 4, place))
        assert [one.applied for one in found] == [True] * 3
    assert {member.step_number for member in members} == {2}


def test_a_step_with_nothing_left_in_it_has_its_number() -> None:
    members = [replica() for _ in range(2)]
    with generation_of(members):
        before = [member.model.state_dict()["body.weight"].clone() for member in members]
        each(2, lambda rank: make(members[rank], 0, Place((1, 0, 0, 0, 3), Cursor(0, 3), 0)))
        assert all(torch.equal(a, m.model.state_dict()["body.weight"]) for a, m in zip(before, members, strict=True))
    lineage = next_lineage(ROOT, 1, (1, 0, 0, 3))
    assert [(m.step_number, m.lineage, m.cursor) for m in members] == [(1, lineage, Cursor(0, 3))] * 2
    assert members[0].pending[0].ranges == (1, 0, 0, 0, 3)


def test_the_place_travels_with_the_model() -> None:
    first, second = replica(), replica(seed=2)
    with generation_of([first]):
        make(first, 3, Place((1, 0, 0, 0, 3), Cursor(0, 3), 3))
    with generation_of([first, second], source=0):
        assert (second.cursor, second.step_number) == (Cursor(0, 3), 1)
    third = replica(seed=3)
    third.restore(first.snapshot())
    assert third.cursor == Cursor(0, 3)


def test_members_that_cut_a_step_otherwise_are_not_of_one_mind() -> None:
    members = [replica() for _ in range(2)]
    with generation_of(members), pytest.raises(Mismatch, match="split"):
        each(2, lambda rank: make(members[rank], 4, Place((1, 0, 0, 0, 8), Cursor(0, 8), 8, split=rank)))
