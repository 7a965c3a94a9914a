"""Which samples a member takes in a step: those at the front of what it holds on lease.

Owns the data path of a life, which may be replaced by another. Must not know what becomes of the samples.
"""

from __future__ import annotations

from collections.abc import Generator

from antdt_schemas.ranges import Range

from antdt.strategies.base import Outcome
from antdt.worker.instructions import Wait
from antdt.worker.session import Phase, Session

IDLE_ROUND_S = 0.02
FIRST_LEASE_S = 1.0


class Leased:
    """Samples are leased by each member for itself, ahead of their use; a step takes what there is."""

    def __init__(self, ranges_max: int) -> None:
        self._ranges_max, self._previous_total = ranges_max, 1

    def begin(self) -> None:
        """A generation begins."""
        self._previous_total = 1

    def wait(self, session: Session) -> Generator[Wait, bool, None]:
        """A little, where there is nothing to take, and everybody else is idle, too."""
        leases = session.leases
        if leases.untaken or session.phase is not Phase.MEMBER:
            return
        patience_s = IDLE_ROUND_S if self._previous_total == 0 else 0.0
        if not leases.answered:
            patience_s = FIRST_LEASE_S
        if patience_s:
            yield Wait(lambda: leases.untaken > 0 or session.phase is not Phase.MEMBER, patience_s)

    def take(self, session: Session, batch_size: int) -> list[Range]:
        """At most so many samples."""
        session.leases.batch_size = batch_size
        return [Range(*r) for r in session.leases.take(batch_size, self._ranges_max)]

    def made(self, session: Session, outcome: Outcome) -> None:
        """A round is complete."""
        self._previous_total = outcome.total
        if outcome.applied:
            session.leases.observe(outcome.total, outcome.rows[0].reference)
