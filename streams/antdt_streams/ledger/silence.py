"""When a standby takes office: somebody asks, and whoever leads writes nothing. Pure; times are of any steady clock.

Nobody needs a leader while nobody asks, so a leader has nothing to write then, and its silence says nothing: a job that
is idle, or done, costs no entry. Who asks is known by the end of the requests, which is looked at while the log is
silent, several times within the patience.

What a leader found no request in (the marker of a transaction, what it was told to leave out) stays between its
position and that end for good. So what was there when somebody took office is not waited for again: whoever is not
answered asks again.
"""

from __future__ import annotations

LOOKS = 4


class Silence:
    """What a standby knows of the log and of the requests. `patience_s`: how long somebody may wait for an answer."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        # When it was last known that nobody waited, as an entry came or a look found no request; and since when
        # somebody does.
        self._clear_s = self._looked_s = 0.0
        self._waits_since_s: float | None = None
        self._end = self._excused = 0

    def begin(self, now_s: float) -> None:
        self._is_clear(now_s)

    def _is_clear(self, now_s: float) -> None:
        self._clear_s = self._looked_s = now_s
        self._waits_since_s = None

    def wrote(self, now_s: float, *, leader: bool) -> None:
        """Entries came, with a new Leader's among them or not."""
        self._is_clear(now_s)
        if leader:
            self._excused = self._end

    def is_look_due(self, now_s: float) -> bool:
        """Whether to ask the broker for the ends of log and requests."""
        return now_s - self._looked_s >= self.patience_s / LOOKS

    def waits(self, requests_next: int, requests_end: int) -> bool:
        """Whether somebody waits for an answer. An end below the position is another topic's: that must be told."""
        return not requests_next <= requests_end <= max(requests_next, self._excused)

    def looked(self, began_s: float, requests_next: int, requests_end: int) -> bool:
        """A look that began then found the log at its known end, and the requests at this one, of which the log has
        those below `requests_next`. Whether to take office.
        """
        self._looked_s, self._end = began_s, requests_end
        if not self.waits(requests_next, requests_end):
            self._is_clear(began_s)
            return False
        if self._waits_since_s is None:
            # They came after the look before. That may be long ago, for a process that slept.
            self._waits_since_s = max(self._clear_s, began_s - 2 * self.patience_s / LOOKS)
        return began_s - self._waits_since_s >= self.patience_s

    def in_vain(self, began_s: float) -> None:
        """A look got no answer, or found that there is something to read: nobody is dead for that."""
        self._is_clear(began_s)
