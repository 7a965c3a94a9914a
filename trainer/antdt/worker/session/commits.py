"""Steps that are in this worker's model and not known to be committed.

Owns which of them may be reported, and reports them until the ledger's `committed` has reached them. Must not know
where their samples came from: a composition is passed on as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.records import Status

from antdt.worker.session.asking import ASKED_MAX, Due, Outbox, SessionOptions


class Composition(NamedTuple):
    """A step that is in this worker's model: flat quintuples (lease, token, epoch, start, length) in rank order.

    lineage: that of the model after the step; empty where the step came with somebody else's model. skipped: whose
    gradient was not finite, where the step was skipped for that.
    """

    step: int
    ranges: tuple[int, ...]
    lineage: bytes
    plan: int
    skipped: tuple[str, ...] | None = None


class Commits:
    """The unreported steps of one generation, in order.

    Invariants: nothing is sent that is not proven to be in the model of every member. Losses are said to be obeyed with
    or after the last step that may hold something of whoever was lost. `settle`: the first commit of the generation,
    which settles the leases of those who are gone, was not answered yet; it is sent even if it is empty.
    """

    def __init__(
        self, options: SessionOptions, pending: Sequence[Composition] = (), lineage: bytes = b"", settle: bool = False
    ) -> None:
        self.options = options
        self.compositions, self.lineage, self.settle = deque(pending), lineage, settle
        self._provable, self._sent_step = -1, -1
        self._sent, self._numbers = Due(), set[int]()
        # Up to this loss all are obeyed, and the ledger knows; so they are since this step, and it may not know.
        self.obeyed, self._obeys, self._obeys_from = 0, 0, 0
        self._obeying = dict[int, int]()

    def add(self, composition: Composition) -> None:
        """A step is in this model."""
        self.compositions.append(composition)

    def proven(self, step: int) -> None:
        """Every member has applied `step`."""
        self._provable = max(self._provable, step)

    def obey(self, losses: int, committed: int) -> None:
        """Nobody who was lost up to this number is in a step that is added from here on."""
        if losses > self._obeys:
            self._obeys, self._obeys_from = losses, max((committed, *(c.step for c in self.compositions)))

    def drop(self, committed: int) -> None:
        """What is committed need not be reported again."""
        while self.compositions and self.compositions[0].step <= committed:
            last = self.compositions.popleft()
            self.lineage = last.lineage if last.step == committed else b""
            self.settle = False  # the first commit of a generation settles, whatever it carries

    def answered(self, reply: records.Reply, committed: int) -> None:
        """A reply to any request came."""
        # Answers to older questions count, too: a ledger that is slower than our patience must not starve us.
        if reply.number in self._numbers and reply.status is Status.OK:
            self.settle = False
        if reply.number in self._obeying and reply.status is Status.OK:
            self.obeyed = max(self.obeyed, self._obeying[reply.number])
            self._obeying = {number: losses for number, losses in self._obeying.items() if losses > self.obeyed}
        if reply.number == self._sent.number or committed >= self._sent_step > 0:
            self._sent.answered()

    def tick(self, now_s: float, generation: int, committed: int, outbox: Outbox, *, every_s: float) -> None:
        """Report what is due, every so many seconds.

        An entry of the log for each step would be mostly the entry's own bytes, and nobody needs to hear sooner: what
        was made and not reported is in the models of all, and goes on with them.
        """
        sent, since = self._sent, now_s - self._sent.at_s
        ready = [c for c in self.compositions if c.step <= self._provable]
        new = bool(ready) and ready[-1].step > self._sent_step
        first = self.settle and self._provable >= 0 and sent.number < 0
        obeys = self._obeys > self.obeyed and committed >= self._obeys_from
        new = new or (obeys and self._obeys not in self._obeying.values())
        again = (bool(ready) or (self.settle and self._provable >= 0) or obeys) and since >= self.options.retry_s
        # One at a time: whatever comes meanwhile goes with the next one, however long the ledger is away.
        pause_s = sent.pause_s(self.options) if sent.tries else every_s
        if len(ready) > self.options.commit_steps_max and not sent.tries:
            pause_s = 0.0
        if since < pause_s or not (new or first or again):
            return
        chosen = self._fitting(ready)
        obeys = obeys or (self._obeys > self.obeyed and bool(chosen) and chosen[-1].step >= self._obeys_from)
        body = records.Commit(
            generation=generation,
            first_step=chosen[0].step if chosen else committed + 1,
            compositions=tuple(c.ranges for c in chosen),
            plans=tuple(c.plan for c in chosen),
            lineage=chosen[-1].lineage if chosen else self.lineage,
            log_seen=self._obeys if obeys else -1,
            skipped=tuple(records.Skip(c.step, c.skipped) for c in chosen if c.skipped is not None),
        )
        number = outbox.post(body, sent, now_s)
        if self.settle and len(self._numbers) < ASKED_MAX:
            self._numbers.add(number)
        if obeys and len(self._obeying) < ASKED_MAX:
            self._obeying[number] = self._obeys
        self._sent_step = chosen[-1].step if chosen else self._sent_step

    def last(self, now_s: float, generation: int, committed: int, outbox: Outbox) -> None:
        """Report what was not reported, whether what was before is answered or not: nothing follows."""
        self._sent.answered()
        self.tick(now_s, generation, committed, outbox, every_s=0.0)

    def _fitting(self, ready: list[Composition]) -> list[Composition]:
        """As many as one request holds."""
        room, chosen = self.options.commit_numbers_max, list[Composition]()
        for c in ready[: self.options.commit_steps_max]:
            if chosen and room < len(c.ranges):
                break
            room -= len(c.ranges)
            chosen.append(c)
        return chosen
