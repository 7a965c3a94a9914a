"""What a worker throws away that was too late: said until the ledger has it in quarantine.

One contribution at a time: the next one is handed in when this is answered, as samples go from the front of a lease.
"""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.records import Status

from antdt.worker.session.asking import Due, Outbox, SessionOptions


class Drops:
    """ranges: flat quintuples that are to be dropped; empty: nothing is."""

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.begin()

    def begin(self) -> None:
        """Another generation: what was open returns."""
        self.ranges: tuple[int, ...] = ()
        self._due = Due()

    def add(self, ranges: tuple[int, ...]) -> None:
        """These were late."""
        assert not self.ranges, "one at a time"
        self.ranges = ranges

    def on_reply(self, reply: records.Reply) -> None:
        """They are dropped, or what is in front of them is not committed yet."""
        if self._due.tries and reply.number == self._due.number:
            self._due.answered()
            if reply.status is Status.OK:
                self.ranges = ()

    def tick(self, now_s: float, generation: int, outbox: Outbox) -> None:
        due = self._due
        pause_s = due.pause_s(self.options) if due.tries else self.options.hurried_s
        if self.ranges and now_s - due.at_s >= pause_s:
            outbox.post(records.Drop(generation, self.ranges), due, now_s)
