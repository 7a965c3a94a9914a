"""What a member passes on to the ledger that concerns all: a plan changes the global batch, a script ends the training.

Owns that each is said until it is answered. Must not know what follows from it.
"""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.records import Status

from antdt.worker.session.asking import Due, Outbox, SessionOptions

HEARD_FIRST_S = 1.0  # so long whoever has only heard of a stop leaves it to the one whose script knows the reason


class Changes:
    """wish: (plan, batch size) of the newest plan that changes it. stop: (step, reason) of the last step; the reason is
    empty where another worker's script has it.
    """

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.wish: tuple[int, int] | None = None
        self.stop: tuple[int, str] | None = None
        self._stopped_since_s = 0.0
        self._carried = 0  # the newest plan that was answered
        self._wished, self._stopped = Due(), Due()
        self._asked: tuple[int, int] = (-1, 0)  # number of the newest request, and its plan

    def begin(self) -> None:
        """Another generation: where it stops is said anew."""
        self.stop, self._stopped, self._wished = None, Due(), Due()

    def answered(self, reply: records.Reply) -> None:
        """A reply to any request came."""
        number, plan = self._asked
        if reply.number == number and reply.status is Status.OK:
            self._carried = max(self._carried, plan)

    def tick(self, now_s: float, generation: int, rank: int, heard: str, outbox: Outbox) -> None:
        """heard: what the ledger has said of a stop."""
        if rank == 0 and self.wish is not None and self.wish[0] > self._carried and self._may(self._wished, now_s):
            plan, batch_size = self.wish
            body = records.Resize(batch_size, f"plan {plan}", f"plan {plan} changes the global batch", plan)
            self._asked = outbox.post(body, self._wished, now_s), plan
        if self.stop is None or heard:
            self._stopped_since_s = now_s
            return
        step, reason = self.stop
        mine = reason or (rank == 0 and now_s - self._stopped_since_s >= HEARD_FIRST_S)
        if mine and self._may(self._stopped, now_s):
            outbox.post(records.Stop(generation, step, reason), self._stopped, now_s)

    def _may(self, due: Due, now_s: float) -> bool:
        return now_s - due.at_s >= due.pause_s(self.options)
