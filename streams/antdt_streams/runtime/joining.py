"""Whether a member that its group does not let in should try with another client.

A request to join that was on its way while the broker went down may be waited for until the client's own bound, three
quarters of a minute (seen in one of 100 chaos runs; see also `source.POLL_BEYOND_SESSION_MS`). A broker that answers a
client of its own meanwhile is there, and would answer a new request. Knows no consumer.
"""

from __future__ import annotations

from antdt_schemas.hearing import POLL_GAP_S, Broker

OUTSIDE_S = 8.0  # a rebalance that waits for nobody who is dead takes three
DOUBLINGS_MAX = 3
ASK_EVERY_S = 1.0


class Joining:
    """Time counts while somebody polls, and from the broker's first answer on. Each new client has twice as long."""

    def __init__(self, broker: Broker, topic: str, outside_s: float = OUTSIDE_S) -> None:
        self._broker, self._topic, self._bound_s = broker, topic, outside_s
        self._polled_at_s: float | None = None
        self._doublings = 0
        self._begin()

    def _begin(self) -> None:
        self._outside_s, self._ask_in_s = 0.0, 0.0
        self._asked = self._answers = False

    def over(self) -> None:
        self._doublings = 0
        self._begin()

    def is_hopeless(self, now_s: float) -> bool:
        """After a poll outside the group: whether another client should try. Its time begins anew then."""
        passed_s = 0.0 if self._polled_at_s is None else min(now_s - self._polled_at_s, POLL_GAP_S)
        self._polled_at_s = now_s
        self._ask(passed_s)
        if self._answers:
            self._outside_s += passed_s
        if self._outside_s < self._bound_s * 2**self._doublings:
            return False
        self._doublings = min(self._doublings + 1, DOUBLINGS_MAX)
        self._begin()
        return True

    def _ask(self, passed_s: float) -> None:
        told = self._broker.answer() if self._asked else None
        if told is not None:
            self._asked, self._answers = False, bool(told.ids)
            if not told.ids:
                self._outside_s = 0.0
        self._ask_in_s -= passed_s
        if not self._asked and self._ask_in_s <= 0:
            self._broker.ask((), (self._topic,))
            self._asked, self._ask_in_s = True, ASK_EVERY_S
