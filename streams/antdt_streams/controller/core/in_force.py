"""What a Controller has commanded last, in all, and the number that it has. What to command is decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from antdt_schemas.batches import split
from antdt_schemas.records import Assignment, Decision

from antdt_streams.policies.policy import CHANGES, Proposal


@dataclass(slots=True)
class InForce:
    """What was commanded last, in all. `plan` 0 is what the workers started with."""

    plan: int = 0
    window: int = 0
    issued_ms: int = 0
    learning_rate_factor: float = 1.0
    backup_workers: int = 0
    assignments: dict[str, Assignment] = field(default_factory=dict)
    batch_size: int = 0

    def take(self, proposal: Proposal, window: int, now_ms: int) -> None:
        """Put a proposal into force, under a number of its own where it changes the plan."""
        if proposal.action not in CHANGES:
            return
        self.plan, self.window, self.issued_ms = self.plan + 1, window, now_ms
        if proposal.learning_rate_factor is not None:
            self.learning_rate_factor = proposal.learning_rate_factor
        if proposal.backup_workers is not None:
            self.backup_workers = proposal.backup_workers
        if proposal.assignments is not None:
            self.assignments = {a.worker: a for a in proposal.assignments}
        if proposal.batch_size is not None:
            self.batch_size = proposal.batch_size
            self._share_out()

    def _share_out(self) -> None:
        """Shares in the same proportion, of the global batch as it is now."""
        workers = sorted(self.assignments)
        if workers and self.batch_size >= len(workers):
            weights = [self.assignments[worker].batch_size for worker in workers]
            sizes = split(self.batch_size, weights, spares=self.backup_workers > 0)
            for worker, size in zip(workers, sizes, strict=True):
                self.assignments[worker] = replace(self.assignments[worker], batch_size=size)

    def follow(self, decision: Decision, window: int, now_ms: int) -> None:
        """Take over what was commanded, which is all that is in force."""
        if decision.plan != self.plan:
            self.plan, self.window, self.issued_ms = decision.plan, window, now_ms
        self.learning_rate_factor, self.backup_workers = decision.learning_rate_factor, decision.backup_workers
        self.batch_size = decision.batch_size
        self.assignments = {a.worker: a for a in decision.assignments}

    def to_row(self) -> list[Any]:
        rows = [[a.worker, a.batch_size, a.accumulation] for _, a in sorted(self.assignments.items())]
        numbers = [self.plan, self.window, self.issued_ms]
        return [*numbers, self.learning_rate_factor, self.backup_workers, self.batch_size, rows]
