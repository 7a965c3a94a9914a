"""Backup workers under AllReduce: who takes part with no samples, for how long, and what workers make of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from antdt.worker.plans import Plans, Share, Split
from antdt.worker.session import Session, Where
from antdt.worker.session.leases import Held
from antdt.worker.taking import Leased
from antdt_schemas import batches, records
from antdt_schemas.batches import Cursor
from antdt_schemas.records import Action, Assignment
from antdt_schemas.strategies import carries_out, is_collective
from antdt_streams.policies import ClusterView, Memory, NodeView, Proposal, parameters
from antdt_streams.policies.find import find
from antdt_streams.policies.sparing import WAIT_MAX

from tests.helpers.ledger import SPEC
from tests.unit.test_plans import decision
from tests.unit.test_policies import node, view
from tests.unit.test_taking import STEPS, positions, split, taking


def cluster(*rates: float, sizes: tuple[int, ...] = (), **other: Any) -> list[NodeView]:
    """Workers of so many hundredths of a second a sample."""
    given = sizes or (100,) * len(rates)
    return [
        node(f"w{i}", rate / 100, batch_size=size, **other)
        for i, (rate, size) in enumerate(zip(rates, given, strict=True))
    ]


def shares(proposal: Proposal) -> list[int]:
    return [one.batch_size for one in proposal.assignments or ()]


class Follower:
    """The policy, obeyed at once: each view has what the last proposal gave."""

    def __init__(self, *rates: float, **changes: str) -> None:
        self.policy = parameters.changed(find("backup"), changes)
        self.rates, self.sizes = list(rates), [100] * len(rates)
        self.window, self.memory = 0, dict[str, Any]()
        self.said = list[tuple[int, Proposal]]()

    def turn(self, windows: int = 1, **other: Any) -> list[Proposal]:
        """So many windows go by; who takes no samples shows the speed that it had."""
        before = len(self.said)
        for _ in range(windows):
            seen = cluster(*self.shown(), sizes=tuple(self.sizes))
            found, memory = self.policy.decide(view(*seen, window=self.window, **other), self.memory)
            self.memory = dict(memory)
            for one in found:
                self.said.append((self.window, one))
                self.sizes = shares(one)
            self.window += 1
        return [one for _, one in self.said[before:]]

    def shown(self) -> list[float]:
        self._known = [
            rate if size else old
            for rate, size, old in zip(self.rates, self.sizes, getattr(self, "_known", self.rates), strict=True)
        ]
        return self._known


def test_the_slowest_takes_no_samples_where_the_others_are_faster_without_it() -> None:
    job = Follower(1, 3, 1, 1)
    (found,) = job.turn()
    assert (found.action, found.backup_workers, shares(found)) == (Action.BACKUP_WORKERS, 1, [134, 0, 133, 133])
    assert found.predicted_gain == pytest.approx(1 - 1.34 / 3)
    assert found.reason == "w1 needs 3.0x the time of the fastest: no samples, the others take all, step time -55 %"
    assert job.turn(9) == [], "and stays so"


@pytest.mark.parametrize("rates", [(1, 1.38, 1, 1), (1, 1, 1, 1), (1, 2)])
def test_nobody_is_spared_whose_part_would_cost_the_others_more(rates: tuple[float, ...]) -> None:
    assert Follower(*rates).turn(20) == []


def test_one_of_many_is_spared_for_less() -> None:
    (found,) = Follower(*[1] * 15, 1.2).turn()
    assert shares(found)[15] == 0 and found.predicted_gain == pytest.approx(0.11, abs=0.01)


def test_as_many_are_spared_as_are_asked_for_and_help() -> None:
    assert shares(Follower(3, 1, 5, 1, 1, 1, workers="2").turn()[0]) == [0, 150, 0, 150, 150, 150]
    assert shares(Follower(3, 1, 1, 1, 1, 1, workers="2").turn()[0]) == [0, *[120] * 5]
    assert Follower(3, 1, 1, workers="0").turn(5) == []
    assert shares(Follower(9, 1, workers="7").turn()[0]) == [0, 200], "somebody has to"


@pytest.mark.parametrize(
    "held",
    [{"urgent": True}, {"pending": True}, {"rotating": True}, {"strategy": "local-sgd/every=8"}, {"nodes": ()}],
)
def test_what_speaks_against_it(held: dict[str, Any]) -> None:
    seen = {"nodes": tuple(cluster(1, 3, 1, 1)), **held}
    found, _ = find("backup").decide(view(*seen.pop("nodes"), **seen), {})
    assert not [one for one in found if one.assignments]


def test_a_rate_that_noise_explains_is_no_reason() -> None:
    seen = [*cluster(1, 1, 1), node("w3", 1.6e-2, rate_error=0.1)]
    assert find("backup").decide(view(*seen), {})[0] == ()
    assert find("backup").decide(view(*seen[:3], replace(seen[3], rate_error=0.01)), {})[0]


def test_who_holds_less_than_the_others_share_would_be_goes_on_in_parts() -> None:
    """Two parts of 67 samples, each with its fixed cost: that is more than is gained."""
    held = [node(f"w{i}", 1e-2, batch_size_max=120, fixed_s=1.0) for i in (0, 2, 3)]
    assert find("backup").decide(view(*held, node("w1", 1.7e-2, fixed_s=1.0)), {})[0] == ()
    roomy = [replace(one, batch_size_max=0) for one in held]
    assert find("backup").decide(view(*roomy, node("w1", 1.7e-2, fixed_s=1.0)), {})[0]


# -- tried, and back


def test_who_is_still_slow_is_tried_after_twice_as_long_each_time() -> None:
    job = Follower(1, 3, 1, 1)
    job.turn(1000)
    tries = [at for at, one in job.said if "tried with 25 samples" in one.reason]
    waits = [after - at for at, after in itertools.pairwise(tries)]
    assert tries[0] == 10
    assert waits[:4] == [23, 43, 83, 163] and max(waits) == 10 * WAIT_MAX + 3
    over = next(one for at, one in job.said if at > tries[0])
    assert over.reason.startswith("w1 needs 3.0x the time of the fastest, still: no samples")
    assert (over.backup_workers, shares(over)) == (1, [134, 0, 133, 133])


def test_who_is_well_again_has_its_share_again() -> None:
    job = Follower(1, 3, 1, 1)
    job.turn(5)
    job.rates[1] = 1.0
    assert job.turn(5) == [], "nobody sees that"
    (tried,) = job.turn()
    assert (tried.backup_workers, shares(tried)) == (0, [125, 25, 125, 125])
    (back,) = job.turn()
    assert (back.backup_workers, shares(back)) == (0, [100] * 4)
    assert back.reason == "w1 needs 1.0x the time of the fastest: an even share again, step time -20 %"
    job.rates[1] = 3.0
    assert job.turn()[0].backup_workers == 1
    assert not any("tried" in one.reason for one in job.turn(19)), "it has been spared before"
    assert any("tried" in one.reason for one in job.turn(2))


def test_the_share_comes_back_among_many_too_though_hardly_anything_is_gained() -> None:
    job = Follower(*[1] * 63, 3)
    job.turn(5)
    job.rates[63] = 1.01
    assert job.turn(10)[-1].backup_workers == 0 and job.sizes == [100] * 64


def test_nothing_is_known_of_other_incarnations() -> None:
    job = Follower(1, 3, 1, 1)
    job.turn(3)
    seen = cluster(1, 3, 1, 1, sizes=tuple(job.sizes))
    seen[1] = replace(seen[1], incarnation="w1.1.l", seconds_per_sample=None)
    (found,), memory = job.policy.decide(view(*seen, window=3), job.memory)
    assert (found.backup_workers, shares(found)) == (0, [100] * 4)
    assert found.reason == "who was spared is not known to be slow any more: all take as much"
    even = [replace(one, batch_size=100) for one in seen]
    assert job.policy.decide(view(*even, window=4), memory)[0] == (), "before its speed is known"


def test_a_policy_that_takes_over_leaves_who_is_spared_and_even_takes_it_back() -> None:
    seen = view(*cluster(1, 3, 1, 2, sizes=(134, 0, 133, 133)), plan=1, backup_workers=1)
    for name in ("nd", "adjust-bs", "lb-bsp", "dd"):
        (found,), _ = find(name).decide(seen, {})
        assert {a.worker: a.batch_size for a in found.assignments or ()}["w1"] == 0, name
    (back,), _ = find("even").decide(seen, {})
    assert (back.action, back.backup_workers, shares(back)) == (Action.BACKUP_WORKERS, 0, [100] * 4)


def test_under_servers_it_is_k_of_n() -> None:
    nodes = cluster(1, 1, 1)
    found, _ = find("backup").decide(view(*nodes, strategy="ps-bsp/servers=1"), {})
    assert [one.assignments for one in found] == [None, None] and found[0].backup_workers == 1


# -- what workers make of it


@pytest.mark.parametrize(
    ("name", "can"),
    [("allreduce", True), ("allreduce/unit=8", True), ("local-sgd/every=8", False), ("ps-asp/servers=2", False)],
)
def test_which_strategies_carry_it_out(name: str, can: bool) -> None:
    assert is_collective(name) == carries_out(name, Action.BACKUP_WORKERS) == can


def test_who_has_no_weight_gets_nothing_where_that_is_meant() -> None:
    assert batches.split(64, [21, 0, 22, 21]) == [20, 1, 22, 21]
    assert batches.split(64, [21, 0, 22, 21], spares=True) == [21, 0, 22, 21]
    assert batches.split(7, [0, 1, 1], least=2, spares=True) == [0, 3, 4]
    assert batches.split(4, [0, 0], spares=True) == [2, 2], "somebody has to"


def test_a_plan_with_backup_workers_leaves_a_share_of_nothing_empty_and_others_do_not() -> None:
    plans = Plans(8)
    given = (Assignment("w0", 8, 1), Assignment("w1", 0, 1))
    plans.add(decision(1, Action.BACKUP_WORKERS, assignments=given, backup_workers=1))
    plans.add(decision(2, Action.ADJUST_BS, assignments=given))
    assert plans.split(1, ["w0", "w1"]) == Split([Share(8), Share(0)], 8, spares=True)
    assert not plans.split(2, ["w0", "w1"]).spares
    assert plans.split(1, ["w0", "w2"]).shares == [Share(4), Share(4)], "made for others"


@pytest.mark.parametrize("unit", [0, 2])
def test_a_step_is_the_same_when_somebody_takes_none_of_it(unit: int) -> None:
    spec = replace(STEPS, strategy=f"allreduce/unit={unit}" if unit else "allreduce")
    spared = Split(split(4, 0, 4).shares, 8, spares=True)
    members = taking(3, spec)
    parts = [one.take(session, Cursor(), 0, spared, idle=False) for one, session in members]
    assert [len(positions(part)) for part in parts] == [4, 0, 4]
    assert sorted(p for part in parts for p in positions(part)) == [(0, k) for k in range(8)]
    assert len({part.place for part in parts}) == 1 and parts[1].place is not None


def test_the_first_member_always_runs_the_loops_body() -> None:
    members = taking(3, replace(STEPS, local_batch_min=2))
    spared = Split(split(0, 4, 4).shares, 8, spares=True)
    parts = [one.take(session, Cursor(), 0, spared, idle=False) for one, session in members]
    assert [len(positions(part)) for part in parts] == [2, 3, 3]


def test_who_holds_samples_on_lease_takes_one_a_step() -> None:
    session = Session("w0", "w0.0", SPEC, Where("h", 1))
    session.rank = 0
    session.leases.held.append(Held(1, 7, 0, 0, 0, 5))
    session.leases.untaken = 5
    taken = Leased(8, 1).take(session, Cursor(), 0, Split([Share(0), Share(8)], 8, spares=True), idle=False)
    assert [r.length for r in taken.ranges] == [1]


def test_a_memory_is_json_and_a_proposal_is_absolute() -> None:
    policy, memory = find("backup"), dict[str, Any]()
    seen: ClusterView = view(*cluster(1, 3, 1, 1))
    first, kept = policy.decide(seen, memory)
    again: tuple[tuple[Proposal, ...], Memory] = policy.decide(seen, memory)
    assert (first, kept) == again and memory == {}
    assert records.Action.BACKUP_WORKERS is first[0].action
