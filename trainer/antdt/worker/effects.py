"""What a plan changes in a worker, besides its share of the batch, from the step on at which it comes into force.

Every member comes by in the same step, before its optimizer runs. Must not know torch, nor how a plan is agreed on.
"""

from __future__ import annotations

import logging
from typing import Protocol

from antdt_schemas.errors import Unavailable
from antdt_schemas.strategies import is_collective, servers_of

from antdt.strategies.base import Rates, Strategy
from antdt.worker.plans import Plan, Plans

log = logging.getLogger("antdt")


class Effect(Protocol):
    """One thing that a plan may change."""

    def apply(self, plan: Plan, step: int) -> None:
        """`plan` is in force from `step` on, this one included, which is about to be applied."""


class LearningRate:
    """Multiplies the learning rates. The model holds the factor, so it comes back with the model."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates

    def apply(self, plan: Plan, step: int) -> None:
        """See Effect."""
        if plan.learning_rate_factor != self.rates.factor:
            log.info("plan %d: learning rates times %g from step %d on", plan.number, plan.learning_rate_factor, step)
        self.rates.factor = plan.learning_rate_factor


class BackupWorkers:
    """Says what becomes of them, once for each number. Under AllReduce the members' shares are all of it; who makes
    averages or is not told who they are waits for everybody.
    """

    def __init__(self, *, collective: bool) -> None:
        self._collective, self._said = collective, (0, "")

    def apply(self, plan: Plan, step: int) -> None:
        """See Effect."""
        many = plan.backup_workers
        spared = [worker for worker, share in sorted(plan.shares.items()) if not share.batch_size]
        who = ", ".join(spared) if many and self._collective else ""
        if (many, who) == self._said:
            return
        if who:
            log.info("plan %d: %s takes no samples from step %d on, the others take all", plan.number, who, step)
        elif many:
            lacking = ", which ParameterServer(mode='bsp') and AllReduce alone have"
            log.warning(
                "plan %d asks for %d backup workers%s: step %d and those behind it wait for every worker, and the rest "
                "of the plan is carried out",
                plan.number,
                many,
                " and does not say which" if self._collective else lacking,
                step,
            )
        self._said = many, who


class Effects:
    """All effects of the plans of one job on one worker. `strategy`: one replica, which says its step."""

    def __init__(self, plans: Plans, strategy: Strategy, named: str = "") -> None:
        """named: the strategy, as the job's records have it."""
        self.plans, self.strategy = plans, strategy
        self._all: tuple[Effect, ...] = (LearningRate(strategy.rates),)
        if not servers_of(named):  # the first of the servers obeys it
            self._all += (BackupWorkers(collective=is_collective(named)),)

    def on_plan(self, number: int) -> None:
        """The step that is about to be applied is the first one under this plan.

        Raises Unavailable where this worker has not read what everybody has: others apply it, and this worker takes
        their model over when it is started again.
        """
        plan = self.plans.of(number)
        if plan is None:
            raise Unavailable(f"Plan {number} comes into force, and this worker could not read it in the decisions.")
        for effect in self._all:
            effect.apply(plan, self.strategy.step_number + 1)
