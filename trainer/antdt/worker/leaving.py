"""When a worker leaves that is told to: by SIGTERM, by whoever takes over its place, or by the script of any worker.

Owns how long it may still take, and what would be lost with it. Must not know how leaving is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from antdt.worker.outside import LifeOptions, Lived
from antdt.worker.session import Session

# Of the grace between SIGTERM and SIGKILL: what is left is for saying good-bye.
LEAVE_SHARE = 0.8


class Leaving:
    """A part of a Life. `told_at_s`: since when this worker is told to leave; whoever drives it may set that at any
    time. `left_behind`: the step at which somebody left, so that a file of it is written; -1 for none.
    """

    session: Session
    strategy: Lived
    options: LifeOptions
    _now_s: Callable[[], float]
    _say: Callable[[int, str], None]
    told_at_s: float | None = None
    taken_over = ""
    left_behind = -1
    _stopping, _why_stopping = False, ""

    def stop(self, reason: str = "") -> None:
        """All members have said in one step that they make none any more. reason: of this worker's script, if it has
        brought that about.
        """
        if not self._stopping:
            self._stopping, self._why_stopping = True, reason
        self.told_at_s = self._now_s() if self.told_at_s is None else self.told_at_s

    @property
    def draining(self) -> bool:
        """Told to leave, by SIGTERM or by whoever takes over."""
        if self.told_at_s is None and self.session.told:
            self.taken_over, self.told_at_s = self.session.told, self._now_s()
            self._say(logging.WARNING, f"{self.taken_over} Leaving after this step.")
        return self.told_at_s is not None

    @property
    def leave_within_s(self) -> float:
        """How long leaving may still take, once told."""
        now_s = self._now_s()
        since_s = now_s - (self.told_at_s if self.told_at_s is not None else now_s)
        return max(0.0, LEAVE_SHARE * self.options.grace_s - since_s)

    @property
    def may_go(self) -> bool:
        """Told to leave, and between generations: nothing of this model is lost with it, or there is no time to wait.

        Whoever has a step that is in no file leaves from the next generation: the others may leave as well.
        """
        return self.draining and (self._loses_nothing or self.leave_within_s == 0)

    @property
    def _loses_nothing(self) -> bool:
        """Whether this model is nobody's loss: there is none, or somebody left behind its step, and the file of it, if
        this worker has written it, is known to the ledger.
        """
        step, files = self.strategy.step_number, self.session.files
        filed = step == self.left_behind and files.newest is None
        return self.strategy.void or self.session.generation == 0 or step == 0 or filed
