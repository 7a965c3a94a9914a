"""Where a worker stands, for its script: which step, which rank, how many steps there are.

Must not change anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from antdt_schemas.batches import Layout, layout_of
from antdt_schemas.errors import UsageError

if TYPE_CHECKING:
    from antdt_schemas import records

    from antdt.connect.alone import Alone
    from antdt.connect.client import Client
    from antdt.driving.membership import Membership
    from antdt.strategies.base import Strategy
    from antdt.worker.plans import Plans
    from antdt.worker.session import Session


class Standing:
    """What an Agent says of itself."""

    strategy: Strategy
    spec: records.JobSpec
    plans: Plans
    _client: Client | Alone
    _membership: Membership

    @property
    def _session(self) -> Session:
        return self._client.session

    @property
    def rank(self) -> int:
        """Rank in the current generation; 0 is the one that reports. -1 while there is none. Where servers hold the
        model, workers have no ranks among each other: it is the one that the launcher has given.
        """
        session = self._session
        return self._membership.settings.rank if session.attached else session.rank

    @property
    def step_number(self) -> int:
        """Steps in the model."""
        return self.strategy.step_number

    @property
    def lineage(self) -> str:
        """What is in the model, as the hexadecimal hash that the log has for this step."""
        return self.strategy.lineage.hex()

    @property
    def learning_rate_factor(self) -> float:
        """What the plan in force, and a changed global batch where `AgentOptions.learning_rate_with_batch` says so,
        multiply the learning rates by while the optimizer steps; else they are as set.
        """
        return self.strategy.rates.total

    @property
    def incarnation(self) -> str:
        """This life of this worker. It is a new one after the ledger has given the old one up for lost."""
        return self._session.incarnation

    @property
    def run_id(self) -> str:
        """What the log calls this run of the job; empty before this worker has taken part."""
        return self._membership.files.run_id

    @property
    def ended(self) -> bool:
        """Whether every sample of every epoch is in the model and in a durable file."""
        return self._membership.life.ended

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch. Raises UsageError where steps have no fixed size."""
        if not self.spec.batches:
            raise UsageError(
                "Nobody knows how many steps there are where samples are leased: that depends on who takes how many. "
                f"Count samples ({self.spec.samples} an epoch), or take AgentOptions(order='steps')."
            )
        return self._layout.steps_per_epoch

    @property
    def _layout(self) -> Layout:
        """As the steps at hand have it."""
        return replace(layout_of(self.spec), batch_size=self.plans.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of all epochs, or as many as the script has asked for: those that are made, and those that are left
        with the global batch at hand. What is readmitted from quarantine makes some more, behind them.

        In a job whose global batch was changed before, and that counts epochs, it is right once the loop has begun:
        before that nobody knows how many steps are made.
        """
        self.steps_per_epoch  # noqa: B018  raises where nobody knows
        made = min(self.step_number, self.spec.steps) if self.spec.steps else self.step_number
        return made + self._layout.steps_ahead(self.strategy.cursor, made)

    def __len__(self) -> int:
        """`total_steps`, for progress bars and schedulers."""
        try:
            return self.total_steps
        except UsageError as error:
            raise TypeError(str(error)) from None  # what `len` means where there is none

    @property
    def batch_size(self) -> int:
        """Samples that this worker takes in the step at hand."""
        workers, session = self._membership.life.workers, self._session
        if session.attached:
            own = self.plans.own(session.worker, self._membership.settings.rank, self.spec.workers_min)
            return own.shares[0].batch_size
        return self.plans.split(self.strategy.plan, workers).shares[self._session.rank].batch_size if workers else 0
