"""The ready policies, each on views of imagined clusters; and their parameters."""

from __future__ import annotations

import itertools
import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Cause, Effect, NodeClass, Verdict
from antdt_streams.policies import (
    ClusterView,
    Dedicated,
    DedicatedParameters,
    Memory,
    NodeView,
    NonDedicated,
    NonDedicatedParameters,
    Policy,
    Proposal,
    parameters,
)
from antdt_streams.policies.find import GROUP, READY, find
from antdt_streams.policies.restarts import BARRED, LOSSES

STEP_S = 1.0


def node(name: str = "w0", rate: float = 1e-2, **other: Any) -> NodeView:
    """A worker of 100 samples a step, `rate` seconds each."""
    given = {"worker": name, "incarnation": f"{name}.0.l", "group": other.get("role", "worker")}
    rest: dict[str, Any] = {
        "node_class": NodeClass.HEALTHY, "severity": 0.0, "seconds_per_sample": rate, "rate_error": 0.01,
        "fixed_s": 0.0, "batch_size": 100, "accumulation": 1, "persistent_windows": 0,
    }  # fmt: skip
    return NodeView(**{**given, **rest, **other})


def sick(name: str, times: float = 3.0, rate: float = 1e-2, **other: Any) -> NodeView:
    """One that has become so many times as slow for good."""
    seen = {"node_class": NodeClass.PERSISTENT, "severity": math.log(times), "persistent_windows": 6}
    return node(name, times * rate, **{**seen, **other})


def view(*nodes: NodeView, window: int = 0, **other: Any) -> ClusterView:
    """A window of five steps; time goes on by five seconds in each."""
    given: dict[str, Any] = {
        "window": window, "generation": 1, "last_step": 5 * window + 4, "now_ms": 5000 * window, "urgent": False,
        "pending": False, "plan": 0, "nodes": nodes, "rotating": False, "structural": (), "loss": 0.0,
        "learning_rate_factor": 1.0, "backup_workers": 0, "strategy": "allreduce", "step_s": STEP_S,
    }  # fmt: skip
    return ClusterView(**{**given, **other})


def run(policy: Policy, views: list[ClusterView], memory: Memory | None = None) -> tuple[list[Proposal], Memory]:
    """All proposals, in order, and what is remembered in the end."""
    found, memory = [], memory or {}
    for one in views:
        proposals, memory = policy.decide(one, memory)
        found += proposals
    return found, memory


def killed(policy: Policy, views: list[ClusterView], memory: Memory | None = None) -> tuple[list[Proposal], Memory]:
    """Restarts alone."""
    found, memory = run(policy, views, memory)
    return [one for one in found if one.action is Action.KILL_RESTART], memory


def nd(**changes: Any) -> NonDedicated:
    return NonDedicated(replace(NonDedicatedParameters(restart_s=8.0, pause_s=1.0), **changes))


def fallen_ill(windows: int = 30, well: int = 2, **other: Any) -> list[ClusterView]:
    """Four workers, of which w1 becomes three times as slow."""
    rest = [node(f"w{i}") for i in (0, 2, 3)]
    return [
        view(*rest, node("w1") if number < well else sick("w1"), window=number, **other) for number in range(windows)
    ]


# -- restarts by ski rental


def test_a_node_is_started_again_once_it_has_cost_what_that_costs() -> None:
    views = fallen_ill()
    (found,), memory = killed(nd(), views[:20])
    assert (found.action, found.target) == (Action.KILL_RESTART, "w1.0.l")
    # Of 400 samples a step: 1.2 s with it as it is, re-balanced, and 1 s if it were well. The bill is 1 + 8 / 4 s.
    due = next(n for n in range(20) if killed(nd(), views[:n])[0]) - 1
    assert due == pytest.approx(2 + 3.0 / (5 * 0.20), abs=1)
    assert found.reason.startswith("w1 is 3.0x as slow as expected for 6 windows: it has cost 4 s, to start it again")
    assert found.predicted_gain == pytest.approx(1 / 6, abs=0.01)
    assert memory[LOSSES]["w1.0.l"] >= 3.0


def test_where_batches_are_fixed_a_slow_node_costs_all_that_the_others_wait() -> None:
    (found, *_), _ = run(nd(balance=False), fallen_ill(windows=4))
    assert found.predicted_gain == pytest.approx(2 / 3), "of each step of 3 s"


def test_a_node_that_was_never_seen_well_may_be_its_hardware_and_must_cost_more() -> None:
    assert not killed(nd(), fallen_ill(well=0, windows=8))[0]
    assert killed(nd(), fallen_ill(well=0, windows=12))[0]


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"busy": "the operator says so"}, "switch"),
        ({"restarting": ("w3",)}, "one at a time"),
        ({"restart_s": 700.0}, "restarts take long"),
        ({"pending": True}, "a plan is on its way"),
        ({"urgent": True}, "in the middle of a window"),
    ],
)
def test_nobody_is_started_again_while(held: dict[str, Any], why: str) -> None:
    assert not killed(nd(), fallen_ill(**held))[0], why


