"""The life of a worker, without a clock, a thread, a tensor or a broker: instructions out, what became of them in.

Owns the order of things: enter a generation, hold one model, take a part, account for it, write a file where one is
due, leave, come back, end. Must not know how any of it is done: an Agent drives it through a real job, a simulation
through virtual time.

Rules
    A model is void from the moment that its incarnation is given up until it is restored or adopted whole.
    Nobody asks for the next generation before nothing of the last one can be completed any more.
    A file is written first, then its event is said. Whoever leaves stays until its last step is committed and in one,
    or its time is up.
    Wherever an instruction can end with GenerationClosed, the life leaves and enters again.
"""

from __future__ import annotations

import logging

from antdt_schemas import records
from antdt_schemas.errors import ExitCode, Occupied, Refused, Unavailable, UsageError

from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed, Outcome, Part
from antdt.worker import instructions as ask
from antdt.worker.attempts import Attempts
from antdt.worker.instructions import Steps
from antdt.worker.leaving import Leaving
from antdt.worker.outside import Files, LifeOptions, Lived, Outside
from antdt.worker.plans import Plans
from antdt.worker.session import OVER, Composition, Phase, Session
from antdt.worker.taking import taking_of

HINT_EVERY_S = 10.0
PLAN_S = 5.0


class Life(Leaving):
    """`generation`: the one that stands, or None; `workers`: its members in rank order. `departed`: it has left, and
    `saved` says whether its work is committed and, where it was to write a file, in one; `all_leave`: so have all
    others. `closed`: its generation is over, and it has not left it yet. `ended`: nothing is left to do.
    """

    def __init__(
        self, session: Session, plans: Plans, strategy: Lived, files: Files, options: LifeOptions, outside: Outside
    ) -> None:
        self.session, self.plans, self.strategy, self.files = session, plans, strategy, files
        self.options, self._lock, self._now_s, self._say = options, outside.lock, outside.now_s, outside.say
        self.generation: int | None = None
        self.workers: list[str] = []
        self.taking = taking_of(session.spec, strategy.ranges_max)
        self.departed, self.saved, self.all_leave = False, True, False
        self.closed, self.ended = False, False
        self._attempts = Attempts(strategy.form_patience_s)

    # -- the whole

    def run(self) -> Steps:
        """From joining to the end. Returns the exit code where it was told to leave; None where nothing is left to do.

        Raises:
            Refused: the ledger refused this worker, with its reason.
            Occupied: somebody else is this worker.
            Unavailable: nobody answered within the bounds.
        """
        while not self.ended:
            if self.departed:
                return self._exit_code()
            if self.generation is None and self.may_go:
                self.saved = self._loses_nothing
                return self._exit_code()
            try:
                if self.generation is None or self.session.phase is Phase.FAILED:
                    yield from self._enter(self.options.join_timeout_s)
                if not self.ended and self.generation is not None:
                    yield from self._round()
            except GenerationClosed as error:
                self._say(logging.INFO, f"generation is over: {error}")
                self.closed = True
            try:
                yield ask.BETWEEN
            except GenerationClosed:  # by what scripts say to each other
                self.closed = True
            if self.closed:
                yield from self._leave()
        return None

    def leave_early(self, until_s: float, *, regroup: bool) -> Steps:
        """Say good-bye as if told to, from wherever it is: with the model in a file, until that time. regroup: its
        step was given up.
        """
        self.closed = self.closed or regroup
        while not (self.departed or self.ended or (self.may_go and self.generation is None)):
            if self.closed:
                yield from self._leave()
            try:
                yield from self._enter(until_s - self._now_s())
                if self.generation is not None and not self.ended:
                    yield from self._round(leaving=True)
            except GenerationClosed:
                self.closed = True

    def _exit_code(self) -> ExitCode:
        if not self.saved:
            step = self.strategy.step_number
            self._say(logging.WARNING, f"step {step} could not be saved: what is in no checkpoint is done again")
        if self.session.phase is Phase.OUSTED:
            raise Occupied(self.session.reason)
        if self.taken_over:
            raise Occupied(f"{self.taken_over} {self.session.incarnation} has left.")
        return ExitCode.DRAINED if self.saved else ExitCode.KILLED

    # -- in and out

    def _enter(self, patience_s: float) -> Steps:
        """Be a member of a generation that stands, or be at the end."""
        while self.generation is None and not self.ended and not self.may_go:
            yield ask.Enter(At.FORMING)  # anew for each one: the last may not have formed
            yield from self._await_grant(patience_s)
            session = self.session
            if session.phase is Phase.ENDED:
                yield from self._take_final()
                self.ended = True
            elif session.phase is Phase.FAILED:
                break
            elif session.phase is Phase.OUSTED:
                raise Occupied(session.reason)
            elif session.phase is Phase.LOST:
                yield from self._rejoin()
            elif session.phase is Phase.MEMBER:
                yield from self._form()
            else:
                yield from self._leave()
        if self.session.phase is Phase.FAILED:
            raise Refused(f"The ledger refused {self.session.worker}: {self.session.reason}")

    def _await_grant(self, patience_s: float) -> Steps:
        session, until_s = self.session, self._now_s() + patience_s
        asking = Phase.JOINING, Phase.REGROUPING
        slice_s = min(HINT_EVERY_S, max(patience_s, 0.1))
        while not (yield ask.Wait(lambda: session.phase not in asking or self.may_go, slice_s)):
            waited_for = "the ledger and the job's other workers" if session.generation == 0 else "the next generation"
            why = "; ".join(said for said in (session.reason, session.awaited) if said)
            self._say(logging.WARNING, f"{session.worker} is waiting for {waited_for}{why and f': {why}'}")
            if self._now_s() > until_s:
                job, workers = self.options.job, self.options.workers_min
                hint = f"Is `antdt up {job}` running, and are all {workers} workers started?"
                if session.awaited:
                    hint = f"{session.awaited.removesuffix('.')}: start what is missing, there or on another machine."
                raise Unavailable(f"{waited_for} did not come within {patience_s:.0f} s.", hint)

    def _take_final(self) -> Steps:
        """The job is done. One that comes when it is over trains nothing: it is told so, and what it wanted else."""
        session, job, late = self.session, self.options.job, self.session.generation == 0
        if session.wanted_else:
            raise UsageError(
                f"Job {job} is finished, its model is {session.file}: nothing was trained now. {session.reason} "
                f"To train with what is asked for now, start a new job."
            )
        since = yield ask.TakeFinal(session.file)
        if late:
            said = f"Job {job} is finished since {since}: nothing is left to train"
            if session.stopped:
                said = f"Job {job} {session.stopped}. It ended at {since}, and nothing is trained now"
            self._say(logging.WARNING, f"{said}, its final model {session.file} is loaded")

    def _form(self) -> Steps:
        session, grant = self.session, self.session.grant
        assert grant is not None

        def closed() -> bool:
            same = self.session is session and session.generation == grant.generation
            return not same or session.phase is not Phase.MEMBER

        try:
            yield ask.Form(grant, closed)
            self.generation = grant.generation
            yield ask.Align(grant)
        except GenerationClosed as error:
            said, reason = error, session.reason if closed() else None
        else:
            # Whoever is new has taken over the model's plan, and may not have read what is in it: shares would differ.
            if (yield ask.Wait(lambda: self.plans.newest >= self.strategy.plan or closed(), PLAN_S)):
                self._attempts.stands()
                yield from self._begin(grant)
                return
            said, reason = GenerationClosed(f"Plan {self.strategy.plan} was not read in {PLAN_S:.0f} s."), None
        yield from self._leave()
        yield from self._not_formed(said, grant, reason)

    def _begin(self, grant: records.Grant) -> Steps:
        """The generation stands, and all hold one model."""
        session, strategy = self.session, self.strategy
        self.workers = [m.worker for m in grant.members]
        yield ask.Stands(self.workers)
        self.files.written_step = -1  # the event of an earlier file may be lost
        self.taking.begin(grant)
        with self._lock:
            if grant.batch_size:
                self.plans.resize(grant.batch_size)
            strategy.drop_pending(session.committed)
            pending = [Composition(c.step, c.ranges, b"", c.plan, c.skipped) for c in strategy.pending]
            session.begin(pending, strategy.lineage)
        where = f"rank {session.rank} of {len(self.workers)} in generation {grant.generation}"
        self._say(logging.INFO, f"{session.worker} is {where}")

    def _not_formed(self, error: GenerationClosed, grant: records.Grant, reason: str | None) -> Steps:
        """Say so, and wait a little; reason: why the ledger closed it, None if nobody did.

        Raises:
            Unavailable: none has formed for too long.
        """
        if reason is not None:
            said = self._attempts.closed(self._now_s(), f"{error} {reason or 'The ledger closed it'}.")
            self._say(logging.WARNING if said else logging.INFO, said or str(error))
            return
        said, pause_s = self._attempts.failed(self._now_s(), str(error), [m.host for m in grant.members])
        self._say(logging.WARNING, said)
        asking = self.session
        yield ask.Wait(lambda: self.may_go or asking.phase in OVER, pause_s)

    def _leave(self) -> Steps:
        """Out of the generation, state as of the last applied step; then ask for the next one."""
        yield ask.Leave()
        self.generation, self.workers, self.closed = None, [], False
        claim = None if self.strategy.void else self.strategy.step_number
        with self._lock:
            self.session.regroup(claim, self.strategy.lineage)

    def _rejoin(self) -> Steps:
        """This incarnation was declared lost while it slept: its model is void, and it comes back as a new one."""
        reason = self.session.reason
        self._say(logging.WARNING, f"{self.session.incarnation} was declared lost ({reason}): joining anew")
        self.strategy.void = True
        self.session = yield ask.Renew(reason)

    # -- one round

    def _round(self, *, leaving: bool = False) -> Steps:
        """Take, announce, train, finish, account. leaving: a part without samples, the last one."""
        session, plans, strategy = self.session, self.plans, self.strategy
        split = plans.split(strategy.plan, self.workers)
        mine, whole = split.shares[session.rank], self.taking.whole
        if len(strategy.pending) >= strategy.pending_max and not (yield from self._await_room(leaving)):
            self.saved, self.departed = False, True
            return
        idle = leaving or self._stopping or (self.draining and not whole)
        leaving = leaving or self.draining
        if not idle:
            yield from self.taking.wait(session)
        with self._lock:
            session.changes.wish = plans.wish
            at, undivided = (strategy.cursor, strategy.step_number), strategy.undivided
            taken = self.taking.take(session, *at, split, idle=idle, undivided=undivided)
        said = session.phase is Phase.ENDED, leaving, self._wants_file, taken.place
        part = Part(taken.ranges, plans.newest, taken.reference, *said, taken.empty)
        yield ask.Announce(part, mine.batch_size, lambda samples: self.taking.ahead(session, samples))
        samples = part.samples
        if samples:
            at_once = max(mine.batch_size, whole * samples)
            yield ask.Train(taken.ranges, mine.accumulation, at_once, taken.units)
        outcome = yield ask.FINISH
        yield from self._account(outcome)

    @property
    def _wants_file(self) -> bool:
        """Whether this member, as the first one, wants the model behind this step in a file."""
        every, files = self.options.checkpoint_every_steps, self.files
        asked = bool(every) and (self.strategy.step_number + 1) % every == 0
        return self.session.rank == 0 and (asked or files.owes) and files.may_try

    def _await_room(self, leaving: bool) -> Steps:
        """Applied steps that await their commit are bounded: where the ledger is away for long, training waits.

        Returns False where it leaves early, or is told to leave, and there is no time to wait any more.
        """
        session, strategy = self.session, self.strategy

        def too_late() -> bool:
            return self.draining and self.leave_within_s == 0

        def free() -> bool:
            moved = not strategy.pending or session.committed >= strategy.pending[0].step
            return moved or too_late() or session.phase is not Phase.MEMBER

        while len(strategy.pending) >= strategy.pending_max and session.phase is Phase.MEMBER:
            yield ask.Enter(At.IDLE, "waits for the ledger")
            if leaving or too_late():
                return False
            if not (yield ask.Wait(free, HINT_EVERY_S)):
                self._say(logging.WARNING, f"{len(strategy.pending)} steps await their commit: waiting for the ledger")
            strategy.drop_pending(session.committed)
        return True

    def _account(self, outcome: Outcome) -> Steps:
        """A round is complete: everybody entered it, so everybody had applied the step before."""
        strategy, session = self.strategy, self.session
        self.ended = self.ended or outcome.ended
        with self._lock:
            session.proven(strategy.step_number - 1 if outcome.applied else strategy.step_number)
            if outcome.applied:
                made = strategy.pending[-1]
                session.applied(Composition(made.step, made.ranges, strategy.lineage, made.plan, made.skipped))
            self.taking.made(session, outcome)
            strategy.drop_pending(session.committed)
        yield ask.Accounted(outcome)
        if outcome.skipped is not None:
            who = "by " + ", ".join(outcome.skipped) if outcome.skipped else "by no worker alone, the sum overflows"
            why = outcome.why or f"its gradient is not finite ({who})"
            said = f"step {strategy.step_number} was skipped: {why}"
            self._say(logging.WARNING, said)
        yield from self._file(outcome)

    # -- files and good-bye

    def _file(self, outcome: Outcome) -> Steps:
        """Files where they are asked for, when somebody leaves on purpose (perhaps everybody does), and the final one.

        The rows say it to all members alike, who then give their random states to the first one: this, too, proves that
        all have applied the step.
        """
        session, step, random = self.session, self.strategy.step_number, list[bytes]()
        leaving, checkpoint, mine = False, False, outcome.rows[session.rank]
        for row in outcome.rows:
            leaving, checkpoint = leaving or row.leaving, checkpoint or row.checkpoint
        if leaving:
            self.left_behind = step
        asked = leaving or (outcome.applied and checkpoint)
        if asked:
            yield ask.Enter(At.REDUCING)
            random = yield ask.GatherRandom()
            with self._lock:
                session.proven(step)
        final = session.finished and session.committed == step
        if session.rank == 0 and (asked or final) and step not in (self.files.written_step, 0):
            if leaving or (session.files.newest is None and self.files.may_try):
                yield from self._write(random, self.leave_within_s if mine.leaving else 0.0)
        if self.files.owes_init:
            yield ask.RetryInit()
        if mine.leaving:
            self.all_leave = all(row.leaving for row in outcome.rows)
            yield from self._say_farewell()

    def _write(self, random: list[bytes], patience_s: float) -> Steps:
        """The file first, then the event, repeated until it is answered."""
        event = yield ask.WriteFile(random, patience_s)
        if event is not None:
            with self._lock:
                self.session.files.wrote(event)
            yield ask.Prune()

    def _say_farewell(self) -> Steps:
        """Everybody has this step: stay until it is committed, and the file of it known to the ledger. Bounded.

        Raises GenerationClosed where it closed before, as it does when somebody joins just now: then it is carried into
        the next one, and left from there.
        """
        session, step, bound_s = self.session, self.strategy.step_number, self.leave_within_s
        yield ask.Enter(At.ENDING)
        with self._lock:
            session.leaving = True
            if self._stopping and step:
                session.changes.stop = step, self._why_stopping

        def closed() -> bool:
            return session.phase is Phase.CLOSED and session.committed < step

        def settled() -> bool:
            heard = session.stopped or session.changes.stop is None
            filed = session.files.newest is None
            return session.phase in OVER or bool(session.committed >= step and filed and heard)

        yield ask.Wait(lambda: settled() or closed(), bound_s)
        if closed() and self.leave_within_s:
            with self._lock:
                session.leaving = False
            self.left_behind = -1
            raise GenerationClosed(f"it closed before step {step} was committed")
        filed = session.rank != 0 or step == 0 or step in session.files.kept_steps
        self.saved = session.phase is Phase.ENDED or (session.committed >= step and filed)
        self.departed = True
