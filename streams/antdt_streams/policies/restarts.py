"""KILL_RESTART by ski rental: a node is started again once it has cost more than that would.

To start one again for what it *will* cost killed nodes that were slow for a while; so the loss that it has already
caused, after re-balancing, must exceed the bill. What it is still expected to cause is as much again, as long as it is
persistent: how long something has lasted is the best guess of how long it still will. One at a time, with a cooldown
and a cap for each worker, not while the cluster is busy, and not again where it did not help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Effect, NodeClass, Verdict
from antdt_schemas.strategies import is_asynchronous

from antdt_streams.policies.policy import SERVER, ClusterView, Memory, NodeView, Proposal
from antdt_streams.policies.solver import solve_nd, step_s

LOSSES, SEEN, ORDERED, ORDERED_MS, WELL, BARRED = "losses", "seen", "ordered", "ordered_ms", "well", "barred"
GAP_MAX_S = 60.0  # between two measurements: what is longer is a pause of everybody
WELL_MAX = math.log(1.10)  # severity below which a node does what is expected
IN_VAIN = (Verdict.NO_EFFECT, Verdict.HARMED, Verdict.NOT_CARRIED_OUT)


@dataclass(frozen=True)  # no slots: another class of parameters has both
class RestartParameters:
    """restart: whether anybody is ever started again. restart_s: seconds that this takes, until one was measured.
    pause_s: seconds for which all stand while the group forms anew, twice. rollback_s: seconds of work that a server's
    restart takes back, on average half of what lies between two checkpoints. from_start_factor: what a node that was
    never seen well must cost in bills: it may be its hardware. busy_restart_s: a restart that took longer lately says
    that the cluster is busy.
    """

    restart: bool = True
    restart_s: float = 60.0
    pause_s: float = 3.0
    rollback_s: float = 30.0
    from_start_factor: float = 3.0
    cooldown_s: float = 120.0
    restarts_max: int = 2
    busy_restart_s: float = 600.0

    def __post_init__(self) -> None:
        times = (self.restart_s, self.pause_s, self.rollback_s, self.cooldown_s)
        if min(times) < 0.0 or self.busy_restart_s <= 0.0:
            raise UsageError(
                "restart_s, pause_s, rollback_s and cooldown_s must not be negative, busy_restart_s above 0."
            )
        if self.from_start_factor < 1.0 or self.restarts_max < 0:
            raise UsageError("from_start_factor must be at least 1, restarts_max at least 0.")


@dataclass(frozen=True, slots=True)
class Loss:
    """What a persistent node costs: a share of the time of all, and of the time that they took with it."""

    node: NodeView
    share: float
    a_step_s: float  # seconds of each step of all; 0 where there is no common step


class Restarts:
    """The rule and what it must remember, as a part of a policy's memory."""

    def __init__(self, parameters: RestartParameters, *, balanced: bool = True) -> None:
        """balanced: batch sizes follow speed, so that a slow node costs less."""
        self.parameters, self.balanced = parameters, balanced

    def remember(self, view: ClusterView, memory: Memory) -> dict[str, Any]:
        """The memory after this view: what each persistent node has cost so far, who was seen well, whose restarts were
        in vain. Rows are kept of incarnations that are there.
        """
        here = {node.incarnation for node in view.nodes}
        losses = {who: s for who, s in memory.get(LOSSES, {}).items() if who in here}
        well = [who for who in memory.get(WELL, ()) if who in here]
        barred = sorted({*memory.get(BARRED, ())} | {e.worker for e in view.effects if _is_in_vain(e)})
        out = {**memory, LOSSES: losses, WELL: well, BARRED: barred}
        if view.urgent:
            return out
        steps, seconds = _since(memory.get(SEEN), view)
        for loss in losses_of(view, balanced=self.balanced):
            cost_s = steps * loss.a_step_s if loss.a_step_s else seconds * loss.share
            who = loss.node.incarnation
            losses[who] = round(losses.get(who, 0.0) + cost_s, 6)
        for node in view.nodes:
            judged = node.node_class is not NodeClass.UNKNOWN and node.seconds_per_sample is not None
            if judged and node.severity < WELL_MAX and node.incarnation not in well:
                well.append(node.incarnation)
        return {**out, SEEN: [view.generation, view.last_step, view.now_ms]}

    def propose(self, view: ClusterView, memory: Memory) -> tuple[Proposal, dict[str, Any]] | None:
        """One restart that has paid for itself, servers first, and the memory after it; None: nobody is to go."""
        if not self.parameters.restart or view.urgent or self.held_back(view, memory):
            return None
        due = [loss for loss in losses_of(view, balanced=self.balanced) if self._is_due(loss, view, memory)]
        if not due:
            return None
        chosen = min(due, key=lambda one: (one.node.role != SERVER, -one.share, one.node.worker))
        node, ordered = chosen.node, {**memory.get(ORDERED, {})}
        ordered[node.worker] = ordered.get(node.worker, 0) + 1
        reason = (
            f"{node.worker} is {math.exp(node.severity):.1f}x as slow as expected for {node.persistent_windows} "
            f"windows: it has cost {memory[LOSSES][node.incarnation]:.0f} s, to start it again costs about "
            f"{self.bill_s(node, view):.0f} s"
        )
        proposal = Proposal(Action.KILL_RESTART, reason, chosen.share, target=node.incarnation)
        return proposal, {**memory, ORDERED: ordered, ORDERED_MS: view.now_ms}

    def held_back(self, view: ClusterView, memory: Memory) -> str:
        """Why nobody is started again now; empty: somebody may be."""
        p = self.parameters
        if view.busy:
            return f"the cluster is busy: {view.busy}"
        if view.restarting:
            return f"{view.restarting[0]} is being started again"
        if view.restart_s > p.busy_restart_s:
            return f"the cluster is busy: the last restart took {view.restart_s:.0f} s"
        last_ms = max(memory.get(ORDERED_MS, 0), view.restarted_ms)  # people order restarts, too
        if last_ms and view.now_ms - last_ms < 1000.0 * p.cooldown_s:
            return "the last one was a moment ago"
        return ""

    def bill_s(self, node: NodeView, view: ClusterView) -> float:
        """Seconds of everybody's time that a restart costs: while a worker is away, the others do its part."""
        p = self.parameters
        away_s = view.restart_s or p.restart_s
        if node.role == SERVER:
            return p.pause_s + away_s + p.rollback_s
        return p.pause_s + away_s / max(len(view.workers), 1)

    def _is_due(self, loss: Loss, view: ClusterView, memory: Memory) -> bool:
        node, p = loss.node, self.parameters
        if node.worker in memory[BARRED] or memory.get(ORDERED, {}).get(node.worker, 0) >= p.restarts_max:
            return False
        factor = 1.0 if node.incarnation in memory[WELL] else p.from_start_factor
        return bool(memory[LOSSES].get(node.incarnation, 0.0) > factor * self.bill_s(node, view))


