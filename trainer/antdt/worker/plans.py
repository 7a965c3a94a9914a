"""Which batch size a worker takes under which plan: a pure function of the decisions and the members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antdt_schemas import records
from antdt_schemas.records import Action

PLANS_KEPT_MAX = 1024


@dataclass(frozen=True, slots=True)
class Share:
    """What one member takes in a step: samples, and in how many micro-batches."""

    batch_size: int
    accumulation: int = 1


class Plans:
    """The decisions read so far. Repeats are dropped by their cause, so a zombie's copy changes nothing."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.newest = 0
        self._plans: dict[int, dict[str, Share]] = {}
        self._marks: dict[int, tuple[int, int]] = {}

    def add(self, decision: records.Decision) -> bool:
        """Take a decision; False: it was a repeat, or nothing for a batch size."""
        cause = decision.cause
        mark = (cause.offset, cause.index)
        if mark <= self._marks.get(cause.partition, (-1, -1)):
            return False
        self._marks[cause.partition] = mark
        if decision.action is not Action.ADJUST_BS or decision.plan <= self.newest:
            return False
        self._plans[decision.plan] = {a.worker: Share(a.batch_size, a.accumulation) for a in decision.assignments}
        self.newest = decision.plan
        while len(self._plans) > PLANS_KEPT_MAX:
            del self._plans[min(self._plans)]
        return True

    def shares(self, plan: int, workers: Sequence[str]) -> list[Share]:
        """Shares of the members, in rank order.

        A plan made for other members does not fit: then the global batch is split evenly, until the Controller has
        seen the new members. Every member computes the same from the same decisions. Nobody takes less than one
        sample, even where there are more members than the batch has: what it holds would be held for ever.
        """
        assigned = self._plans.get(plan, {})
        if set(assigned) == set(workers):
            return [assigned[w] for w in workers]
        base, more = divmod(self.batch_size, len(workers))
        return [Share(max(1, base + (rank < more))) for rank in range(len(workers))]
