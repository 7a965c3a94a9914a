"""The life of a server: it holds a part of the model, and serves until the job is done.

Owns the order of things: load the part that the grant names, serve, report at the primary what was decided, save where
a file is due, leave. All servers together are the generation; the primary is its first. Must not know how anything is
exchanged.

Rules
    No server goes on from what it holds: all load the same file at each grant, so nobody ever claims a step.
    A loss is answered for only behind every version that was decided before it was heard of.
    Parts are durable first, then the file that names them, then its event.
    Where too many versions await their commit nothing is served: workers wait for the ledger, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from antdt_schemas import records
from antdt_schemas.errors import UsageError
from antdt_schemas.waiting import Waiting

from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed
from antdt.worker import instructions as ask
from antdt.worker.instructions import Steps
from antdt.worker.life import HINT_EVERY_S, Life
from antdt.worker.outside import Served
from antdt.worker.plans import Plan
from antdt.worker.session import Composition, Phase

TURN_S = 0.02
UNUSED_S, UNUSED_MAX_S = 60.0, 600.0  # without a worker before it is said, and between two words of it
QUIET_S = 2.0  # so long a server that is told to leave serves workers that may have been told as well
LAST_S = 0.25
FILED_S = 1.0  # what the primary may take from the last part to the file that names it


class ServingLife(Life):
    """See Life. `_marked`: the version behind which files were last asked for; -1: none in this generation."""

    strategy: Served
    _marked = -1
    _orders: ask.Obey | None = None
    _owes_farewell: Callable[[], bool] | None = None
    _filed_s = 0.0
    _unused: Waiting

    @property
    def _is_primary(self) -> bool:
        return self.session.rank == 0

    @property
    def _loses_nothing(self) -> bool:
        """Whether this part is in a file, as far as it is known here."""
        return self.strategy.step_number in (0, self.strategy.saved_step)

    def _take_final(self) -> Steps:
        """The job is done: nothing is left to serve."""
        if self.session.wanted_else:
            raise UsageError(f"Job {self.options.job} is finished. {self.session.reason}")
        yield ask.Enter(At.ENDING)

    # -- in and out

    def _begin(self, grant: records.Grant) -> Steps:
        """All servers have loaded their parts."""
        session = self.session
        self.workers = [m.worker for m in grant.members]
        yield ask.Stands(self.workers)
        self.files.written_step, self._marked, self._orders = -1, self.strategy.step_number, None
        self._unused = Waiting(UNUSED_S, UNUSED_MAX_S)
        with self._lock:
            session.begin([], self.strategy.lineage)
            session.proven(self.strategy.step_number)
        where = f"server {session.rank} of {len(self.workers)} in generation {grant.generation}"
        self._say(logging.INFO, f"{session.worker} is {where}, from version {self.strategy.step_number} on")

    def _leave(self) -> Steps:
        """Out of the generation, and ready to be found elsewhere; then ask for the next one."""
        yield ask.Leave()
        port = yield ask.Bind()
        self.generation, self.workers, self.closed = None, [], False
        with self._lock:
            self.session.where = replace(self.session.where, port=port)
            self.session.regroup(None, b"")

    # -- one round

    def _round(self, *, leaving: bool = False) -> Steps:
        session = self.session
        if session.phase is Phase.ENDED:
            if self._is_primary:  # the others hear it as well, and need not see it go before
                yield ask.Wait(lambda: False, LAST_S)
            self.ended = True
            return
        if session.phase is not Phase.MEMBER:
            raise GenerationClosed(session.reason or "it was closed")
        if self._is_primary:
            yield from self._obey()
        if self._unreported() >= self.strategy.pending_max:
            yield from self._await_commits()
            return
        session.waits = self.strategy.active == 0  # workers that have nothing left to train wait for the end
        if self._is_primary:
            self._say_if_unused(used=not session.waits)
        turned = yield ask.Serve(TURN_S)
        with self._lock:
            for made in turned.decided:
                session.applied(Composition(made.version, made.ranges, made.lineage, made.plan))
                session.proven(made.version)
        for parts in turned.saved:
            yield from self._publish(parts)
        if self._is_primary and self._wants_parts():
            yield from self._mark()
        if self.draining:
            yield from self._say_farewell()

    def _say_if_unused(self, *, used: bool) -> None:
        """Workers may all be on other machines, and end there without a word to anybody here."""
        now_s = self._now_s()
        if used:
            self._unused.over(now_s)
        elif self._unused.is_due(now_s):
            for_s, job = now_s - (self._unused.since_s or now_s), self.options.job
            said = f"no worker has been at anything for {for_s:.0f} s: servers wait for them, see `antdt status {job}`"
            self._say(logging.WARNING, said)

    def _obey(self) -> Steps:
        """The newest plan, and who is lost: those that have not been answered for are named again and again."""
        session, plans = self.session, self.plans
        with self._lock:
            losses, number = session.losses, plans.newest
        plan, lost = plans.of(number) or Plan(), tuple(loss.incarnation for loss in losses)
        orders = ask.Obey(lost, number, max(self.strategy.backup, plan.backup_workers), plan.learning_rate_factor)
        if orders != self._orders:
            self._orders = orders
            yield orders
        if losses:
            with self._lock:
                session.obey(losses[-1].number)

    def _await_commits(self) -> Steps:
        session = self.session
        yield ask.Enter(At.IDLE, "waits for the ledger")

        def free() -> bool:
            return self._unreported() < self.strategy.pending_max or session.phase is not Phase.MEMBER

        if not (yield ask.Wait(free, HINT_EVERY_S)):
            said = f"{self._unreported()} versions await their commit: waiting for the ledger"
            self._say(logging.WARNING, said)

    def _unreported(self) -> int:
        with self._lock:  # what is counted is taken off by the connection's thread
            return self.session.unreported

    # -- files and good-bye

    def _wants_parts(self) -> bool:
        """Whether a file is due: every so many versions, of the last one, where another server asks, or one is owed."""
        session, files, version, every = self.session, self.files, self.strategy.step_number, self._every
        if version in (0, self._marked) or not files.may_try or self.strategy.is_saving:
            return False
        final = session.finished and session.committed == version
        due = bool(every) and version // every > max(self._marked, 0) // every
        return final or due or files.owes or self.strategy.wanted

    @property
    def _every(self) -> int:
        return self.options.checkpoint_every_steps

    def _mark(self) -> Steps:
        self._marked = self.strategy.step_number
        yield ask.Mark()

    def _publish(self, parts: ask.Parts) -> Steps:
        event: Any = yield ask.Publish(parts)
        if event is None:
            self._marked = -1  # it is owed
            return
        with self._lock:
            self.session.files.wrote(event)
        yield ask.Prune()

    def _say_farewell(self) -> Steps:
        """Told to leave: workers finish what they have, as they may have been told, too; then all parts are saved."""
        told_for_s = self._now_s() - (self.told_at_s if self.told_at_s is not None else self._now_s())
        quiet = self.strategy.active == 0 or told_for_s >= min(QUIET_S, self.options.grace_s / 4)
        if not quiet and self.leave_within_s:
            return
        if self._owes_farewell is None:
            if self._is_primary and self.strategy.is_saving:
                return
            self._owes_farewell = self._farewell(self.strategy.step_number)
            if self.strategy.step_number not in (0, self._marked):
                yield from self._mark()
        if self._owes_farewell() and self.leave_within_s:
            return
        self.saved, self.departed = not self._owes_farewell(), True

    def _farewell(self, version: int) -> Callable[[], bool]:
        """Whether something of the model behind that version is still to be saved."""
        session, strategy = self.session, self.strategy

        def owes() -> bool:
            if version == 0 or session.phase is Phase.ENDED:
                return False
            if self._is_primary:
                return max(session.files.kept_steps) < version
            if strategy.saved_step < version:
                return True
            self._filed_s = self._filed_s or self._now_s()
            return self._now_s() - self._filed_s < FILED_S

        return owes
