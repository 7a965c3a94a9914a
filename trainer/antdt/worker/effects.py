"""What a plan changes in a worker, besides its share of the batch, from the step on at which it comes into force.

Every member comes by in the same step, before its optimizer runs. Must not know torch, nor how a plan is agreed on.
"""

from __future__ import annotations

import logging
from typing import Protocol

from antdt_schemas.errors import Unavailable
from antdt_schemas.strategies import servers_of

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
    """Is not carried out by a strategy in which every gradient counts, and says so, once for each number."""

    def __init__(self) -> None:
        self._said = 0

    def apply(self, plan: Plan, step: int) -> None:
        """See Effect."""
        if plan.backup_workers not in (0, self._said):
            log.warning(
                "plan %d asks for %d backup workers, which ParameterServer(mode='bsp') alone has: step %d and those "
                "behind it wait for every worker, and the rest of the plan is carried out",
                plan.number,
                plan.backup_workers,
                step,
            )
        self._said = plan.backup_workers


class Effects:
    """All effects of the plans of one job on one worker. `strategy`: one replica, which says its step."""

    def __init__(self, plans: Plans, strategy: Strategy, named: str = "") -> None:
        """named: the strategy, as the job's records have it."""
        self.plans, self.strategy = plans, strategy
        self._all: tuple[Effect, ...] = (LearningRate(strategy.rates),)
        if not servers_of(named):  # the first of the servers obeys it
            self._all += (BackupWorkers(),)

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
