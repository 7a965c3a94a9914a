"""The end of a process that was given up while its training thread does not move.

Nobody else can end it: the thread that would join anew is the one that is stuck. So the connection's thread does, after
a grace, with 75: whoever watches the process starts it again.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from time import monotonic
from typing import NoReturn

from antdt_schemas.errors import ExitCode

from antdt.host.whereabouts import Page
from antdt.worker.session import Phase, Session

GRACE_S = 10.0
FRAMES_MAX = 12  # the innermost ones


class LastWord:
    """Watches one training thread's page, from the connection's thread."""

    def __init__(self, page: Page, grace_s: float = GRACE_S) -> None:
        self._page, self._grace_s = page, grace_s
        self._changes, self._since_s = -1, 0.0

    def is_stuck(self, session: Session, now_s: float) -> bool:
        """Whether this incarnation is lost, and nothing has moved for the grace, or for what was announced."""
        if session.phase is not Phase.LOST:
            self._changes = -1
            return False
        if self._page.changes != self._changes:
            self._changes, self._since_s = self._page.changes, now_s
        standing = self._page.standing()
        return now_s - self._since_s > self._grace_s and standing.phase_s > standing.allowed_s

    def look(self, session: Session) -> None:
        """Ends the process if it is to be ended."""
        if self.is_stuck(session, monotonic()):
            self._end(session)

    def _end(self, session: Session) -> NoReturn:
        standing = self._page.standing()
        detail = f" ({standing.detail})" if standing.detail else ""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        where = "".join(traceback.format_stack(frame, FRAMES_MAX)) if frame is not None else ""
        print(
            f"antdt: {session.incarnation} was given up ({session.reason}), and its training thread does not move: "
            f"{standing.phase} for {standing.phase_s:.0f} s{detail}. Ending with {int(ExitCode.RESTART_HERE)}, to be "
            f"started again. It is here:\n{where}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(ExitCode.RESTART_HERE)
