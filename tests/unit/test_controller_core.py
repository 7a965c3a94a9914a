"""What the Controller does with measurements, and the ADJUST_BS law by itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import codec
from antdt_schemas.errors import Mismatch, UsageError
from antdt_schemas.records import Action, Assignment, Cause, Decision, Measurement, NodeClass, NodeMeasurement
from antdt_streams.controller.core.state import HEAD, LIVES, ControllerOptions, ControllerState
from antdt_streams.policies import (
    AdjustBatchSize,
    AdjustBatchSizeOptions,
    ClusterView,
    Memory,
    Policy,
    Proposal,
)
from antdt_streams.policies.find import find
from antdt_streams.storage.rows import Position, decode_row, encode_row


def measured(
    rates: list[float],
    sizes: list[int] | None = None,
    offset: int = 0,
    fixed_s: float = 0.0,
    classes: dict[int, NodeClass] | None = None,
    **other: Any,
) -> Measurement:
    """A measurement of workers w0, w1, ...; `rates` are milliseconds a sample."""
    nodes = tuple(
        NodeMeasurement(
            worker=f"w{i}",
            incarnation=f"w{i}-1",
            group="worker",
            node_class=(classes or {}).get(i, NodeClass.HEALTHY),
            severity=0.0,
            seconds_per_sample=rate / 1000,
            rate_error=0.01,
            fixed_s=fixed_s,
            batch_size=32 if sizes is None else sizes[i],
            persistent_windows=0,
            rejected=0,
        )
        for i, rate in enumerate(rates)
    )
    fields: dict[str, Any] = {
        "cause": Cause(0, offset, 0),
        "window": offset,
        "urgent": False,
        "generation": 1,
        "last_step": 5 * offset + 4,
        "plan": 0,
        "nodes": nodes,
        "rotating": False,
        "structural": (),
        "loss": 0.0,
        "first_offset": 0,
        "last_offset": 0,
    }
    return Measurement(**{**fields, **other})


def controller(**options: Any) -> ControllerState:
    return ControllerState(AdjustBatchSize(AdjustBatchSizeOptions(**options)))


def feed(state: ControllerState, record: Measurement, now_ms: int = 0) -> list[Decision]:
    return state.process(record, Position(0, record.cause.offset), now_ms)


def sizes(decision: Decision) -> list[int]:
    return [a.batch_size for a in decision.assignments]


# -- the law


def test_a_slow_worker_gets_less_and_at_most_half_at_once() -> None:
    (found,) = feed(controller(), measured([1, 3, 1, 1]))
    assert sizes(found) == [38, 16, 37, 37]
    assert (found.action, found.plan, found.policy, found.policy_version) == (Action.ADJUST_BS, 1, "adjust-bs", 3)
    assert found.predicted_gain == pytest.approx(0.5)
    assert found.reason == ("w1 needs 3.0x the median time: 32 -> 16 samples, step time -50 %")
    assert [a.worker for a in found.assignments] == ["w0", "w1", "w2", "w3"]
    assert codec.decode(codec.encode(found), Decision) == found


def test_plans_go_on_until_nothing_is_to_be_gained() -> None:
    state, now = controller(), [32] * 4
    plans: list[list[int]] = []
    for offset in range(20):
        found = feed(state, measured([1, 3, 1, 1], now, offset, plan=len(plans)))
        if found:
            now = sizes(found[0])
            plans.append(now)
    assert len(plans) == 2
    assert plans[-1] == [39, 13, 38, 38]


def test_the_fixed_cost_counts() -> None:
    (with_fixed,) = feed(controller(), measured([1, 2, 1, 1], fixed_s=0.016))
    (without,) = feed(controller(), measured([1, 2, 1, 1]))
    assert with_fixed.predicted_gain < without.predicted_gain


def test_little_gain_is_no_reason_and_urgency_asks_for_more() -> None:
    assert feed(controller(), measured([1, 1.04, 1, 1])) == []
    assert feed(controller(), measured([1, 1.2, 1, 1]))
    assert feed(controller(), measured([1, 1.2, 1, 1], urgent=True)) == []
    assert feed(controller(), measured([1, 1.2, 1, 1], rotating=True)) == []
    assert feed(controller(), measured([1, 2, 1, 1], urgent=True))


def test_workers_that_are_unknown_or_absent_keep_their_share() -> None:
    (found,) = feed(controller(), measured([1, 3, math.nan, 1]))
    assert sizes(found)[2] == 32
    assert sum(sizes(found)) == 128
    (found,) = feed(controller(), measured([1, 3, 1, 1], classes={3: NodeClass.ABSENT}))
    assert sizes(found)[3] == 32
    assert feed(controller(), measured([1, math.nan, math.nan, math.nan])) == []


def test_a_claim_of_speed_is_bounded_a_claim_of_slowness_is_not() -> None:
    wide = {"change_max": 1000.0}
    (liar,) = feed(controller(**wide), measured([0.0001, 1, 1, 1]))
    assert sizes(liar)[0] == 95  # eight times as fast: 95 / 8 < 12, and the others take 11 each
    (slow,) = feed(controller(**wide), measured([100, 1, 1, 1]))
    assert sizes(slow)[0] == 1


def test_a_move_that_takes_the_last_one_back_goes_half_way() -> None:
    state = controller()
    feed(state, measured([1, 1.3, 1, 1]))
    now = [33, 27, 34, 34]
    state.in_force.assignments.clear()
    (back,) = feed(state, measured([1, 1, 1, 1], now, 1, plan=1))
    assert sum(sizes(back)) == 128
    assert sizes(back)[1] in (29, 30)


def test_with_much_at_stake_the_way_back_is_not_halved() -> None:
    state = controller()
    feed(state, measured([1, 1.3, 1, 1]))
    (found,) = feed(state, measured([3, 1, 1, 1], None, 1, plan=1))
    assert sizes(found)[0] == 17  # half of the 34 that it had


def test_limits_of_memory_are_kept() -> None:
    (found,) = feed(controller(batch_size_max=36, batch_size_min=20), measured([1, 4, 1, 1]))
    assert sizes(found) == [36, 20, 36, 36]


def test_tiny_batches_keep_one_sample_each() -> None:
    (found,) = feed(controller(), measured([1, 50, 1, 1], [2, 2, 2, 2]))
    assert min(sizes(found)) == 1
    assert sum(sizes(found)) == 8


@pytest.mark.parametrize(
    "wrong",
    [{"gain_min": 0.0}, {"gain_min": 0.4}, {"change_max": 1.0}, {"batch_size_min": 0}, {"speed_claim_max": 0.5}],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        AdjustBatchSizeOptions(**wrong)  # type: ignore[arg-type]


# -- the Controller


def test_a_repeated_measurement_is_dropped() -> None:
    state = controller()
    assert len(feed(state, measured([1, 3, 1, 1], offset=5))) == 1
    digest = state.digest()
    for cause in (Cause(0, 5, 0), Cause(0, 4, 7)):
        assert state.process(measured([1, 9, 1, 1], cause=cause, plan=1), Position(0, 6), 0) == []
    assert state.digest() == digest
    assert state.process(measured([1, 9, 1, 1], cause=Cause(0, 5, 1), plan=1), Position(0, 6), 0)
    assert state.process(measured([9, 1, 1, 1], cause=Cause(1, 0, 0), plan=2), Position(1, 0), 0)


def test_nothing_is_planned_while_a_plan_is_on_its_way() -> None:
    state = controller()
    assert [d.plan for d in feed(state, measured([1, 3, 1, 1]))] == [1]
    assert feed(state, measured([1, 3, 1, 1], offset=1)) == []
    (second,) = feed(state, measured([1, 3, 1, 1], offset=2, plan=1))
    assert second.plan == 2


@pytest.mark.parametrize(("window", "now_ms", "again"), [(5, 60_000, False), (60, 9_999, False), (6, 10_000, True)])
def test_a_plan_that_nobody_takes_is_not_waited_for_for_ever(window: int, now_ms: int, again: bool) -> None:
    state = controller()
    feed(state, measured([1, 3, 1, 1]))
    assert bool(feed(state, measured([1, 3, 1, 1], offset=window), now_ms)) is again


def test_what_was_planned_counts_and_not_a_short_step() -> None:
    state = controller()
    (first,) = feed(state, measured([1, 3, 1, 1]))
    (second,) = feed(state, measured([1, 3, 1, 1], [1, 1, 2, 1], offset=1, plan=1))
    assert sum(sizes(second)) == sum(sizes(first)) == 128


def test_a_newcomer_brings_its_share_and_a_leaver_takes_it() -> None:
    state = controller()
    feed(state, measured([1, 3, 1, 1]))
    (five,) = feed(state, measured([1, 3, 1, 1, 1], [38, 16, 37, 37, 20], offset=1, plan=1))
    assert sum(sizes(five)) == 148
    (three,) = feed(state, measured([3, 3, 1], offset=2, plan=2))
    assert sum(sizes(three)) == sum(sizes(five)[:3])


def test_decisions_name_their_evidence() -> None:
    (found,) = controller().process(measured([1, 3, 1, 1]), Position(2, 77), 0)
    assert found.cause == Cause(2, 77, 0)
    assert (found.evidence_first, found.evidence_last) == (77, 77)


class Everything:
    """Proposes one of each kind, and counts what it saw."""

    name = "everything"
    version = 3

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        proposals = (
            Proposal(Action.ADJUST_LR, "half the rate", learning_rate_factor=0.5),
            Proposal(Action.BACKUP_WORKERS, "one may be late", backup_workers=1),
            Proposal(Action.KILL_RESTART, "w0 is sick", target=view.nodes[0].incarnation),
        )
        return proposals, {"seen": (*memory.get("seen", ()), view.window)}


def test_every_decision_says_all_that_is_in_force() -> None:
    state = ControllerState(Everything())
    found = feed(state, measured([1, 1]))
    assert [(d.plan, d.action, d.cause.index) for d in found] == [
        (1, Action.ADJUST_LR, 0),
        (2, Action.BACKUP_WORKERS, 1),
        (2, Action.KILL_RESTART, 2),
    ], "who is to be started again is no plan"
    last = found[-1]
    assert (last.learning_rate_factor, last.backup_workers, last.target) == (0.5, 1, "w0-1")
    assert found[0].backup_workers == 0
    assert found[1].target == ""


@pytest.mark.parametrize(
    ("action", "target"), [(Action.KILL_RESTART, "w0"), (Action.KILL_RESTART, ""), (Action.NONE, "w0-1")]
)
def test_who_is_to_be_started_again_is_named_by_its_incarnation(action: Action, target: str) -> None:
    class Proposes:
        name, version = "proposes", 1

        def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
            return (Proposal(action, "", target=target),), memory

    with pytest.raises(UsageError, match=f"proposes {action} with target '{target}': take the incarnation"):
        feed(ControllerState(Proposes()), measured([1, 1]))


def test_a_policy_remembers_the_same_before_and_after_a_restart() -> None:
    state = ControllerState(Everything())
    feed(state, measured([1, 1]))
    again = ControllerState.load(state.rows(), Everything())
    assert again.memory == state.memory == {"seen": [0]}
    assert feed(again, measured([1, 1], offset=1)) == feed(state, measured([1, 1], offset=1))
    assert again.digest() == state.digest()


def test_another_policy_takes_over_what_is_in_force_but_not_the_memory() -> None:
    state = ControllerState(Everything())
    feed(state, measured([1, 1]))
    other = ControllerState.load(state.rows(), AdjustBatchSize())
    assert other.memory == {}
    (found,) = feed(other, measured([1, 3], offset=1, plan=2))
    assert (found.plan, found.learning_rate_factor, found.backup_workers) == (3, 0.5, 1)


class Answers:
    """Proposes what it was made with, one after the other, whenever nothing is pending; sees what it sees."""

    name = "answers"
    version = 1

    def __init__(self, *proposals: Proposal) -> None:
        self.proposals, self.seen = proposals, list[ClusterView]()

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        self.seen.append(view)
        at = memory.get("at", 0)
        if view.pending or at == len(self.proposals):
            return (), memory
        return (self.proposals[at],), {"at": at + 1}


def test_a_learning_rate_is_pending_until_the_trainers_report_the_plan() -> None:
    policy = Answers(Proposal(Action.ADJUST_LR, "half", learning_rate_factor=0.5))
    state = ControllerState(policy)
    (found,) = feed(state, measured([1, 1]))
    assert (found.plan, found.action, found.learning_rate_factor, found.assignments) == (1, Action.ADJUST_LR, 0.5, ())
    for offset, plan in enumerate((0, 0, 1), start=1):
        feed(state, measured([1, 1], offset=offset, plan=plan))
    assert [view.pending for view in policy.seen] == [False, True, True, False]
    assert policy.seen[-1].learning_rate_factor == 0.5


def test_a_plan_of_a_learning_rate_keeps_the_shares() -> None:
    shares = tuple(Assignment(worker, size, 1) for worker, size in (("w0", 40), ("w1", 24)))
    policy = Answers(
        Proposal(Action.ADJUST_BS, "w1 is slow", assignments=shares),
        Proposal(Action.KILL_RESTART, "w1 is sick", target="w1-1"),
        Proposal(Action.ADJUST_LR, "half", learning_rate_factor=0.5),
    )
    state = ControllerState(policy)
    found = [one for at in range(4) for one in feed(state, measured([1, 1], [40, 24], offset=at, plan=min(at, 1)))]
    assert [(d.plan, d.action) for d in found] == [
        (1, Action.ADJUST_BS),
        (1, Action.KILL_RESTART),
        (2, Action.ADJUST_LR),
    ]
    assert found[-1].assignments == shares
    assert not any(view.pending for view in policy.seen[:-1]), "what changes no plan is waited for by nobody"
    assert [node.batch_size for node in policy.seen[2].nodes] == [40, 24]


@pytest.mark.parametrize(
    ("action", "named", "said"),
    [
        (Action.ADJUST_LR, {}, "A proposal of ADJUST_LR says nothing of learning_rate_factor"),
        (Action.ADJUST_BS, {"learning_rate_factor": 0.5}, "says nothing of assignments"),
        (Action.KILL_RESTART, {"learning_rate_factor": 0.5}, "leaves the plan as it is"),
        (Action.ADJUST_LR, {"learning_rate_factor": 0.0}, "take a finite number above 0"),
        (Action.ADJUST_LR, {"learning_rate_factor": math.nan}, "take a finite number above 0"),
        (Action.BACKUP_WORKERS, {"backup_workers": -1}, "take 0 or more"),
    ],
)
def test_a_proposal_says_what_it_changes(action: Action, named: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Proposal(action, "why", **named)


def test_changes_are_only_what_changed() -> None:
    state = controller()
    state.changes()
    feed(state, measured([1, 1, 1]))
    assert set(state.changes()) == {HEAD, LIVES}
    assert decode_row(state.rows()[HEAD])[-1] == [[0, 0, 0]]
    feed(state, measured([1, 3, 1], offset=1))
    assert set(state.changes()) == set(state.rows()) - {LIVES}, "the same workers"


def test_rows_of_another_format_are_refused() -> None:
    rows = controller().rows()
    with pytest.raises(Mismatch, match="Format of the Controller's state"):
        ControllerState.load({**rows, HEAD: encode_row([0, "", []])}, AdjustBatchSize())


def test_options_of_the_controller_are_checked() -> None:
    with pytest.raises(UsageError):
        ControllerOptions(patience_windows=0)


# -- finding a policy


def test_the_ready_policy_is_found_by_name() -> None:
    assert isinstance(find("adjust-bs"), AdjustBatchSize)
    assert isinstance(find("antdt-nd"), Policy)


def test_a_policy_of_the_users_is_found_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n"
        "    name, version = 'mine', 2\n"
        "    def decide(self, view, memory):\n"
        "        return (), memory\n"
        "class Wrong: pass\n"
    )
    policy = find(f"{file}:Mine")
    assert (policy.name, policy.version) == ("mine", 2)
    assert feed(ControllerState(policy), measured([1, 3])) == []
    with pytest.raises(UsageError, match="Wrong is no policy"):
        find(f"{file}:Wrong")
    with pytest.raises(UsageError, match="No policy 'Other'"):
        find(f"{file}:Other")
    with pytest.raises(UsageError, match="no such file"):
        find(f"{tmp_path}/none.py:Mine")


def test_an_unknown_policy_is_refused_with_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"take one of .*adjust-bs.*nd"):
        find("best")


def holding(record: Measurement, **limits: int) -> Measurement:
    """The same, and these workers can hold so many samples."""
    nodes = tuple(replace(node, batch_size_max=limits.get(node.worker, 0)) for node in record.nodes)
    return replace(record, nodes=nodes)


def test_nobody_gets_more_than_it_holds() -> None:
    record = holding(measured([1.0, 1.0, 1.0, 3.0]), w0=36)
    (decision,) = feed(controller(), record)
    assert sizes(decision)[0] == 36
    assert sum(sizes(decision)) == 128


def test_who_takes_more_than_it_holds_is_relieved_whatever_that_costs() -> None:
    """No gain, but a worker that dies in every life."""
    record = holding(measured([1.0, 1.0, 1.0, 1.0], [48, 16, 32, 32]), w0=32)
    (decision,) = feed(controller(), record)
    assert sizes(decision) == [32, 32, 32, 32]
    assert "w0 holds 32 samples, not 48" in decision.reason
    crowded = holding(measured([1.0, 1.0], [48, 16]), w0=32, w1=20)
    assert sizes(feed(controller(), crowded)[0]) == [44, 20], "not all have room: w0 goes on in micro-batches"


def test_a_plan_needs_a_gain_that_noise_cannot_explain() -> None:
    record = measured([1.0, 1.0, 1.0, 1.4])
    assert feed(controller(), record), "certain"
    uncertain = replace(record, nodes=tuple(replace(node, rate_error=0.1) for node in record.nodes))
    assert feed(controller(), uncertain) == []


class Doubles:
    """Twice the global batch, once."""

    name, version = "doubles", 1

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        """At the third window."""
        if view.window != 3:
            return (), memory
        assert view.batch_size == 0
        size = 2 * sum(node.batch_size for node in view.nodes)
        return (Proposal(Action.ADJUST_BS, "there is room", batch_size=size),), memory


def test_a_plan_may_change_the_global_batch_and_the_shares_keep_their_proportion() -> None:
    state = ControllerState(Doubles())
    state.in_force.assignments = {"w0": Assignment("w0", 24, 1), "w1": Assignment("w1", 8, 1)}
    (decision,) = state.process(measured([1.0, 3.0], offset=3), Position(0, 3), 0)
    assert (decision.plan, decision.batch_size) == (1, 64)
    assert [a.batch_size for a in decision.assignments] == [48, 16]
    again = ControllerState.load(state.rows(), Doubles())
    assert again.in_force == state.in_force and again.digest() == state.digest()
    with pytest.raises(UsageError, match="with the action ADJUST_BS"):
        Proposal(Action.ADJUST_LR, "so", learning_rate_factor=0.5, batch_size=3)
