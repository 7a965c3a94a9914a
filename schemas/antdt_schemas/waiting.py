"""When to say that something is waited for: soon, then ever more seldom, and once more when it is over. No clock."""

from __future__ import annotations


class Waiting:
    """One thing that may be waited for; times are seconds of any clock that does not go back.

    first_s: how long it is waited for in silence. Each further word comes twice as late as the one before, at most
    every_max_s after it.
    """

    def __init__(self, first_s: float = 5.0, every_max_s: float = 60.0) -> None:
        self.first_s, self.every_max_s = first_s, every_max_s
        self.since_s: float | None = None
        self._said, self._next_s = False, 0.0

    def is_due(self, now_s: float, since_s: float | None = None) -> bool:
        """It is waited for, since `since_s` if that is known better: whether to say so now."""
        if self.since_s is None:
            self.since_s = now_s if since_s is None else since_s
            self._next_s = self.since_s + self.first_s
        if now_s < self._next_s:
            return False
        self._said = True
        self._next_s = now_s + min(self.every_max_s, max(self.first_s, now_s - self.since_s))
        return True

    def over(self, now_s: float) -> float | None:
        """It is there: how long it was waited for, if that was said."""
        waited_s = now_s - self.since_s if self._said and self.since_s is not None else None
        self.since_s, self._said = None, False
        return waited_s
