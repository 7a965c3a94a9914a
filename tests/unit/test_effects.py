"""What the Controller measures of its decisions, what operators tell it, and what it refuses: all recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from antdt_schemas import codec
from antdt_schemas.records import (
    Action,
    Assignment,
    Cause,
    Cluster,
    Decision,
    Measurement,
    NodeClass,
    NodeMeasurement,
    Parameter,
    Steering,
    Verdict,
)
from antdt_streams.controller.core.effects import verdict_of
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.controller.service import service
from antdt_streams.policies import ClusterView, Memory, Policy, Proposal
from antdt_streams.policies.find import find
from antdt_streams.runtime.memory import MemoryDriver
from antdt_streams.storage.rows import Position

SHARES = (Assignment("w0", 40, 1), Assignment("w1", 24, 1))
BALANCE = Proposal(Action.ADJUST_BS, "w1 is slow", 0.25, SHARES)
RESTART = Proposal(Action.KILL_RESTART, "w1 is sick", 0.5, target="w1.0.l")


class Script:
    """Proposes one thing after the other, at these windows; keeps what it saw."""

    name, version = "script", 1

    def __init__(self, **at: Proposal) -> None:
        self.at, self.seen = {int(window[1:]): one for window, one in at.items()}, list[ClusterView]()

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        self.seen.append(view)
        found = self.at.get(view.window)
        return (() if found is None else (found,)), memory


def node(worker: str, life: int = 0, known: bool = True) -> NodeMeasurement:
    rate = 1e-3 if known else float("nan")
    who = worker, f"{worker}.{life}.l", "worker"
    return NodeMeasurement(*who, NodeClass.HEALTHY, 0.0, rate, 0.01, 0.0, 32, 0, 0)


def measured(window: int, rate: float = 1000.0, plan: int = 0, life: int = 0, **other: Any) -> Measurement:
    """A window of two workers that go on at a rate, in samples a second."""
    given: dict[str, Any] = {
        "cause": Cause(0, window, 0), "window": window, "urgent": False, "generation": 1, "last_step": 5 * window + 4,
        "plan": plan, "nodes": (node("w0"), node("w1", life)), "rotating": False, "structural": (), "loss": 0.0,
        "first_offset": 0, "last_offset": window, "strategy": "allreduce", "step_s": 64 / rate, "samples_per_s": rate,
    }  # fmt: skip
    return Measurement(**{**given, **other})


def fed(state: ControllerState, records: list[Measurement]) -> list[Decision]:
    out = []
    for one in records:
        found = state.process(one, Position(0, one.window), 1000 * one.window)
        assert [d.cause for d in found] == [Cause(0, one.window, i) for i in range(len(found))]
        out += found
    return out


def told(decisions: list[Decision]) -> Decision:
    """The one that says what has come of another."""
    (found,) = [d for d in decisions if d.effect is not None]
    assert found.effect is not None
    assert (found.action, found.plan) == (Action.NONE, decisions[-1].plan)
    assert codec.decode(codec.encode(found), Decision) == found
    return found


def test_what_a_plan_saved_is_measured_and_said() -> None:
    policy = Script(w4=BALANCE)
    before = [measured(n, 1000.0 + 10 * (n % 2)) for n in range(5)]
    late = [measured(5, 1000.0), measured(6, 1100.0, plan=1)]  # it comes into effect amid window 6
    after = [measured(n, 1340.0 + 10 * (n % 3), plan=1) for n in range(7, 14)]
    found = fed(ControllerState(policy), [*before, *late, *after])
    said = told(found)
    effect = said.effect
    assert effect is not None
    assert (effect.decision, effect.action, effect.plan) == (Cause(0, 4, 0), Action.ADJUST_BS, 1)
    assert (effect.in_effect_step, effect.delay_s, effect.windows) == (34, 2.0, 4)
    assert effect.measured_gain == pytest.approx(0.25, abs=0.02)
    assert (effect.predicted_gain, effect.verdict) == (0.25, Verdict.HELPED)
    assert said.reason == "plan 1 (ADJUST_BS) was to save 25 % of the step time and saved 26 ± 1 %: helped"
    assert policy.seen[-1].effects == (effect,), "a policy sees it"
    assert not policy.seen[9].effects


@pytest.mark.parametrize(
    ("rate", "verdict"), [(1010.0, Verdict.NO_EFFECT), (800.0, Verdict.HARMED), (1500.0, Verdict.HELPED)]
)
def test_a_restart_is_measured_once_the_next_life_is(rate: float, verdict: Verdict) -> None:
    policy = Script(w4=RESTART)
    away = [measured(n, 500.0, nodes=(node("w0"),)) for n in range(5, 9)]
    back = measured(9, 600.0, nodes=(node("w0"), node("w1", 1, known=False)))
    records = [*(measured(n) for n in range(5)), *away, back, *(measured(n, rate, life=1) for n in range(10, 16))]
    effect = told(fed(ControllerState(policy), records)).effect
    assert effect is not None
    assert (effect.worker, effect.verdict, effect.in_effect_step, effect.delay_s) == ("w1", verdict, 54, 6.0)
    seen = policy.seen
    assert [bool(view.restarting) for view in seen[3:12]] == [False, False, True, True, True, True, True, False, False]
    assert seen[7].restarting == ("w1",)
    assert seen[-1].restart_s == 6.0, "which is what the next one is reckoned with"


def test_a_restart_that_nobody_carries_out_is_said() -> None:
    state = ControllerState(Script(w1=RESTART))
    found = fed(state, [measured(n) for n in (0, 1, 2, 600, 1000)])
    effect = told(found).effect
    assert effect is not None
    assert (effect.verdict, effect.in_effect_step, effect.windows) == (Verdict.NOT_CARRIED_OUT, -1, 0)
    assert found[-1].reason.endswith("nobody has carried it out")


def test_of_decisions_in_a_row_each_is_measured_by_what_lies_between() -> None:
    policy = Script(w3=BALANCE, w7=replace(BALANCE, predicted_gain=0.1))
    rates = [1000.0] * 4 + [1100.0] * 4 + [1200.0] * 8
    records = [measured(n, rate, plan=(n > 3) + (n > 7)) for n, rate in enumerate(rates)]
    effects = [d.effect for d in fed(ControllerState(policy), records) if d.effect is not None]
    assert [(e.plan, round(e.measured_gain, 2)) for e in effects] == [(1, 0.09), (2, 0.08)]


def test_pauses_of_all_do_not_move_what_is_measured() -> None:
    rates = [1000.0, 1000.0, 200.0, 1000.0, 1000.0, 1000.0, 1300.0, 1300.0, 200.0, 1300.0, 1300.0, 1300.0]
    records = [measured(n, rate, plan=int(n > 5)) for n, rate in enumerate(rates)]
    effect = told(fed(ControllerState(Script(w5=BALANCE)), records)).effect
    assert effect is not None
    assert effect.measured_gain == pytest.approx(1 - 1000 / 1300, abs=0.001)


@pytest.mark.parametrize(
    ("predicted", "gain", "error", "verdict"),
    [
        (0.3, 0.28, 0.02, Verdict.HELPED),
        (0.3, 0.01, 0.02, Verdict.NO_EFFECT),
        (0.3, 0.09, 0.05, Verdict.UNCLEAR),
        (0.3, -0.2, 0.02, Verdict.HARMED),
        (0.0, 0.005, 0.01, Verdict.UNCLEAR),
    ],
)
def test_verdicts(predicted: float, gain: float, error: float, verdict: Verdict) -> None:
    assert verdict_of(predicted, gain, error) is verdict


def test_effects_survive_a_restart() -> None:
    records = [measured(n, 1000.0 + 300 * (n > 6), plan=int(n > 5)) for n in range(16)]
    whole = ControllerState(Script(w4=BALANCE))
    expected = fed(whole, records)
    rows, state, found = dict[bytes, bytes](), ControllerState(Script(w4=BALANCE)), list[Decision]()
    for record in records:
        found += fed(state, [record])
        rows.update((key, row) for key, row in state.changes().items() if row is not None)
        assert rows == state.rows()
        state = ControllerState.load(rows, Script(w4=BALANCE))
    assert found == expected
    assert state.digest() == whole.digest()


# -- what operators say


def steer(state: ControllerState, at: int, **said: Any) -> Decision:
    changes = tuple(Parameter(name, value) for name, value in said.pop("set", {}).items())
    (answer,) = state.process(Steering("ops", parameters=changes, **said), Position(0, at), 1000 * at)
    assert (answer.action, answer.cause) == (Action.NONE, Cause(0, at, 0))
    return answer


def test_a_parameter_is_changed_by_a_record_and_stamped_into_decisions() -> None:
    state = ControllerState(find("adjust-bs"))
    slow = measured(0, nodes=(node("w0"), replace(node("w1"), seconds_per_sample=1.2e-3)))
    answer = steer(state, 0, set={"gain_min": "0.3"}, reason="calm down")
    assert answer.reason == "gain_min=0.3, says ops: calm down"
    assert json.loads(answer.parameters)["gain_min"] == 0.3
    assert not fed(state, [slow])
    again = ControllerState.load(state.rows(), find("adjust-bs"))
    assert not fed(again, [replace(slow, cause=Cause(0, 1, 0), window=1)]), "a restart changes nothing"
    assert steer(again, 2, set={"gain_min": ""}).reason == "gain_min=its default, says ops"
    (found,) = fed(again, [replace(slow, cause=Cause(0, 3, 0), window=3)])
    assert json.loads(found.parameters)["gain_min"] == 0.05
    other = ControllerState.load(state.rows(), find("nd"))
    assert other.told.changes == {}, "another policy has parameters of its own"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({"set": {"gain_mni": "1"}}, "refused: Policy adjust-bs has no parameter 'gain_mni': take one of "),
        ({"set": {"gain_min": "9"}}, "refused: Take 0 < gain_min"),
        ({"set": {"gain_min": "0.1"}, "policy": "dd"}, "refused: the policy is adjust-bs, not dd"),
    ],
)
def test_what_the_policy_does_not_take_changes_nothing(said: dict[str, Any], answer: str) -> None:
    state = ControllerState(find("adjust-bs"))
    digest = state.digest()
    assert steer(state, 0, **said).reason.startswith(answer)
    assert state.digest() == digest


def test_the_cluster_is_busy_while_somebody_says_so() -> None:
    policy = Script()
    state = ControllerState(policy)
    said = steer(state, 1, cluster=Cluster.BUSY, busy_s=10.0, reason="queue is full")
    assert said.reason == "the cluster is busy for 10 s, says ops: queue is full"
    fed(state, [measured(2), measured(10), measured(11)])
    assert [view.busy for view in policy.seen] == ["ops says so: queue is full"] * 2 + [""]
    steer(state, 12, cluster=Cluster.BUSY)
    fed(state, [measured(900)])
    assert policy.seen[-1].busy == "ops says so"
    steer(state, 901, cluster=Cluster.FREE)
    fed(state, [measured(902)])
    assert not policy.seen[-1].busy


def test_what_operators_said_is_in_the_order_of_measurements_and_replayed() -> None:
    """Through the runtime: a Controller whose state is gone answers nobody twice, and knows what it was told."""
    driver = MemoryDriver(service("adjust-bs"), "j")
    topic = driver.service.input.name("j")
    driver.topics.append(topic, codec.encode(Steering("ops", parameters=(Parameter("gain_min", "0.3"),))))
    driver.topics.append(topic, codec.encode(measured(1)))
    driver.run()
    (answer,) = driver.outputs(next(iter(driver.service.outputs.values())))
    assert answer.reason == "gain_min=0.3, says ops"
    driver.service = replace(driver.service, version=99)
    driver.restart()
    driver.run()
    assert driver.runner.state.told.changes == {"gain_min": "0.3"}
    assert len(driver.outputs(next(iter(driver.service.outputs.values())))) == 1


# -- what cannot be carried out

UNNAMED = Script(w0=Proposal(Action.BACKUP_WORKERS, "late", backup_workers=1))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (find("backup-drop"), "policy backup-drop works under ps-bsp/drop only"),
        (find("asp-dds"), "policy asp-dds works under ps-asp/servers only"),
        (UNNAMED, "nobody carries out BACKUP_WORKERS that gives nobody 0 samples"),
    ],
)
def test_what_the_jobs_strategy_cannot_do_is_refused_once(policy: Policy, said: str) -> None:
    state = ControllerState(policy)
    (found,) = fed(state, [measured(0), measured(1), measured(2)])
    assert (found.action, found.plan, found.backup_workers) == (Action.NONE, 0, 0)
    assert found.reason.startswith(said)
    assert "this job's strategy is allreduce: choose another policy" in found.reason


def test_under_a_strategy_that_can_it_is_commanded() -> None:
    found, _ = fed(ControllerState(find("backup")), [measured(0, strategy="ps-bsp/servers=2")])
    assert (found.action, found.backup_workers) == (Action.BACKUP_WORKERS, 1)
