"""The life of a worker whose model servers hold: it takes samples by itself, computes, and hands in what came of them.

Owns the order of things in a round. It is no member of a generation, which servers are: it begins anew in each, with
what it is leased there. Must not know how anything is exchanged.

Rules
    One contribution is open at a time. It is computed anew from the same samples until it is included, whoever asked
    for that: the servers, as it was late, or this worker, whose memory was out. Where what is late is dropped, that
    is the end of it, and the next one is begun when the log has its samples in quarantine.
    Nobody waits for a worker that has no samples, or leaves.
    Whatever is open when the generation ends is nowhere: its samples are leased again.
"""

from __future__ import annotations

import logging

from antdt_schemas import records
from antdt_schemas.strategies import drops

from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed, Outcome, Part
from antdt.worker import instructions as ask
from antdt.worker.instructions import Steps
from antdt.worker.life import Life
from antdt.worker.outside import Attached
from antdt.worker.plans import Split
from antdt.worker.session import OVER, Phase
from antdt.worker.taking import Taken

SAMPLES_S = 0.5  # between two looks for samples


class AttachedLife(Life):
    """See Life. `_again`: what is to be computed once more, None for nothing."""

    strategy: Attached
    _again: Taken | None = None
    _idle = False

    @property
    def _loses_nothing(self) -> bool:
        """The model is the servers'."""
        return True

    def _begin(self, grant: records.Grant) -> Steps:
        """The servers are there, and this worker has pulled their parameters."""
        self.workers = [self.session.worker]
        yield ask.Stands(self.workers)
        self._again, self._idle = None, False
        self.taking.begin(grant)
        said = self.session.worker, len(grant.members), grant.generation
        self._say(logging.INFO, "{} works for {} servers in generation {}".format(*said))

    def _leave(self) -> Steps:
        """What is open is given up. In a generation that goes on this worker comes back as it is."""
        self._again = None
        yield from super()._leave()

    def leave_early(self, until_s: float, *, regroup: bool) -> Steps:
        """See Life. What was begun is handed in nowhere; where there is no generation there is nobody to tell."""
        try:
            if self.generation is not None and self.session.phase is Phase.MEMBER:
                yield from self._say_farewell()
        except GenerationClosed as error:
            self._say(logging.INFO, f"generation is over: {error}")
        self.departed = True

    # -- one round

    def _round(self, *, leaving: bool = False) -> Steps:
        if leaving or self.draining:
            yield from self._say_farewell()
            return
        taken = self._again or (yield from self._take())
        if taken is None:
            return
        plans, split = self.plans, self._split()
        share = split.shares[0]
        part = Part(taken.ranges, plans.newest, taken.reference, empty=taken.empty)
        yield ask.Announce(part, share.batch_size, lambda samples: self.taking.ahead(self.session, samples))
        try:
            if part.samples:  # of a topic there may be positions without a record alone, which count for nothing
                yield ask.Train(taken.ranges, share.accumulation, part.samples, taken.units)
        except GenerationClosed:
            if self.session.phase is not Phase.MEMBER:
                raise
            self._again = taken  # given up here, before anything of it was handed in
            return
        outcome = yield ask.FINISH
        if not outcome.applied and drops(self.session.spec.strategy):
            yield from self._drop(taken)
        else:
            self._again = None if outcome.applied else taken
        yield from self._included(outcome)

    def _drop(self, taken: Taken) -> Steps:
        """It was late: its samples are lost. Nothing is taken before the log says so."""
        session = self.session
        with self._lock:
            session.drops.add(tuple(number for one in taken.ranges for number in one))
        self._again = None
        lost = sum(one.length for one in taken.ranges)
        self._say(logging.WARNING, f"a contribution came too late: its {lost} samples are dropped")
        while session.drops.ranges and session.phase is Phase.MEMBER:
            yield ask.Wait(lambda: not session.drops.ranges or session.phase is not Phase.MEMBER, SAMPLES_S)

    def _split(self) -> Split:
        options = self.options
        return self.plans.own(self.session.worker, options.rank, options.workers_min)

    def _take(self) -> Steps:
        """Samples for one contribution; None where there are none now, or none any more."""
        session, leases = self.session, self.session.leases
        session.moves.parameters = self.plans.colony
        if not leases.takeable:  # none is leased, or what is leased of a topic is not read yet
            if not self._idle and leases.answered and not leases.untaken:
                self._idle = True
                yield ask.Idle()
            yield ask.Enter(At.IDLE, "waits for samples")
            yield ask.Wait(lambda: leases.takeable > 0 or session.phase is not Phase.MEMBER, SAMPLES_S)
        if session.phase is Phase.ENDED:
            yield from self._take_final()
            self.ended = True
            return None
        if session.phase is not Phase.MEMBER:
            raise GenerationClosed(session.reason or "it was closed")
        if self.draining or not leases.takeable:
            return None
        self._idle = False
        with self._lock:
            return self.taking.take(session, self.strategy.cursor, self.strategy.step_number, self._split(), idle=False)

    def _included(self, outcome: Outcome) -> Steps:
        with self._lock:
            # The others have taken about as many meanwhile. Where one of them has run out, what this one need not hold
            # goes back.
            about = outcome.total * self.options.workers_min
            self.session.leases.observe(about, about + self.strategy.others_idle)
        yield ask.Accounted(outcome)
        if outcome.skipped is not None:
            said = f"a contribution to step {self.strategy.step_number} counts for nothing: {outcome.why}"
            self._say(logging.WARNING, said)

    # -- good-bye

    def _say_farewell(self) -> Steps:
        """Nothing is open: stay until the last contribution is committed, or there is no time."""
        session, step = self.session, self.strategy.step_number
        yield ask.Enter(At.ENDING)
        yield ask.Idle(leaving=True)
        with self._lock:
            session.leaving = True

        def settled() -> bool:
            return session.phase in (*OVER, Phase.CLOSED) or session.committed >= step

        yield ask.Wait(settled, self.leave_within_s)
        self.saved = session.phase is Phase.ENDED or session.committed >= step
        self.departed = True
