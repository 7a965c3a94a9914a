"""What people order of a Controller: that somebody is started again, and that another policy decides from now on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import codec
from antdt_schemas.errors import Mismatch, UsageError
from antdt_schemas.records import Action, Cause, Decision, Effect, Parameter, Steering, Verdict
from antdt_schemas.topics import DECISIONS
from antdt_streams.controller.core.lives import RESTARTS_MAX, is_later
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.controller.service import promotable, service
from antdt_streams.policies import ClusterView, Memory, Proposal
from antdt_streams.policies.find import READY, find
from antdt_streams.policies.restarts import BARRED, RestartParameters, Restarts
from antdt_streams.runtime.memory import MemoryDriver
from antdt_streams.storage.rows import Position

from tests.unit.test_effects import BALANCE, Script, fed, measured, node, told

WHO = "Ada by root@host:7"
W1 = "w1.0.l"


def steer(state: ControllerState, at: int, **said: Any) -> Decision:
    record = Steering(WHO, **said)
    assert codec.decode(codec.encode(record), Steering) == record
    out = state.process(record, Position(0, at), 1000 * at)
    assert [d.cause.index for d in out] == list(range(len(out)))
    assert codec.decode(codec.encode(out[0]), Decision) == out[0]
    return out[0]


def restart(state: ControllerState, at: int, incarnation: str = W1) -> Decision:
    return steer(state, at, restart=incarnation, reason="its disk is new")


def promote(state: ControllerState, at: int, name: str, **parameters: str) -> Decision:
    given = tuple(Parameter(key, value) for key, value in parameters.items())
    return steer(state, at, promote=name, parameters=given, reason="calm")


# -- somebody is started again


@pytest.mark.parametrize("name", sorted(READY))
def test_a_restart_is_ordered_under_every_policy(name: str) -> None:
    state = ControllerState(find(name))
    fed(state, [measured(1)])
    found = restart(state, 2)
    assert (found.action, found.target, found.author) == (Action.KILL_RESTART, W1, WHO)
    assert found.reason == f"{WHO} orders it: its disk is new"
    assert (found.plan, found.policy, state.trials.restarting) == (0, name, ("w1",))


def test_it_is_acknowledged_by_the_next_life_and_measured_like_any_other() -> None:
    policy = Script()
    state = ControllerState(policy)
    fed(state, [measured(n) for n in range(5)])
    restart(state, 5)
    away = [measured(n, 500.0, nodes=(node("w0"),)) for n in range(6, 9)]
    effect = told(fed(state, [*away, *(measured(n, 900.0, life=1) for n in range(9, 16))])).effect
    assert effect is not None
    assert (effect.worker, effect.delay_s, effect.verdict) == ("w1", 4.0, Verdict.HARMED)
    assert [view.restarting for view in policy.seen[5:10]] == [("w1",)] * 3 + [(), ()]
    assert {view.restarted_ms for view in policy.seen[5:]} == {5000}


def test_a_life_before_the_one_that_is_to_go_acknowledges_nothing() -> None:
    """It has joined and is not measured yet, as one that hangs at its start."""
    state = ControllerState(Script())
    fed(state, [measured(1)])
    assert restart(state, 2, "w1.1.l").action is Action.KILL_RESTART
    fed(state, [measured(3)])
    assert state.trials.restarting == ("w1",)
    fed(state, [measured(4, life=2)])
    assert state.trials.restarting == ()
    assert not is_later("w1.0.l", "w1.0.l") and is_later("w1.10.l", "w1.9.l") and is_later("w1.0.m", "w1.3.l")


@pytest.mark.parametrize(
    ("incarnation", "said"),
    [
        ("w1", "'w1' is no incarnation"),
        (".0.l", "'.0.l' is no incarnation"),
        ("w1.0.l", "w1.0.l is over: w1 is w1.2.l by now"),
    ],
)
def test_who_is_not_there_is_not_started_again(incarnation: str, said: str) -> None:
    state = ControllerState(Script())
    fed(state, [measured(1, life=2)])
    before = state.digest()
    answer = restart(state, 2, incarnation)
    assert (answer.action, answer.target, answer.author) == (Action.NONE, "", "")
    assert answer.reason.startswith(f"refused: {said}")
    assert state.digest() == before


def test_whoever_is_being_started_again_is_not_again_and_not_all_at_once_are() -> None:
    state = ControllerState(Script(w3=Proposal(Action.KILL_RESTART, "w1 is sick", 0.5, target=W1)))
    fed(state, [measured(1), measured(3)])
    assert restart(state, 4).reason == "refused: w1 is being started again already"
    for number in range(2, RESTARTS_MAX + 1):
        assert restart(state, 3 + number, f"w{number}.0.l").action is Action.KILL_RESTART
    assert restart(state, 20, "w99.0.l").reason.startswith(f"refused: {RESTARTS_MAX} others are being started again")
    assert len(state.trials.restarting) == RESTARTS_MAX


def test_a_job_that_is_only_watched_has_nobody_who_would() -> None:
    state = ControllerState(Script())
    fed(state, [measured(1, strategy="watched")])
    assert restart(state, 2).reason == "refused: nobody carries it out: this job's strategy is watched"


def test_neither_cooldown_nor_cap_of_the_policy_hold_it_up_and_the_cooldown_sees_it() -> None:
    state = ControllerState(find("nd"))
    fed(state, [measured(1)])
    for life in range(4):  # within a cooldown, and more often than restarts_max
        assert restart(state, 2 + 2 * life, f"w1.{life}.l").action is Action.KILL_RESTART
        fed(state, [measured(3 + 2 * life, life=life + 1)])
    rule, view = Restarts(RestartParameters(cooldown_s=120.0)), seen(state, 100)
    assert (view.restarting, view.restarted_ms) == ((), 8000)
    assert rule.held_back(view, {}) == "the last one was a moment ago"
    assert rule.held_back(seen(state, 200), {}) == ""


def seen(state: ControllerState, at: int) -> ClusterView:
    return state.view(measured(at, life=9), 1000 * at)


@pytest.mark.parametrize(("predicted", "barred"), [(0.0, []), (0.3, ["w1"])])
def test_what_a_person_orders_without_a_prediction_is_not_in_vain(predicted: float, barred: list[str]) -> None:
    what = Cause(0, 1, 0), Action.KILL_RESTART, 0, "w1"
    effect = Effect(*what, predicted, -0.01, 0.01, 4, 5, 1.0, Verdict.NO_EFFECT)
    view = replace(seen(ControllerState(Script()), 3), effects=(effect,))
    assert Restarts(RestartParameters()).remember(view, {})[BARRED] == barred


class World:
    """A Controller of the runtime, whose process may die, lose its state, or be of another version."""

    def __init__(self, policy: str = "even") -> None:
        self.driver = MemoryDriver(service(policy), "j")
        self.topic = self.driver.service.input.name("j")

    def hear(self, *said: Any) -> list[Decision]:
        for one in said:
            self.driver.topics.append(self.topic, codec.encode(one))
        self.driver.run()
        return self.decided()

    def again(self, policy: str, version: int) -> None:
        self.driver.service = replace(service(policy), version=version)
        self.driver.restart()
        self.driver.run()

    def decided(self) -> list[Decision]:
        return [d for d in self.driver.outputs(DECISIONS) if d.effect is None]

    @property
    def state(self) -> ControllerState:
        found: ControllerState = self.driver.runner.state
        return found


def test_an_order_that_is_read_again_starts_nobody_again() -> None:
    world = World()
    order = Steering(WHO, restart=W1)
    (found,) = world.hear(measured(1), order)
    digest = world.state.digest()
    world.driver.restart()
    assert world.hear() == [found] and world.state.digest() == digest, "a process of the same version"
    world.again("even", 99)
    assert world.decided() == [found] and world.state.digest() == digest, "and one that rebuilds its state"
    assert world.state.trials.restarting == ("w1",)
    assert world.hear(order)[-1].reason == "refused: w1 is being started again already", "a copy of the record"
    assert world.hear(measured(4, life=1), order)[-1].reason.startswith("refused: w1.0.l is over")
    assert [d.action for d in world.decided()].count(Action.KILL_RESTART) == 1


# -- another policy decides


class Counts:
    """Remembers how often it was asked."""

    name, version = "counts", 4

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        return (), {"asked": memory.get("asked", 0) + 1}


def test_a_policy_that_is_promoted_decides_from_that_record_on_without_what_another_remembers() -> None:
    state = ControllerState(Counts(), find=find)
    fed(state, [measured(1), measured(2)])
    assert state.memory == {"asked": 2}
    found = promote(state, 3, "nd", gain_min="0.08", restart="off")
    assert found.reason == (
        f"policy nd with gain_min=0.08, restart=off decides from here on, in place of counts, says {WHO}: calm"
    )
    assert (found.action, found.policy, found.policy_version, found.author) == (Action.NONE, "nd", 1, WHO)
    stamped = json.loads(found.parameters)
    assert (stamped["gain_min"], stamped["restart"], state.memory) == (0.08, False, {})
    (next_,) = state.process(Steering(WHO), Position(0, 4), 4000)
    assert (next_.policy, next_.parameters) == (found.policy, found.parameters)
    again = ControllerState.load(state.rows(), Counts(), find=find)
    assert again.digest() == state.digest() and again.policy.name == "nd"
    assert fed(again, [measured(5)]) == fed(state, [measured(5)])
    assert promote(again, 6, "even").policy == "even" and again.told.changes == {}


def test_what_is_in_force_and_what_was_measured_stays() -> None:
    state = ControllerState(Script(w4=BALANCE), find=find)
    fed(state, [measured(n) for n in range(5)])
    promote(state, 5, "none")
    (found,) = fed(state, [measured(n, 1340.0, plan=1) for n in range(6, 12)])
    assert found.effect is not None and found.effect.verdict is Verdict.HELPED
    assert (found.policy, found.plan, [a.batch_size for a in found.assignments]) == ("none", 1, [40, 24])


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("best", {}, "No policy 'best': take one of "),
        ("even", {}, "even decides already: `antdt policy set` changes its parameters"),
        ("nd", {"gain_mni": "1"}, "Policy nd has no parameter 'gain_mni': take one of "),
        ("nd", {"gain_min": "9"}, "Take 0 < gain_min"),
        ("backup-drop", {}, "policy backup-drop works under ps-bsp/drop only, and this job's strategy is allreduce"),
        ("/elsewhere/mine.py:Mine", {}, "/elsewhere/mine.py is not in "),
        ("./gone.py:Mine", {}, "No policy in gone.py: there is no such file"),
    ],
)
def test_what_cannot_decide_here_is_refused_and_nothing_has_changed(
    name: str, given: dict[str, str], said: str
) -> None:
    state = ControllerState(find("even"), find=promotable)
    fed(state, [measured(1)])
    before = state.digest()
    answer = promote(state, 2, name, **given)
    assert answer.reason.startswith(f"refused: {said}"), answer.reason
    assert (answer.policy, answer.author, state.digest()) == ("even", "", before)


def test_a_policy_is_promoted_only_in_place_of_the_one_that_is_meant() -> None:
    state = ControllerState(find("even"), find=find)
    assert steer(state, 1, promote="nd", policy="dd").reason == "refused: the policy is even, not dd"


MINE = "class Mine:\n    name, version = 'mine', 1\n    def decide(self, view, memory):\n        return (), memory\n"


def test_a_file_of_the_users_is_promoted_where_the_controller_can_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text("import nothing_of_this_name\n")
    state = ControllerState(find("even"), find=promotable)
    assert "cannot be loaded: ModuleNotFoundError" in promote(state, 1, f"{file}:Mine").reason
    file.write_text(MINE)
    assert promote(state, 2, f"{file}:Mine").policy == "mine"
    file.unlink()
    with pytest.raises(UsageError, match=r"which was promoted, cannot be loaded any more: .* Put it back, or name"):
        ControllerState.load(state.rows(), find("even"), find=promotable)
    other = ControllerState.load(state.rows(), find("none"), find=promotable)
    assert other.policy.name == "none", "whoever names another policy at the start means it"
    monkeypatch.chdir("/")
    assert "is not in /" in promote(other, 3, f"{file}:Mine").reason


def test_what_was_promoted_decides_after_a_restart_and_after_a_rebuild() -> None:
    world = World()
    world.hear(measured(1), Steering(WHO, promote="nd", parameters=(Parameter("restart", "off"),)), measured(3))
    digest = world.state.digest()
    world.driver.restart()
    assert (world.state.policy.name, world.state.digest()) == ("nd", digest)
    world.again("even", 98)
    assert (world.state.policy.name, world.state.digest()) == ("nd", digest)
    assert world.state.told.changes == {"restart": "off"}
    assert len(world.decided()) == 1, "nobody is answered twice"


def test_a_controller_that_is_started_with_another_policy_has_that_one_also_when_it_rebuilds() -> None:
    world = World()
    world.hear(measured(1), Steering(WHO, promote="nd"))
    world.driver.service = service("none")
    world.driver.restart()
    assert world.state.policy.name == "none"
    assert world.hear(Steering(WHO))[-1].policy == "none"
    world.again("none", 98)
    assert world.state.policy.name == "none"


def test_a_rebuild_without_the_policy_that_was_promoted_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    world = World()
    assert world.hear(measured(1), Steering(WHO, promote="mine.py:Mine"))[-1].policy == "mine"
    (tmp_path / "mine.py").unlink()
    with pytest.raises(
        Mismatch, match=r"The policy that Ada .* promoted differs: expected mine, .*there is no such file\. Put it back"
    ):
        world.again("even", 98)
    (tmp_path / "mine.py").write_text(MINE)
    world.again("even", 98)
    assert world.state.policy.name == "mine"


def test_an_order_that_an_older_controller_did_not_understand_changes_nothing_later() -> None:
    """It answered something else, or nothing: what workers have is what was written then."""
    state = ControllerState(find("even"), find=find)
    for at, order in enumerate((Steering(WHO, promote="nd"), Steering(WHO, restart=W1))):
        state.follow(order, Position(0, at), 0, ())
    assert (state.policy.name, state.trials.restarting) == ("even", ())


# -- what was said of a decision stands


def test_a_policy_is_told_the_verdict_that_was_written_whatever_these_rules_would_say() -> None:
    """Version 2 called a loss harm that was predicted and taken into account: version 3 does not."""
    script: dict[str, Any] = {"w4": replace(BALANCE, predicted_gain=-0.3)}
    records = [*(measured(n) for n in range(5)), *(measured(n, 800.0, plan=1) for n in range(5, 12))]
    first = ControllerState(Script(**script))
    written = {one.window: first.process(one, Position(0, one.window), 1000 * one.window) for one in records}
    (at,) = [window for window, said in written.items() if any(d.effect for d in said)]
    (said,) = written[at]
    assert said.effect is not None and said.effect.verdict is not Verdict.HARMED
    written[at] = [replace(said, effect=replace(said.effect, verdict=Verdict.HARMED))]
    policy = Script(**script)
    again = ControllerState(policy)
    for one in records:
        again.follow(one, Position(0, one.window), 1000 * one.window, written[one.window])
    assert {e.verdict for view in policy.seen for e in view.effects} == {Verdict.HARMED}
    assert [e.verdict for e in again.trials.done] == [Verdict.HARMED]