def test_the_cluster_is_busy_and_batches_are_balanced_instead() -> None:
    found, _ = run(nd(), fallen_ill(busy="it is"))
    assert {one.action for one in found} == {Action.ADJUST_BS}


def test_restarts_have_a_cooldown_and_a_cap() -> None:
    policy, memory, at = nd(cooldown_s=120.0, restarts_max=3), dict[str, Any](), list[int]()
    for one in fallen_ill(windows=120):
        proposals, remembered = policy.decide(one, memory)
        memory = dict(remembered)
        at += [one.window for proposal in proposals if proposal.action is Action.KILL_RESTART]
    assert len(at) == 3
    assert {b - a for a, b in itertools.pairwise(at)} == {24}, "which are 120 s"


@pytest.mark.parametrize("verdict", [Verdict.NO_EFFECT, Verdict.HARMED, Verdict.NOT_CARRIED_OUT])
def test_a_restart_that_did_not_help_is_not_repeated(verdict: Verdict) -> None:
    effect = Effect(Cause(0, 7, 0), Action.KILL_RESTART, 0, "w1", 0.16, 0.0, 0.01, 4, 90, 8.0, verdict)
    found, memory = killed(nd(), fallen_ill(effects=(effect,)))
    assert not found
    assert memory[BARRED] == ["w1"]
    again, _ = killed(nd(), fallen_ill(), memory)
    assert not again, "nor when the effect is no longer in the view"
    helped = replace(effect, verdict=Verdict.HELPED)
    assert killed(nd(), fallen_ill(effects=(helped,)))[0]


def test_a_node_that_recovers_before_it_has_cost_that_much_is_left_alone() -> None:
    well = view(*(node(f"w{i}") for i in range(4)))
    views = [*fallen_ill(windows=4), *(replace(well, window=n, last_step=5 * n) for n in range(4, 30))]
    assert not killed(nd(), views)[0]


def test_servers_come_first() -> None:
    servers = node("s0", 1e-9, role="server", busy=0.2), sick("s1", 5.0, 1e-9, role="server", busy=0.9)
    nodes = node("w0"), node("w2"), sick("w1"), *servers
    ill = [
        view(*nodes, window=n, strategy="ps-bsp/servers=2", busy="" if n > 8 else "until both are due")
        for n in range(12)
    ]
    (first,), _ = killed(nd(from_start_factor=1.0, rollback_s=0.0), ill)
    assert first.target == "s1.0.l"
    assert first.predicted_gain == pytest.approx(0.9 * 0.8)
    found, _ = run(NonDedicated(NonDedicatedParameters(restart=False)), ill)
    assert {one.action for one in found} == {Action.ADJUST_BS}
    assert {a.worker for one in found for a in one.assignments or ()} == {"w0", "w1", "w2"}, "servers have no batch"


def test_where_nobody_waits_a_slow_worker_costs_its_own_part_only_and_nothing_is_balanced() -> None:
    found, memory = run(NonDedicated(), fallen_ill(windows=20, strategy="ps-asp/servers=2"))
    assert not found
    # Of four workers one does a third: 2/3 of a quarter of 18 * 5 s.
    assert memory[LOSSES]["w1.0.l"] == pytest.approx(18 * 5.0 / 6, rel=0.1)


@pytest.mark.parametrize("kind", [NodeClass.DETERMINISTIC, NodeClass.TRANSIENT, NodeClass.LEADER, NodeClass.ABSENT])
def test_only_persistent_nodes_are_started_again(kind: NodeClass) -> None:
    views = [view(node("w0"), sick("w1", node_class=kind), node("w2"), window=n) for n in range(20)]
    assert not killed(nd(from_start_factor=1.0), views)[0]


# -- AntDT-DD


def dd_shares(*nodes: NodeView, **changes: Any) -> list[tuple[int, int]]:
    proposals, _ = Dedicated(replace(DedicatedParameters(), **changes)).decide(view(*nodes), {})
    return [(a.batch_size, a.accumulation) for p in proposals for a in p.assignments or ()]


def test_a_fast_device_takes_more_and_accumulates_what_does_not_fit() -> None:
    fast, slow = [node(f"w{i}", batch_size_max=64) for i in (0, 1)], [node(f"w{i}", 3e-2) for i in (2, 3)]
    assert dd_shares(*fast, *slow) == [(150, 3), (150, 3), (50, 1), (50, 1)]


def test_what_a_micro_batch_costs_counts() -> None:
    small, large = node("w0", fixed_s=1.0, batch_size_max=10), node("w1", fixed_s=1.0)
    shares = dd_shares(small, large)
    assert sum(q for q, _ in shares) == 200
    assert shares[0] == (20, 2), "each ten samples of w0 cost 1 s more"


