"""Generations that did not form, one after the other: what to say of it, how long to pause, when to give up.

Pure: no clock, no socket. Must not know why one did not form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antdt_schemas.address import is_loopback, unreached
from antdt_schemas.errors import Unavailable

PAUSE_S, PAUSE_MAX_S = 0.2, 5.0
CLOSED_SAID_FROM = 3  # a generation may be closed before it stands because somebody joins


@dataclass(slots=True)
class Attempts:
    """In a row, since the last generation that stood."""

    patience_s: float
    number: int = 0
    since_s: float = 0.0

    def stands(self) -> None:
        """A generation has formed."""
        self.number = 0

    def failed(self, now_s: float, what: str, hosts: Sequence[str]) -> tuple[str, float]:
        """Nobody closed it, and it did not form: a sentence, and how many seconds to wait before the next one.

        Raises:
            Unavailable: none has formed for `patience_s`.
        """
        tried_s = self._count(now_s)
        mixed = any(map(is_loopback, hosts)) and not all(map(is_loopback, hosts))
        hint = unreached(hosts) if mixed or self.number > 1 else ""
        if tried_s > self.patience_s:
            raise Unavailable(f"{what} This was tried {self.number} times in {tried_s:.0f} s.", hint)
        said = f"{what} Tried {self.number} times in {tried_s:.0f} s, for {self.patience_s:.0f} s at most. {hint}"
        return said.strip(), min(PAUSE_MAX_S, PAUSE_S * 2 ** min(self.number - 1, 8))

    def closed(self, now_s: float, what: str) -> str:
        """The ledger closed it before it stood: a sentence where that goes on. Whoever asks for it is bounded."""
        tried_s = self._count(now_s)
        if self.number < CLOSED_SAID_FROM:
            return ""
        return f"{what} None has formed for {tried_s:.0f} s, {self.number} in a row."

    def _count(self, now_s: float) -> float:
        """Seconds since the first of them."""
        self.since_s = self.since_s if self.number else now_s
        self.number += 1
        return now_s - self.since_s
