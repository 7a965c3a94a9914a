"""Taking over what others have not begun: which trail is followed, how much is asked for, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from antdt.worker.plans import Plans
from antdt.worker.session import Session, SessionOptions, Where
from antdt.worker.session.moves import Moves
from antdt_schemas import records
from antdt_schemas.colony import POLICY, ColonyParameters, parameters_of
from antdt_schemas.errors import Undecodable, UsageError
from antdt_schemas.records import Load, Status
from antdt_streams.policies import parameters
from antdt_streams.policies.find import find

from tests.unit.test_served_lives import grant, reply
from tests.unit.test_session import SPEC

COLONY = replace(SPEC, strategy="ps-asp/colony/servers=2", shard_size=10)
SLOW, FAST = Load("w1.0", 200, 100, 0, 100, 200), Load("w2.0", 100, 200, 0, 400, 100)


class Idle:
    """A worker of a colony that is leased nothing. rate: samples a second that it takes."""

    def __init__(self, spec: records.JobSpec = COLONY, rate: float = 100.0, name: str = "w0.0") -> None:
        self.session = Session("w0", name, spec, Where("h", 1), SessionOptions(rate_every_s=0.25))
        self.asked = self.session.tick(0.0)
        self.session.on_reply(reply(self.session, self.asked[0].number))
        self.session.on_reply(reply(self.session, -1, grant=grant()))
        self.moves = self.session.moves
        self.moves.rate = rate
        self.now_s = 1.0

    def hears(self, *loads: Load, after_s: float = 0.2) -> list[records.Move]:
        """What it is answered that has asked for samples; and for what it asks then."""
        self.now_s += after_s
        self.asked = self.session.tick(self.now_s)
        number = next(r.number for r in self.asked if isinstance(r.body, records.Lease))
        self.session.on_reply(reply(self.session, number, Status.WAIT, loads=loads))
        return self.turn(0.0)

    def turn(self, after_s: float) -> list[records.Move]:
        self.now_s += after_s
        self.asked = self.session.tick(self.now_s)
        return [r.body for r in self.asked if isinstance(r.body, records.Move)]

    def answered(self, status: Status) -> None:
        number = next(r.number for r in self.asked if isinstance(r.body, records.Move))
        self.session.on_reply(reply(self.session, number, status))


def test_of_a_worker_that_is_not_known_yet_half_is_taken_in_whole_shards_from_its_end() -> None:
    assert Idle().hears(SLOW) == [records.Move(1, "w1.0", 0, 200, 100)]
    assert Idle().hears(replace(SLOW, start=103, length=9, left=30)) == [records.Move(1, "w1.0", 0, 103, 9)]
    assert Idle().hears(Load("w1.0", 50, 0, 0, 100, 50)) == [records.Move(1, "w1.0", 0, 130, 20)], "not 25"
    assert Idle(rate=0.0).hears(SLOW) == [records.Move(1, "w1.0", 0, 200, 100)], "a newcomer"


def test_so_much_is_taken_that_both_end_together() -> None:
    """It does 300 samples a second, the other one 100: three quarters of what is left."""
    idle = Idle(rate=300.0)
    idle.hears(SLOW)
    idle.answered(Status.WAIT)
    assert idle.hears(replace(SLOW, left=160, done=140), after_s=0.4) == [records.Move(1, "w1.0", 0, 180, 120)]


def test_from_one_that_stands_still_all_is_taken_and_from_one_that_is_as_good_as_done_nothing() -> None:
    idle = Idle()
    idle.hears(SLOW)
    idle.answered(Status.WAIT)
    assert idle.hears(SLOW, after_s=1.0) == [records.Move(1, "w1.0", 0, 100, 200)]
    assert Idle().hears(Load("w1.0", 9, 0, 0, 291, 9)) == []


def test_less_than_the_least_is_not_worth_a_move() -> None:
    idle = Idle()
    idle.moves.parameters = ColonyParameters(shards_min=11)
    assert idle.hears(SLOW) == []
    idle.moves.parameters = ColonyParameters(shards_min=10)
    assert idle.hears(SLOW) == [records.Move(1, "w1.0", 0, 200, 100)]


def test_trails_gain_by_the_time_that_is_left_and_evaporate() -> None:
    idle = Idle()
    idle.moves.parameters = ColonyParameters(evaporation=0.5, reinforcement=2.0)
    idle.hears(SLOW, FAST)
    assert idle.moves.trails == {"w1.0": 2.0, "w2.0": 1.0}
    idle.answered(Status.WAIT)
    # w1 does 50 a second and has 180 left, 3.6 s; w2 does 200, and has 90 left: 0.45 s.
    idle.hears(replace(SLOW, left=180, done=120), replace(FAST, left=90, done=280), after_s=0.4)
    assert idle.moves.trails == {"w1.0": pytest.approx(3.0), "w2.0": pytest.approx(0.75)}
    idle.answered(Status.WAIT)
    idle.hears(FAST)
    assert list(idle.moves.trails) == ["w2.0"], "who has nothing left to begin leaves no trail"


def test_several_that_are_idle_do_not_all_take_from_the_same_one() -> None:
    chosen = [Idle(name=f"w0.{life}").hears(SLOW, FAST)[0].source for life in range(200)]
    assert 110 < chosen.count("w1.0") < 160, "in proportion to the trails, which are 2 to 1"
    assert chosen == [Idle(name=f"w0.{life}").hears(SLOW, FAST)[0].source for life in range(200)]


def test_one_move_is_asked_for_at_a_time_and_again_after_a_while() -> None:
    idle = Idle()
    assert idle.hears(SLOW)
    assert idle.hears(SLOW) == []
    assert idle.turn(0.4), "it was lost"


def test_what_was_heard_is_gone_by_once() -> None:
    idle = Idle()
    assert idle.hears(SLOW)
    idle.answered(Status.WAIT)
    assert idle.turn(1.0) == [], "it is as old as the last move"


def test_a_rate_is_not_measured_over_a_moment() -> None:
    idle = Idle()
    idle.hears(SLOW)
    idle.answered(Status.WAIT)
    idle.hears(replace(SLOW, left=199, done=101), after_s=0.1)
    assert idle.moves._peers["w1.0"].rate is None


@pytest.mark.parametrize(("status", "at_once"), [(Status.OK, True), (Status.WAIT, False)])
def test_what_was_taken_over_is_leased_at_once(status: Status, at_once: bool) -> None:
    idle = Idle()
    assert idle.hears(SLOW)
    idle.answered(status)
    idle.turn(0.01)
    assert any(isinstance(r.body, records.Lease) for r in idle.asked) == at_once


def test_who_has_samples_takes_nothing_over() -> None:
    idle = Idle()
    idle.now_s += 0.2
    number = next(r.number for r in idle.session.tick(idle.now_s) if isinstance(r.body, records.Lease))
    idle.session.on_reply(reply(idle.session, number, leases=(1, 7, 0, 0, 90), loads=(SLOW,)))
    assert idle.turn(0.0) == []
    idle.session.leases.take(80, 8)
    assert idle.turn(0.0), "it runs out"


def test_where_no_colony_is_meant_nothing_is_taken_over() -> None:
    assert Idle(replace(COLONY, strategy="ps-asp/even/servers=2")).hears(SLOW) == []


def test_another_generation_knows_nothing_of_the_one_before() -> None:
    moves = Moves("w0.0", SessionOptions())
    moves._observe((SLOW,), 1.0)
    moves.begin()
    assert moves.trails == {}


# -- parts are held as they may be


def test_nothing_that_was_dealt_is_given_back_where_nobody_else_may_have_it() -> None:
    for sharding, released in (("even", False), ("colony", True)):
        idle = Idle(replace(COLONY, strategy=f"ps-asp/{sharding}/servers=2"))
        idle.now_s += 0.2
        number = next(r.number for r in idle.session.tick(idle.now_s) if isinstance(r.body, records.Lease))
        idle.session.on_reply(reply(idle.session, number, leases=(1, 7, 0, 0, 200, 21, 7, 0, 200, 200)))
        idle.session.leases.observe(1, 2)
        found = [r for r in idle.session.tick(idle.now_s) if isinstance(r.body, records.Release)]
        assert bool(found) == released


def test_who_is_told_that_others_are_idle_holds_little() -> None:
    leases = Idle().session.leases
    leases.rate, leases.batch_size = 1000.0, 10
    much = leases._target()
    leases.observe(1, 2)
    assert leases._target() == leases._least() < much


# -- the policy


def test_the_policy_says_its_parameters_once_and_workers_go_by_them() -> None:
    policy = parameters.changed(find(POLICY), {"evaporation": "0.4", "shards_min": "3"})
    view = None
    proposals, memory = policy.decide(view, {})  # type: ignore[arg-type]
    assert len(proposals) == 1 and "3 or more shards" in proposals[0].reason
    assert policy.decide(view, memory)[0] == ()  # type: ignore[arg-type]
    decision = records.Decision(
        records.Cause(0, 5, 0), 0, records.Action.NONE, (), 1.0, 0, "", POLICY, 1, "", 0.0, 5, 5,
        parameters=parameters.stamp(policy),
    )  # fmt: skip
    plans = Plans(8)
    assert not plans.add(decision)
    assert plans.colony == ColonyParameters(0.4, 1.0, 3)
    plans.add(replace(decision, cause=records.Cause(0, 6, 0), policy="nd", parameters='{"evaporation":0.9}'))
    assert plans.colony == ColonyParameters(0.4, 1.0, 3), "those of another policy"


@pytest.mark.parametrize(
    "values", [{"evaporation": 0.0}, {"evaporation": 1.5}, {"shards_min": 0}, {"reinforcement": -1.0}]
)
def test_parameters_that_cannot_be_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        ColonyParameters(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("stamp", ["", "{}", "[1]", '{"evaporation":0,"reinforcement":1,"shards_min":1}'])
def test_a_stamp_that_no_controller_makes_is_refused(stamp: str) -> None:
    with pytest.raises(Undecodable, match="The parameters of ant-colony"):
        parameters_of(stamp)
