"""What is in force: a pure function of the decisions and the members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from antdt_schemas import records
from antdt_schemas.errors import Undecodable

PLANS_KEPT_MAX = 1024


@dataclass(frozen=True, slots=True)
class Share:
    """What one member takes in a step: samples, and in how many micro-batches."""

    batch_size: int
    accumulation: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is in force under this number; 0 is what the workers begin with.

    shares: by worker; without any the global batch is split evenly. learning_rate_factor: multiplies the rates that the
    script and its scheduler set. backup_workers: slowest members that a step need not wait for.
    """

    number: int = 0
    shares: Mapping[str, Share] = field(default_factory=dict)
    learning_rate_factor: float = 1.0
    backup_workers: int = 0


class Plans:
    """The decisions read so far. Repeats are dropped by their cause, so a zombie's copy changes nothing."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.newest = 0
        self._plans = {0: Plan()}
        self._marks: dict[int, tuple[int, int]] = {}

    def add(self, decision: records.Decision) -> bool:
        """Take a decision, whatever its action; False: it was a repeat, or it leaves the plan as it is.

        Raises Undecodable for a plan that no Controller makes, on every worker alike: nobody carries it out.
        """
        cause = decision.cause
        mark = (cause.offset, cause.index)
        if mark <= self._marks.get(cause.partition, (-1, -1)):
            return False
        self._marks[cause.partition] = mark
        if decision.plan <= self.newest:
            return False
        factor = decision.learning_rate_factor
        if not 0.0 < factor < math.inf:
            raise Undecodable(f"Plan {decision.plan} would multiply the learning rates by {factor}.")
        shares = {a.worker: Share(a.batch_size, a.accumulation) for a in decision.assignments}
        self._plans[decision.plan] = Plan(decision.plan, shares, factor, decision.backup_workers)
        self.newest = decision.plan
        while len(self._plans) > PLANS_KEPT_MAX:
            del self._plans[min(self._plans)]
        return True

    def of(self, number: int) -> Plan | None:
        """The plan of this number; None: it was not read, or is very old."""
        return self._plans.get(number)

    def shares(self, number: int, workers: Sequence[str]) -> list[Share]:
        """Shares of the members under a plan, in rank order.

        A plan made for other members does not fit: then the global batch is split evenly, until the Controller has
        seen the new members. Every member computes the same from the same decisions. Nobody takes less than one
        sample, even where there are more members than the batch has: what it holds would be held for ever.
        """
        plan = self.of(number)
        if plan is not None and set(plan.shares) == set(workers):
            return [plan.shares[w] for w in workers]
        base, more = divmod(self.batch_size, len(workers))
        return [Share(max(1, base + (rank < more))) for rank in range(len(workers))]