def test_nobody_is_left_with_more_than_it_holds_and_little_gain_is_none() -> None:
    assert dd_shares(node("w0"), node("w1", 1.05e-2)) == []
    assert dd_shares(node("w0", batch_size_max=30), node("w1"))[0][1] >= 3, "in parts that it holds"
    assert dd_shares(node("w0"), node("w1", 3e-2, rate_error=0.5)) == [], "it may be noise"
    assert dd_shares(node("w0"), sick("w1", seconds_per_sample=None)) == []


def test_noise_does_not_send_a_share_there_and_back() -> None:
    settled = view(node("w0", batch_size=150), node("w1", 3e-2, batch_size=50))
    jittered = view(node("w0", 1.3e-2, batch_size=150), node("w1", 3e-2, batch_size=50))
    _, memory = Dedicated().decide(view(node("w0"), node("w1", 3e-2)), {})
    assert Dedicated().decide(jittered, memory)[0] == ()
    assert Dedicated().decide(jittered, {})[0], "the same again would do it, were it not a way back"
    assert Dedicated().decide(settled, memory)[0] == ()


# -- baselines


def test_none_looks_on_and_even_takes_back() -> None:
    uneven = view(node("w0", batch_size=150), node("w1", 3e-2, batch_size=51), plan=4)
    assert run(find("none"), [uneven])[0] == []
    (back,), _ = run(find("even"), [uneven])
    assert [a.batch_size for a in back.assignments or ()] == [101, 100]
    assert run(find("even"), [view(node("w0"), node("w1", 9e-2), plan=4)])[0] == []


def test_lb_bsp_follows_speed_at_each_windows_end() -> None:
    (found,), _ = run(find("lb-bsp"), [view(node("w0"), node("w1", 3e-2))])
    assert [a.batch_size for a in found.assignments or ()] == [150, 50]
    assert found.predicted_gain == pytest.approx(0.5)
    servers = sick("s0", 5.0, 1e-9, role="server", busy=1.0), node("s1", 1e-9, role="server")
    assert not run(find("lb-bsp"), [view(node("w0"), node("w1"), *servers)])[0], "it knows nothing of servers"


def test_backup_asks_for_k_of_n_once() -> None:
    nodes = [node(f"w{i}") for i in range(4)]
    views = [view(*nodes, strategy="ps-bsp/servers=2"), view(*nodes, strategy="ps-bsp/servers=2", backup_workers=1)]
    (found, rates), _ = run(find("backup"), [views[0], replace(views[1], learning_rate_factor=0.75)])
    assert (found.action, found.backup_workers) == (Action.BACKUP_WORKERS, 1)
    assert (rates.action, rates.learning_rate_factor) == (Action.ADJUST_LR, 0.75), "the global batch is smaller"
    (alone,), _ = run(parameters.changed(find("backup"), {"adjust_lr": "no"}), views)
    assert alone == found


# -- names and parameters


def test_every_ready_policy_is_an_entry_point_and_is_found() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"][GROUP]
    assert points == {name: f"{kind.__module__}:{kind.__name__}" for name, kind in READY.items()}
    for name in READY:
        policy = find(name)
        assert isinstance(policy, Policy)
        assert policy.name == name
    assert find("antdt-nd").name == "nd", "as it was called before"


def test_parameters_are_typed_by_name() -> None:
    changed = parameters.changed(find("nd"), {"gain_min": "0.08", "restart": "off", "restarts_max": "5"})
    made = changed.parameters  # type: ignore[attr-defined]
    assert (made.gain_min, made.restart, made.restarts_max) == (0.08, False, 5)
    assert '"gain_min":0.08' in parameters.stamp(changed)
    assert parameters.changed(changed, {"gain_min": ""}).parameters.gain_min == 0.05  # type: ignore[attr-defined]
    assert parameters.stamp(find("none")) == ""


@pytest.mark.parametrize(
    ("policy", "name", "text", "said"),
    [
        ("nd", "gain_mni", "1", "has no parameter 'gain_mni': take one of .*gain_min"),
        ("nd", "gain_min", "much", "gain_min=much: take a number"),
        ("nd", "gain_min", "nan", "take a finite number"),
        ("nd", "restart", "perhaps", "take true or false"),
        ("nd", "restarts_max", "1.5", "take a whole number"),
        ("nd", "gain_min", "7", "Take 0 < gain_min"),
        ("dd", "accumulation_max", "0", "accumulation_max at least 1"),
        ("none", "gain_min", "1", "has no parameters"),
    ],
)
def test_what_is_no_parameter_is_refused(policy: str, name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parameters.changed(find(policy), {name: text})


@dataclass(frozen=True)
class Odd:
    names: tuple[str, ...] = ()


class WithOdd:
    name, version, parameters = "odd", 1, Odd()

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        return (), memory


def test_parameters_that_nobody_could_type_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="Parameter names of policy odd: take a bool, int, float or str"):
        parameters.check(WithOdd())
