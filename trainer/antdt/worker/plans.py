"""What is in force: a pure function of the decisions and the members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.colony import POLICY, ColonyParameters, parameters_of
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
    script and its scheduler set. backup_workers: slowest members that a step need not wait for; under AllReduce those
    whose share is 0, who take part with no samples. (A global batch that a plan changes is in force when the ledger has
    recorded it: see `Wish`.)
    """

    number: int = 0
    shares: Mapping[str, Share] = field(default_factory=dict)
    learning_rate_factor: float = 1.0
    backup_workers: int = 0


class Wish(NamedTuple):
    """The newest plan that changes the global batch, and to how much: for the ledger, which says from which generation
    on it counts.
    """

    plan: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Split:
    """A step among the members, in rank order. batch_size: of all of them together. spares: a share of 0 is none."""

    shares: Sequence[Share]
    batch_size: int
    spares: bool = False


class Plans:
    """The decisions read so far. Repeats are dropped by their cause, so a zombie's copy changes nothing.

    `batch_size`: of the steps that are made now. `wish`: None while no plan has changed it. `colony`: how workers take
    over from each other, where they do.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.newest = 0
        self.wish: Wish | None = None
        self.colony = ColonyParameters()
        self._plans = {0: Plan()}
        self._marks: dict[int, tuple[int, int]] = {}
        self._split = Plan(), list[str](), Split((), 0)  # the last one that was asked for, and for whom

    def add(self, decision: records.Decision) -> bool:
        """Take a decision, whatever its action; False: it was a repeat, or it leaves the plan as it is.

        Raises Undecodable for a plan that no Controller makes, on every worker alike: nobody carries it out.
        """
        cause = decision.cause
        mark = (cause.offset, cause.index)
        if mark <= self._marks.get(cause.partition, (-1, -1)):
            return False
        self._marks[cause.partition] = mark
        if decision.policy == POLICY and decision.parameters:
            self.colony = parameters_of(decision.parameters)
        if decision.plan <= self.newest:
            return False
        factor = decision.learning_rate_factor
        if not 0.0 < factor < math.inf:
            raise Undecodable(f"Plan {decision.plan} would multiply the learning rates by {factor}.")
        shares = {a.worker: Share(a.batch_size, a.accumulation) for a in decision.assignments}
        self._plans[decision.plan] = Plan(decision.plan, shares, factor, decision.backup_workers)
        self.newest = decision.plan
        if decision.batch_size > 0 and (self.wish is None or self.wish.batch_size != decision.batch_size):
            self.wish = Wish(decision.plan, decision.batch_size)
        while len(self._plans) > PLANS_KEPT_MAX:
            del self._plans[min(self._plans)]
        return True

    def resize(self, batch_size: int) -> None:
        """All members take so many samples together from now on."""
        if batch_size != self.batch_size:
            self.batch_size, self._split = batch_size, (Plan(), [], Split((), 0))

    def of(self, number: int) -> Plan | None:
        """The plan of this number; None: it was not read, or is very old."""
        return self._plans.get(number)

    def split(self, number: int, workers: Sequence[str]) -> Split:
        """Shares of the members under a plan. The same as in the step before, as a rule.

        A plan made for other members does not fit: then the global batch is split evenly, until the Controller has
        seen the new members. Every member computes the same from the same decisions. Without such a plan nobody takes
        less than one sample, even where there are more members than the batch has.
        """
        plan = self.of(number) or Plan(number)
        of, members, split = self._split
        if plan is not of or workers != members:
            split = self._split_of(plan, workers)
            self._split = plan, list(workers), split
        return split

    def own(self, worker: str, rank: int, workers: int) -> Split:
        """What this worker takes under the newest plan, where each takes by itself. Without a share in it: an even one
        of so many workers, which is what the split has as its batch size.
        """
        plan = self.of(self.newest) or Plan()
        base, more = divmod(self.batch_size, workers)
        even = max(1, base + (rank % workers < more))
        return Split([plan.shares.get(worker) or Share(even)], even)

    def _split_of(self, plan: Plan, workers: Sequence[str]) -> Split:
        if plan.shares.keys() == set(workers):
            shares = [plan.shares[w] for w in workers]
            return Split(shares, sum(s.batch_size for s in shares), spares=plan.backup_workers > 0)
        base, more = divmod(self.batch_size, len(workers))
        shares = [Share(max(1, base + 1))] * more + [Share(max(1, base))] * (len(workers) - more)
        return Split(shares, max(self.batch_size, len(workers)))
