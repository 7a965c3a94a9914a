"""AntDT-DD, for a dedicated cluster of unlike devices: quotas and gradient accumulation by each device's cost.

A device takes a + k*b seconds for a micro-batch of b samples, and b is bounded by its memory; a quota of q samples is
computed in C = ceil(q / b_max) micro-batches. Quotas minimise the slowest device's time, exactly. a and k are fitted by
the Monitor; b_max is what the worker states, or has learned by running out of memory and surviving it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Assignment
from antdt_schemas.strategies import is_asynchronous

from antdt_streams.policies.adjust_batch_size import PREVIOUS, is_movable
from antdt_streams.policies.policy import ClusterView, Memory, NodeView, Proposal, spared
from antdt_streams.policies.solver import ACCUMULATION_MAX, solve_dd

Shares = list[tuple[int, int]]
BACK = 4.0


@dataclass(frozen=True, slots=True)
class DedicatedParameters:
    """gain_min: share of the predicted step time that a plan saves at least, and noise_max what the standard errors of
    the two rates that it rests on may be of it. batch_size_max: samples that a device can hold, where it says nothing
    itself; 0: all of them.
    """

    gain_min: float = 0.05
    noise_max: float = 0.5
    batch_size_max: int = 0
    accumulation_max: int = ACCUMULATION_MAX

    def __post_init__(self) -> None:
        if not 0.0 < self.gain_min < 1.0 or self.noise_max <= 0.0:
            raise UsageError("Take 0 < gain_min < 1 and noise_max above 0.")
        if self.batch_size_max < 0 or self.accumulation_max < 1:
            raise UsageError("batch_size_max must not be negative, accumulation_max at least 1.")


class Dedicated:
    """The policy `dd`. Invariant: the quotas have the sum of those they replace."""

    name = "dd"
    version = 1

    def __init__(self, parameters: DedicatedParameters | None = None) -> None:
        self.parameters = parameters or DedicatedParameters()

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        """At most one ADJUST_BS: where something is gained, or a device is to hold more than it can.

        Remembers the batch sizes before the last one.
        """
        nodes = [node for node in view.workers if node.batch_size > 0]
        known = len(nodes) > 1 and all(is_movable(node) for node in nodes)
        if view.pending or view.urgent or not known or is_asynchronous(view.strategy):
            return (), memory
        total = sum(node.batch_size for node in nodes)
        holds = [node.batch_size_max or self.parameters.batch_size_max or total for node in nodes]
        rates = [node.seconds_per_sample or 0.0 for node in nodes]
        best = solve_dd(total, [node.fixed_s for node in nodes], rates, holds, self.parameters.accumulation_max)
        if best is None:
            return (), memory
        now = [(node.batch_size, node.accumulation) for node in nodes]
        must = any(-(-size // count) > held for (size, count), held in zip(now, holds, strict=True))
        # A worker cuts by itself what it cannot hold, so that is what it costs.
        now_s = _time_s(nodes, [(q, max(c, -(-q // held))) for (q, c), held in zip(now, holds, strict=True)])
        gain = 1.0 - _time_s(nodes, best) / now_s
        noise = max(node.rate_error or 0.0 for node in nodes)
        # What a device costs does not change: a move that takes the last one back is mostly noise.
        needed = self.parameters.gain_min * (BACK if _takes_back(nodes, best, memory.get(PREVIOUS, {})) else 1.0)
        sure = gain >= needed and noise <= self.parameters.noise_max * gain
        if best == now or not (sure or must):
            return (), memory
        shares = tuple(Assignment(n.worker, q, c) for n, (q, c) in zip(nodes, best, strict=True))
        before = {node.worker: node.batch_size for node in nodes}
        proposal = Proposal(Action.ADJUST_BS, _reason(nodes, best, gain), gain, (*shares, *spared(view)))
        return (proposal,), {PREVIOUS: before}


def _takes_back(nodes: list[NodeView], best: Shares, previous: Mapping[str, int]) -> bool:
    moved = [node.batch_size - previous.get(node.worker, node.batch_size) for node in nodes]
    return sum((q - node.batch_size) * last for node, (q, _), last in zip(nodes, best, moved, strict=True)) < 0


def _time_s(nodes: list[NodeView], shares: Shares) -> float:
    rows = zip(nodes, shares, strict=True)
    return max(node.fixed_s * c + q * (node.seconds_per_sample or 0.0) for node, (q, c) in rows)


def _reason(nodes: list[NodeView], best: Shares, gain: float) -> str:
    """About the device that changes most."""
    node, (quota, count) = max(zip(nodes, best, strict=True), key=lambda one: abs(one[1][0] - one[0].batch_size))
    parts = f" in {count} micro-batches" if count > 1 else ""
    cost = f"{1e3 * node.fixed_s:.1f} ms + {1e3 * (node.seconds_per_sample or 0.0):.2f} ms a sample"
    return f"{node.worker} takes {cost}: {node.batch_size} -> {quota} samples{parts}, step time {-100 * gain:+.0f} %"
