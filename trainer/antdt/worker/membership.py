"""Being a member of a generation: in, out, and in again.

Owns the connection, the rendezvous and the generation at hand, and what a worker does when it is granted, lost, told to
drain, or too late. Must not know of samples and micro-batches, nor what a step does.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from time import monotonic
from typing import Any, NoReturn

from antdt_schemas import records
from antdt_schemas.errors import ExitCode, Occupied, Refused, Unavailable, UsageError

from antdt.connect.address import ENV_ADVERTISE, can_bind, own_address
from antdt.connect.client import Client, ClientOptions, renew
from antdt.connect.settings import Settings
from antdt.job import AgentOptions
from antdt.strategies.base import GenerationClosed, Here, Strategy
from antdt.worker import told, whereabouts
from antdt.worker.attempts import Attempts
from antdt.worker.model_files import ModelFiles
from antdt.worker.plans import Plans
from antdt.worker.session import OVER, Composition, Phase, Session, Where
from antdt.worker.telemetry import Telemetry
from antdt.worker.whereabouts import At

log = logging.getLogger("antdt")

HINT_EVERY_S = 10.0
# Of the grace between SIGTERM and SIGKILL: what is left is for saying good-bye.
LEAVE_SHARE = 0.8
LINGER_S = 1.0
PLAN_S = 5.0


class Membership:
    """`draining`: told to leave, by SIGTERM or by whoever takes over. `departed`: has left, and `saved` says whether
    its work is committed and, where it was to write a file, in one. `ended`: nothing is left to do.

    Invariant: `generation` is None, or the number of the one that stands.
    """

    def __init__(
        self, settings: Settings, options: AgentOptions, spec: records.JobSpec, strategy: Strategy, plans: Plans
    ) -> None:
        self.settings, self.options, self.spec, self.strategy = settings, options, spec, strategy
        self.generation: int | None = None
        self.workers: list[str] = []
        self.departed, self.saved, self.ended = False, True, False
        self._told_at_s: float | None = None
        self._taken_over = ""
        self._left_behind = -1  # the step at which somebody left, so that a file of it is written
        self._began_at_step = -1
        self._handler: Any = None
        self.files = ModelFiles(settings.checkpoints, settings.job, strategy)
        self._attempts = Attempts(strategy.form_patience_s)
        self.client = self._connect(plans)
        self.client.on_closed = strategy.close

    def _connect(self, plans: Plans) -> Client:
        s = self.settings
        host, port = self.strategy.address
        where = Where(host, port, s.node, s.hardware, s.restarts, s.launch, s.launcher, s.place, s.take_over)
        session = Session(s.worker, s.incarnation, self.spec, where, self.options.session)
        telemetry = self._telemetry(s.incarnation)
        most = self.strategy.pending_max
        options = ClientOptions(s.connection, s.job, s.secret, pending_max=most, ousted_s=s.grace_s)
        return Client(options, session, plans, telemetry)

    def _telemetry(self, incarnation: str) -> Telemetry:
        s = self.settings
        return Telemetry(s.worker, incarnation, s.node, s.hardware, self.options.batch_size_max)

    @property
    def session(self) -> Session:
        """That of the present incarnation."""
        return self.client.session

    # -- in

    def enter(self, patience_s: float | None = None) -> bool:
        """Be a member of a generation that stands, or be at the end. Returns whether the generation is a new one.

        patience_s: how long to wait for the others, if not as long as the options say.

        Raises:
            Refused: the ledger refused this worker, with its reason.
            Unavailable: nobody answered within the bounds.
        """
        before = self.generation
        if before is None:
            whereabouts.mine().enter(At.FORMING)
        while self.generation is None and not self.ended and not self.may_go:
            self._await_grant(self.options.join_timeout_s if patience_s is None else patience_s)
            session = self.session
            if session.phase is Phase.ENDED:
                self._take_final(session)
                self.ended = True
            elif session.phase is Phase.FAILED:
                raise Refused(f"The ledger refused {session.worker}: {session.reason}")
            elif session.phase is Phase.OUSTED:
                raise Occupied(session.reason)
            elif session.phase is Phase.LOST:
                self._rejoin(session.reason)
            elif session.phase is Phase.MEMBER:
                self._form()
            else:
                self.leave()
        if self.session.phase is Phase.FAILED:
            raise Refused(f"The ledger refused {self.session.worker}: {self.session.reason}")
        return self.generation is not before

    def _take_final(self, session: Session) -> None:
        """The job is done. One that comes when it is over trains nothing: it is told so, and what it wanted else."""
        job, late = self.settings.job, session.generation == 0
        if late and session.reason:
            raise UsageError(
                f"Job {job} is finished, its model is {session.file}: nothing was trained now. {session.reason} "
                f"To train with what is asked for now, start a new job."
            )
        since = self.files.take_final(session.file)
        if late:
            said = "Job %s is finished since %s: nothing is left to train, its final model %s is loaded"
            log.warning(said, job, since, session.file)

    def _await_grant(self, patience_s: float) -> None:
        session, until = self.session, monotonic() + patience_s
        asking = Phase.JOINING, Phase.REGROUPING
        slice_s = min(HINT_EVERY_S, max(patience_s, 0.1))
        while not self.client.wait(lambda: session.phase not in asking or self.may_go, slice_s):
            waited_for = "the ledger and the job's other workers" if session.generation == 0 else "the next generation"
            log.warning("%s is waiting for %s%s", session.worker, waited_for, session.reason and f": {session.reason}")
            if monotonic() > until:
                raise Unavailable(
                    f"{waited_for} did not come within {patience_s:.0f} s.",
                    f"Is `antdt up {self.settings.job}` running, and are all {self.spec.workers_min} workers started?",
                )

    def _form(self) -> None:
        session = self.session
        grant = session.grant
        assert grant is not None
        number = grant.generation

        def closed() -> bool:
            current = self.session
            return current is not session or session.generation != number or session.phase is not Phase.MEMBER

        try:
            self.strategy.form(grant, session.rank, closed)
            self.generation = number
            self._align(grant, session.rank)
        except GenerationClosed as error:
            reason = session.reason if closed() else None
            self.leave()
            self._not_formed(error, [m.host for m in grant.members], reason)
            return
        self._attempts.stands()
        # Whoever is new has taken over the model's plan, and may not have read yet what is in it: shares would differ.
        self.client.wait(lambda: self.client.plans.newest >= self.strategy.plan or closed(), PLAN_S)
        self.workers = [m.worker for m in grant.members]
        if self._began_at_step < 0:
            self._began_at_step = self.strategy.step_number
        self.note()
        self.files.written_step = -1  # the event of an earlier file may be lost
        with self.client.changed:
            self.strategy.drop_pending(session.committed)
            pending = [Composition(c.step, c.ranges, b"", c.plan, c.skipped) for c in self.strategy.pending]
            session.begin(pending, self.strategy.lineage)
        log.info("%s is rank %d of %d in generation %d", session.worker, session.rank, len(self.workers), number)

    def _not_formed(self, error: GenerationClosed, hosts: list[str], reason: str | None) -> None:
        """Say so, and wait a little; reason: why the ledger closed it, None if nobody did.

        Raises:
            Unavailable: none has formed for too long.
        """
        if reason is not None:
            said = self._attempts.closed(monotonic(), f"{error} {reason or 'The ledger closed it'}.")
            log.log(logging.WARNING if said else logging.INFO, "%s", said or error)
            return
        said, pause_s = self._attempts.failed(monotonic(), str(error), hosts)
        log.warning("%s", said)
        asking = self.session
        self.client.wait(lambda: self.may_go or asking.phase in OVER, pause_s)

    def _align(self, grant: records.Grant, rank: int) -> None:
        """Everybody holds the same state afterwards: the source's, or that of a file."""
        if not self.files.run_id and self.options.shard_size and grant.shard_size not in (0, self.options.shard_size):
            said = "shard_size=%d is ignored: the shards of job %s have %d samples, as its first worker has named it"
            log.warning(said, self.options.shard_size, self.settings.job, grant.shard_size)
        first, self.files.run_id = not self.files.run_id, grant.run_id
        if first:
            self._draw_apart(grant, rank)
        self.strategy.align(grant, rank, self.files)

    def _draw_apart(self, grant: records.Grant, rank: int) -> None:
        """Scripts seed all workers alike, for equal weights. What the loop draws from here on (dropout, augmentation)
        must not be the same for all of them, nor once more what an earlier life has drawn. The first worker of a job
        goes on as the script has seeded it, as a single process does. What a checkpoint restores comes later, and wins.
        """
        s = self.settings
        if (rank, s.restarts, grant.committed) != (0, 0, 0):
            self.strategy.diverge(s.worker, s.restarts, grant.generation)

    # -- out

    def leave(self) -> None:
        """Out of the generation, state as of the last applied step; then ask for the next one."""
        self.strategy.abort()
        self.generation, self.workers = None, []
        claim = None if self.strategy.void else self.strategy.step_number
        with self.client.changed:
            self.session.regroup(claim, self.strategy.lineage)

    def _rejoin(self, reason: str) -> None:
        """This incarnation was declared lost while it slept: its model is void, and it comes back as a new one."""
        old = self.session
        log.warning("%s was declared lost (%s): joining anew", old.incarnation, reason)
        self.strategy.void = True
        incarnation = f"{old.worker}.{old.where.restarts + 1}.{self.strategy.address[1]:x}{int(monotonic() * 1e3):x}"
        with self.client.changed:
            self.client.session = renew(old, incarnation)
            self.client.telemetry = self._telemetry(incarnation)

    @property
    def draining(self) -> bool:
        """Told to leave."""
        if self._told_at_s is None and self.session.told:
            self._taken_over, self._told_at_s = self.session.told, monotonic()
            log.warning("%s Leaving after this step.", self._taken_over)
        return self._told_at_s is not None

    @property
    def leave_within_s(self) -> float:
        """How long leaving may still take, once told."""
        since_s = monotonic() - (self._told_at_s if self._told_at_s is not None else monotonic())
        return max(0.0, LEAVE_SHARE * self.settings.grace_s - since_s)

    @property
    def may_go(self) -> bool:
        """Told to leave, and between generations: nothing of this model is lost with it, or there is no time to wait.

        Whoever has a step that is in no file leaves from the next generation: the others may leave as well.
        """
        if not self.draining:
            return False
        return self._loses_nothing or self.leave_within_s == 0

    @property
    def _loses_nothing(self) -> bool:
        """Whether this model is nobody's loss: there is none, or somebody left behind its step, and the file of it, if
        this worker has written it, is known to the ledger.
        """
        step, files = self.strategy.step_number, self.session.files
        filed = step == self._left_behind and files.newest is None
        return self.strategy.void or self.session.generation == 0 or step == 0 or filed

    def end_if_told(self) -> None:
        """Raises what ends this process where it was told to leave, and has left or may go."""
        if self.departed:
            self._end()
        if self.generation is None and self.may_go:
            self.saved = self._loses_nothing
            self._end()

    def _end(self) -> NoReturn:
        if not self.saved:
            log.warning("step %d could not be saved: what is in no checkpoint is done again", self.strategy.step_number)
        if self.session.phase is Phase.OUSTED:
            raise Occupied(self.session.reason)
        if self._taken_over:
            raise Occupied(f"{self._taken_over} {self.session.incarnation} has left.")
        sys.exit(int(ExitCode.DRAINED if self.saved else ExitCode.KILLED))

    def somebody_leaves(self) -> None:
        """A member leaves after this step, and the first one writes a file of it."""
        self._left_behind = self.strategy.step_number

    def say_farewell(self) -> None:
        """Everybody has this step: stay until it is committed, and the file of it known to the ledger. Bounded.

        Raises GenerationClosed where it closed before, as it does when somebody joins just now: then it is carried into
        the next one, and left from there.
        """
        session, step, bound_s = self.session, self.strategy.step_number, self.leave_within_s
        whereabouts.mine().enter(At.ENDING)
        with self.client.changed:
            session.leaving = True

        def closed() -> bool:
            return session.phase is Phase.CLOSED and session.committed < step

        def settled() -> bool:
            return session.phase in OVER or (session.committed >= step and session.files.newest is None)

        self.client.wait(lambda: settled() or closed(), bound_s)
        if closed() and self.leave_within_s:
            with self.client.changed:
                session.leaving = False
            self._left_behind = -1
            raise GenerationClosed(f"it closed before step {step} was committed")
        filed = session.rank != 0 or step == 0 or step in session.files.kept_steps
        self.saved = session.phase is Phase.ENDED or (session.committed >= step and filed)
        self.departed = True

    def leave_unsaved(self) -> None:
        """There is no time left, and steps of this model are not committed."""
        self.saved, self.departed = False, True

    def note(self) -> None:
        """Let the launcher know where this worker stands."""
        step = min(self.session.committed, self.strategy.step_number)
        # What was committed before this life is none of its merits.
        taken_part = step if step > self._began_at_step else 0
        whereabouts.mine().note(taken_part, self.session.files.kept_steps[-1])

    def drain_on_sigterm(self) -> None:
        """SIGTERM: finish the step, leave, exit with 143. A handler that was there before is called as well.

        Where everybody leaves at once, the first member writes a checkpoint: nothing has to be done again. Whoever was
        told before, and held up the end that this means, ends here.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGTERM)

        def drain(number: int, frame: Any) -> None:
            told.remember()
            self._told_at_s = told.at_s()
            if callable(before) and before is not told.end:
                before(number, frame)

        self._handler = drain, before
        signal.signal(signal.SIGTERM, drain)
        if told.at_s() is not None:
            sys.exit(int(ExitCode.DRAINED))

    def _restore_handler(self) -> None:
        """Behind the loop SIGTERM means again what it did before."""
        if self._handler is not None and signal.getsignal(signal.SIGTERM) is self._handler[0]:
            signal.signal(signal.SIGTERM, self._handler[1])

    def finish(self, *, linger: bool = False) -> None:
        """Say good-bye, whatever happened; soon, where there may be a last word to be said before.

        What is in quarantine by now makes the process end with 3, unless the script ends it otherwise.
        """
        page = whereabouts.mine()
        page.enter(At.ENDING)
        if self.ended and self.session.quarantined:
            missing = self.session.reason or f"{self.session.quarantined:,} samples are in quarantine"
            log.warning("%s", missing)
            page.say(0, missing)
            page.numbers[whereabouts.INCOMPLETE] = 1
        self.client.on_closed = None
        self.strategy.end()
        self.generation = None
        try:
            if linger:
                self.client.linger(LINGER_S)
            else:  # who was ousted has nothing to say any more
                self.client.stop(leave=self.session.phase is not Phase.OUSTED)
        finally:
            self._restore_handler()


def here_of(settings: Settings) -> Here:
    """Where other members meet this process. gloo tells its peers the address that it is bound to, so that has to be
    one of this machine.
    """

    def listens_at() -> str:
        named, route = settings.advertise, own_address({}, settings.connection.bootstrap)
        if can_bind(named):
            return named
        said = "%s=%s is no address of this machine: members meet there, and exchange gradients at %s"
        log.warning(said, ENV_ADVERTISE, named, route)
        return route

    return Here(settings.advertise, listens_at)
