"""AntDT-ND, for a cluster that is shared with others: restarts where they have paid for themselves, else ADJUST_BS.

Servers first, as no batch size absorbs a slow one; then persistent workers, by ski rental (`restarts`); whoever may not
be started again, and whoever is only slow by itself, gets the share of the batch that its own rate allows.
"""

from __future__ import annotations

from dataclasses import dataclass

from antdt_streams.policies.adjust_batch_size import AdjustBatchSize, AdjustBatchSizeOptions
from antdt_streams.policies.policy import ClusterView, Memory, Proposal
from antdt_streams.policies.restarts import RestartParameters, Restarts


@dataclass(frozen=True)
class NonDedicatedParameters(AdjustBatchSizeOptions, RestartParameters):
    """Those of both measures. balance: whether batch sizes are ever changed."""

    balance: bool = True

    def __post_init__(self) -> None:
        AdjustBatchSizeOptions.__post_init__(self)
        RestartParameters.__post_init__(self)


class NonDedicated:
    """The policy `nd`."""

    name = "nd"
    version = 1

    def __init__(self, parameters: NonDedicatedParameters | None = None) -> None:
        self.parameters = parameters or NonDedicatedParameters()
        self._restarts = Restarts(self.parameters, balanced=self.parameters.balance)
        self._balance = AdjustBatchSize(self.parameters)

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        """At most one proposal."""
        memory = self._restarts.remember(view, memory)
        if view.pending:
            return (), memory
        found = self._restarts.propose(view, memory)
        if found is not None:
            proposal, memory = found
            return (proposal,), memory
        if not self.parameters.balance:
            return (), memory
        proposals, remembered = self._balance.decide(view, memory)
        return proposals, {**memory, **remembered}
