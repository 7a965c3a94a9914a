"""ADJUST_BS for a non-dedicated cluster: every worker takes the share of the batch that its own rate allows.

The split is exact, the damping is what keeps noise out of it. A plan must promise a gain, also when the time of each
node is drawn towards the others' by as much as noise can explain; it at most doubles or halves anybody, and goes
half-way when it takes the last one back. Only claims of *speed* are bounded: bounding slow rates too cost 15 % of a
production trace. Constants were chosen on all traces at hand: defaults, not truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, median_low

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Assignment, NodeClass
from antdt_schemas.strategies import is_asynchronous

from antdt_streams.policies.policy import ClusterView, Memory, NodeView, Proposal, spared
from antdt_streams.policies.solver import solve_nd, step_s

PREVIOUS = "previous"
FLOOR = 0.05  # of a step is the samples', whatever is taken for its fixed cost


@dataclass(frozen=True, slots=True)
class AdjustBatchSizeOptions:
    """Gains are shares of the predicted step time."""

    gain_min: float = 0.05  # a plan at a window's end saves at least this
    # a plan in the middle of a window saves at least this, and any plan while stragglers rotate
    gain_urgent_min: float = 0.30
    change_max: float = 2.0  # nobody's batch grows or shrinks by more than this factor in one plan
    speed_claim_max: float = 8.0  # nobody is believed to be more than this many times as fast as the median
    # Noise explains so many standard errors of a node, and as many more as the largest of so many nodes is off
    errors_min: float = 3.0
    gain_sure_min: float = 0.02  # what a plan saves at least when noise is taken out of all times
    batch_size_min: int = 1
    batch_size_max: int = 1 << 31  # what one worker can hold; those that state less, or have learned it, get less

    def __post_init__(self) -> None:
        if not 0.0 < self.gain_min <= self.gain_urgent_min < 1.0:
            raise UsageError("Take 0 < gain_min <= gain_urgent_min < 1.")
        if self.change_max <= 1.0 or self.speed_claim_max < 1.0:
            raise UsageError("change_max must be above 1, speed_claim_max at least 1.")
        if self.errors_min < 0.0 or not 0.0 <= self.gain_sure_min < 1.0:
            raise UsageError("errors_min must not be negative, gain_sure_min at least 0 and below 1.")
        if not 1 <= self.batch_size_min <= self.batch_size_max:
            raise UsageError("Take 1 <= batch_size_min <= batch_size_max.")


class AdjustBatchSize:
    """The policy `adjust-bs`. Invariant: a plan's batch sizes have the sum of those it replaces."""

    name = "adjust-bs"
    version = 3

    def __init__(self, parameters: AdjustBatchSizeOptions | None = None) -> None:
        self.parameters = parameters or AdjustBatchSizeOptions()

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        """At most one ADJUST_BS. Remembers the batch sizes before the last plan. Where workers do not wait for each
        other, there is nothing to balance.
        """
        if view.pending:
            return (), memory
        nodes = [node for node in view.workers if node.batch_size > 0]
        movable = [node for node in nodes if is_movable(node)]
        if len(movable) < 2 or is_asynchronous(view.strategy):
            return (), memory
        sizes = [node.batch_size for node in movable]
        if any(0 < node.batch_size_max < node.batch_size for node in movable):
            fitting = self._fitting(view, nodes, movable)
            if fitting is not None:
                return (fitting,), {PREVIOUS: {node.worker: node.batch_size for node in nodes}}
        rates, fixed_s = self._rates(movable), [node.fixed_s for node in movable]
        least, most = self._bounds(movable)
        best = solve_nd(sum(sizes), rates, fixed_s, least, most)
        assert best is not None, "the batch sizes in force are within the bounds"
        now_s = step_s(sizes, rates, fixed_s)
        # Where another node is slow in each step, small plans only follow the noise.
        strict = view.urgent or view.rotating
        needed = self.parameters.gain_urgent_min if strict else self.parameters.gain_min
        if step_s(best, rates, fixed_s) > (1.0 - needed) * now_s:
            return (), memory
        if not self._is_sure(movable, rates, fixed_s, least, most):
            return (), memory
        # A move that takes the last one back goes half-way, unless as much is at stake as in an emergency.
        big = step_s(best, rates, fixed_s) <= (1.0 - self.parameters.gain_urgent_min) * now_s
        plan = best if big else self._damped(movable, best, rates, fixed_s, memory.get(PREVIOUS, {}))
        gain = 1.0 - step_s(plan, rates, fixed_s) / now_s
        proposal = _proposal(view, nodes, movable, plan, _reason(movable, plan, gain), gain)
        return (proposal,), {PREVIOUS: {node.worker: node.batch_size for node in nodes}}

    def _fitting(self, view: ClusterView, nodes: list[NodeView], movable: list[NodeView]) -> Proposal | None:
        """The best split in which nobody takes more than it holds, at whatever cost; None if there is none. Then those
        who hold less go on in several micro-batches.
        """
        rates, fixed_s = self._rates(movable), [node.fixed_s for node in movable]
        sizes, total = [node.batch_size for node in movable], sum(node.batch_size for node in movable)
        most = [node.batch_size_max or total for node in movable]
        plan = solve_nd(total, rates, fixed_s, [min(self.parameters.batch_size_min, m) for m in most], most)
        if plan is None:
            return None
        gain = 1.0 - step_s(plan, rates, fixed_s) / step_s(sizes, rates, fixed_s)
        node = next(node for node in movable if 0 < node.batch_size_max < node.batch_size)
        reason = (
            f"{node.worker} holds {node.batch_size_max} samples, not {node.batch_size}: step time {-100 * gain:+.0f} %"
        )
        return _proposal(view, nodes, movable, plan, reason, gain)

    def _rates(self, nodes: list[NodeView]) -> list[float]:
        rates = [node.seconds_per_sample or math.nan for node in nodes]
        floor = median_low(rates) / self.parameters.speed_claim_max
        return [max(rate, floor) for rate in rates]

    def _is_sure(
        self, nodes: list[NodeView], rates: list[float], fixed_s: list[float], least: list[int], most: list[int]
    ) -> bool:
        """Whether something is gained also by the times that are left when noise is given all that it can explain: each
        node's is drawn towards the middle one's by so many of its own standard errors.
        """
        sizes = [node.batch_size for node in nodes]
        times = [c + b * rate for c, b, rate in zip(fixed_s, sizes, rates, strict=True)]
        middle, errors = median(times), self.parameters.errors_min + math.sqrt(2.0 * math.log(len(nodes)))
        certain = []
        for node, rate, c, time_s in zip(nodes, rates, fixed_s, times, strict=True):
            off = math.log(time_s / middle)
            noise = errors * (node.rate_error or 0.0) * node.batch_size * rate / time_s
            sure_s = middle * math.exp(math.copysign(max(abs(off) - noise, 0.0), off))
            certain.append(max(sure_s - c, FLOOR * time_s) / node.batch_size)
        best = solve_nd(sum(sizes), certain, fixed_s, least, most)
        assert best is not None, "the batch sizes in force are within the bounds"
        saved = 1.0 - step_s(best, certain, fixed_s) / step_s(sizes, certain, fixed_s)
        return saved >= self.parameters.gain_sure_min

    def _bounds(self, nodes: list[NodeView]) -> tuple[list[int], list[int]]:
        """Within the factor and the limits, those of each worker's memory among them; what is in force is allowed."""
        asked = self.parameters
        sizes = [node.batch_size for node in nodes]
        holds = [min(asked.batch_size_max, node.batch_size_max or asked.batch_size_max) for node in nodes]
        least = [min(max(asked.batch_size_min, int(b / asked.change_max)), b) for b in sizes]
        most = [max(min(held, int(b * asked.change_max)), b) for b, held in zip(sizes, holds, strict=True)]
        return least, most

    @staticmethod
    def _damped(
        nodes: list[NodeView], best: list[int], rates: list[float], fixed_s: list[float], previous: Mapping[str, int]
    ) -> list[int]:
        """`best`, or half of the way there when that takes the last move back."""
        sizes = [node.batch_size for node in nodes]
        moved = [node.batch_size - previous.get(node.worker, node.batch_size) for node in nodes]
        if sum((new - now) * last for new, now, last in zip(best, sizes, moved, strict=True)) >= 0:
            return best
        ends = list(zip(sizes, best, strict=True))
        low = [min(now, new) + abs(new - now) // 2 for now, new in ends]
        high = [min(now, new) + (abs(new - now) + 1) // 2 for now, new in ends]
        half = solve_nd(sum(sizes), rates, fixed_s, low, high)
        assert half is not None, (sizes, best)
        return half


def _proposal(
    view: ClusterView, nodes: list[NodeView], movable: list[NodeView], plan: list[int], reason: str, gain: float
) -> Proposal:
    new = dict(zip((node.worker for node in movable), plan, strict=True))
    assignments = tuple(
        Assignment(node.worker, new.get(node.worker, node.batch_size), node.accumulation) for node in nodes
    )
    assert sum(a.batch_size for a in assignments) == sum(node.batch_size for node in nodes)
    return Proposal(Action.ADJUST_BS, reason, gain, (*assignments, *spared(view)))


def is_movable(node: NodeView) -> bool:
    """Workers whose rate is unknown, and those that fell silent, keep their share."""
    rate = node.seconds_per_sample
    return rate is not None and rate > 0.0 and node.node_class is not NodeClass.ABSENT


def _reason(nodes: list[NodeView], plan: list[int], gain: float) -> str:
    """About the worker whose batch changes most."""
    changes = [(abs(math.log(new / node.batch_size)), node, new) for node, new in zip(nodes, plan, strict=True)]
    _, node, new = min(changes, key=lambda item: (-item[0], item[1].worker))
    assert node.seconds_per_sample is not None
    ratio = node.seconds_per_sample / median_low(n.seconds_per_sample or math.nan for n in nodes)
    return (
        f"{node.worker} needs {ratio:.1f}x the median time: "
        f"{node.batch_size} -> {new} samples, step time {-100.0 * gain:.0f} %"
    )
