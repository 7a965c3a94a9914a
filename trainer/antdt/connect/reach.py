"""Whether ledger and broker answer a worker, in words for whoever looks at its terminal.

Owns since when nobody answers, who that is, and how far training goes without an answer. Must not know how anything is
sent. Its clock runs while somebody calls `word`: a process that slept was not left without an answer.
"""

from __future__ import annotations

from antdt_schemas.strategies import WATCHED
from antdt_schemas.waiting import Waiting

from antdt.worker.session import Phase, Session

FIRST_S = 5.0
GAP_S = 0.5


class Reach:
    """The two parties that one worker talks to. pending_max: steps that may await their commit."""

    def __init__(self, job: str, bootstrap: str, pending_max: int) -> None:
        self.job, self.bootstrap, self.pending_max = job, bootstrap, pending_max
        self._waiting, self._who = Waiting(FIRST_S), ""
        self._clock_s, self._now_s = 0.0, -1.0
        self._asked_at_s: float | None = None
        self._taken_at_s = -1.0

    def asked(self) -> None:
        if self._asked_at_s is None:
            self._asked_at_s = self._clock_s

    def taken(self) -> None:
        self._taken_at_s = self._clock_s

    def heard(self) -> None:
        self._asked_at_s = None

    def word(self, session: Session, now_s: float) -> str | None:
        """What is to be said now, if anything. The caller holds the lock of the session."""
        if self._now_s >= 0:
            self._clock_s += min(max(now_s - self._now_s, 0.0), GAP_S)
        self._now_s = now_s
        if session.phase in (Phase.ENDED, Phase.FAILED):
            return None  # nothing is asked any more
        if self._asked_at_s is None:
            waited_s = self._waiting.over(self._clock_s)
            if waited_s is None:
                return None
            return f"{session.worker}: {self._who} answers again, after {waited_s:.0f} s."
        if not self._waiting.is_due(self._clock_s, self._asked_at_s):
            return None
        self._who = f"the ledger of job {self.job}"
        beside = " (the broker does)"
        if self._taken_at_s < self._asked_at_s:
            self._who, beside = f"the Kafka broker at {self.bootstrap}", ""
        since_s = self._clock_s - self._asked_at_s
        return (
            f"{session.worker}: {self._who} has not answered for {since_s:.0f} s{beside}. "
            f"{self._how_far(session)} See `antdt status {self.job}`."
        )

    def _how_far(self, session: Session) -> str:
        if session.spec.strategy == WATCHED:
            return "Training is not held up by it; what is measured waits here, and the oldest goes first."
        if session.phase is not Phase.MEMBER:
            return "Nothing is trained on until it does."
        return (
            f"Training goes on without it: {session.unreported:,} steps await their commit, at most "
            f"{self.pending_max:,} may; {session.leases.untaken:,} samples are leased ahead here."
        )