def _is_in_vain(effect: Effect) -> bool:
    """Whether a restart that was to save something has not. What a person orders predicts nothing."""
    return effect.action is Action.KILL_RESTART and effect.predicted_gain > 0.0 and effect.verdict in IN_VAIN


def _since(seen: Any, view: ClusterView) -> tuple[int, float]:
    """Steps and seconds since the measurement before; none where that was of another generation."""
    if seen is None or seen[0] != view.generation:
        return 0, 0.0
    return max(view.last_step - seen[1], 0), min(max(view.now_ms - seen[2], 0) / 1000.0, GAP_MAX_S)


def losses_of(view: ClusterView, *, balanced: bool = True) -> list[Loss]:
    """What each persistent node costs, the others' sicknesses left as they are."""
    out = []
    known = [node for node in view.workers if node.seconds_per_sample and node.node_class is not NodeClass.ABSENT]
    for node in view.nodes:
        if node.node_class is not NodeClass.PERSISTENT or not node.seconds_per_sample or node.severity <= 0.0:
            continue
        slower = 1.0 - math.exp(-node.severity)
        if node.role == SERVER:
            out.append(Loss(node, node.busy * slower, 0.0))
        elif is_asynchronous(view.strategy):
            speed = {n.worker: 1.0 / (n.seconds_per_sample or math.inf) for n in known}
            fit = speed[node.worker] * math.exp(node.severity)
            out.append(Loss(node, (fit - speed[node.worker]) / (sum(speed.values()) - speed[node.worker] + fit), 0.0))
        else:
            out += _of_a_step(node, known, balanced=balanced)
    return out


def _of_a_step(node: NodeView, nodes: list[NodeView], *, balanced: bool) -> list[Loss]:
    """The best step with it as it is, against the best one if it were well; or, unbalanced, the one that is made."""
    rates: Mapping[str, float] = {n.worker: n.seconds_per_sample or math.nan for n in nodes}
    if len(nodes) < 2:
        return []
    cost = _best_s if balanced else _made_s
    sick_s = cost(nodes, rates)
    well_s = cost(nodes, {**rates, node.worker: node.expected_s_per_sample or math.nan})
    return [Loss(node, 1.0 - well_s / sick_s, sick_s - well_s)] if sick_s > well_s > 0.0 else []


def _made_s(nodes: list[NodeView], rates: Mapping[str, float]) -> float:
    """Seconds of a step of what each takes now."""
    return max(node.fixed_s * node.accumulation + node.batch_size * rates[node.worker] for node in nodes)


def _best_s(nodes: list[NodeView], rates: Mapping[str, float]) -> float:
    """Seconds of the best step that these nodes can make of what they take together."""
    total = sum(node.batch_size for node in nodes)
    each, fixed_s = [rates[node.worker] for node in nodes], [node.fixed_s for node in nodes]
    most = [max(node.batch_size, node.batch_size_max or total) for node in nodes]
    best = solve_nd(total, each, fixed_s, [0] * len(nodes), most)
    return step_s(best, each, fixed_s) if best is not None else 0.0
