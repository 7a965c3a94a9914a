"""Being a member of a generation: in, out, and in again.

Owns the connection, the rendezvous and the generation at hand, and what a worker does when it is granted, lost, told to
drain, or too late. Must not know of samples and micro-batches, nor what a step does.
"""

from __future__ import annotations

import logging
import signal
import threading
from time import monotonic
from typing import Any

from antdt_schemas import records
from antdt_schemas.errors import Refused, Unavailable

from antdt.allreduce import AllReduce, Generation, GenerationClosed, Rendezvous, store_of
from antdt.client import Client, ClientOptions, renew
from antdt.job import AgentOptions
from antdt.model_files import ModelFiles
from antdt.plans import Plans
from antdt.session import Composition, Phase, Session, Where
from antdt.settings import Settings
from antdt.telemetry import Telemetry

log = logging.getLogger("antdt")

HINT_EVERY_S = 10.0
FAREWELL_S = 5.0


class Membership:
    """`draining`: told to leave. `departed`: has left, with everything settled. `ended`: nothing is left to do.

    Invariant: `generation` is None or stands, and then the strategy is attached to it.
    """

    def __init__(
        self, settings: Settings, options: AgentOptions, spec: records.JobSpec, strategy: AllReduce, plans: Plans
    ) -> None:
        self.settings, self.options, self.spec, self.strategy = settings, options, spec, strategy
        self.generation: Generation | None = None
        self.workers: list[str] = []
        self.draining, self.departed, self.ended = False, False, False
        self.files = ModelFiles(settings.checkpoints, settings.job, strategy)
        self._rendezvous = Rendezvous(settings.advertise)
        self.client = self._connect(plans)

    def _connect(self, plans: Plans) -> Client:
        s = self.settings
        where = Where(self._rendezvous.host, self._rendezvous.port, s.node, s.hardware, s.restarts)
        session = Session(s.worker, s.incarnation, self.spec, where, self.options.session)
        telemetry = Telemetry(s.worker, s.incarnation, s.node, s.hardware)
        return Client(ClientOptions(s.connection, s.job, s.secret), session, plans, telemetry)

    @property
    def session(self) -> Session:
        """That of the present incarnation."""
        return self.client.session

    # -- in

    def enter(self) -> bool:
        """Be a member of a generation that stands, or be at the end. Returns whether the generation is a new one.

        Raises:
            Refused: the ledger refused this worker, with its reason.
            Unavailable: nobody answered within the bounds.
        """
        before = self.generation
        while self.generation is None and not self.ended and not self.draining:
            self._await_grant()
            session = self.session
            if session.phase is Phase.ENDED:
                self.files.take_final(session.file)
                self.ended = True
            elif session.phase is Phase.FAILED:
                raise Refused(f"The ledger refused {session.worker}: {session.reason}")
            elif session.phase is Phase.LOST:
                self._rejoin(session.reason)
            elif session.phase is Phase.MEMBER:
                self._form()
            else:
                self.leave()
        if self.session.phase is Phase.FAILED:
            raise Refused(f"The ledger refused {self.session.worker}: {self.session.reason}")
        return self.generation is not before

    def _await_grant(self) -> None:
        session, until = self.session, monotonic() + self.options.join_timeout_s
        asking = Phase.JOINING, Phase.REGROUPING
        while not self.client.wait(lambda: session.phase not in asking or self.draining, HINT_EVERY_S):
            waited_for = "the ledger and the job's other workers" if session.generation == 0 else "the next generation"
            log.warning("%s is waiting for %s", session.worker, waited_for)
            if monotonic() > until:
                raise Unavailable(
                    f"{waited_for} did not come within {self.options.join_timeout_s:.0f} s.",
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

        first = grant.members[0]
        try:
            generation = Generation(
                number,
                len(grant.members),
                session.rank,
                store_of(first.host, first.port),
                closed,
                self.options.generation,
            )
            self.generation = generation
            self.client.on_closed = generation.close
            self._adopt(grant, generation)
        except GenerationClosed as error:
            log.info("%s", error)
            self.leave()
            return
        self.workers = [m.worker for m in grant.members]
        self.files.written_step = -1  # the event of an earlier file may be lost
        with self.client.changed:
            self.strategy.drop_pending(session.committed)
            pending = [Composition(c.step, c.ranges, b"", c.plan, c.skipped) for c in self.strategy.pending]
            session.begin(pending, self.strategy.lineage)
        log.info("%s is rank %d of %d in generation %d", session.worker, session.rank, len(self.workers), number)

    def _adopt(self, grant: records.Grant, generation: Generation) -> None:
        """Everybody holds the same state afterwards: the source's, or that of a file."""
        strategy, source = self.strategy, 0
        if not self.files.run_id and self.options.shard_size and grant.shard_size not in (0, self.options.shard_size):
            said = "shard_size=%d is ignored: the shards of job %s have %d samples, as its first worker has named it"
            log.warning(said, self.options.shard_size, self.settings.job, grant.shard_size)
        self.files.run_id = grant.run_id
        strategy.attach(generation, [m.worker for m in grant.members])
        if grant.source is not None:
            source = next(i for i, m in enumerate(grant.members) if m.incarnation == grant.source)
        else:
            self.files.restore(grant, generation.rank)
        strategy.adopt(source)

    # -- out

    def leave(self) -> None:
        """Out of the generation, state as of the last applied step; then ask for the next one."""
        self.client.on_closed = None
        self.strategy.abort()
        if self.generation is not None:
            self.generation.leave()
        self.generation, self.workers = None, []
        claim = None if self.strategy.void else self.strategy.step_number
        with self.client.changed:
            self.session.regroup(claim, self.strategy.lineage)

    def _rejoin(self, reason: str) -> None:
        """This incarnation was declared lost while it slept: its model is void, and it comes back as a new one."""
        old = self.session
        log.warning("%s was declared lost (%s): joining anew", old.incarnation, reason)
        self.strategy.void = True
        incarnation = f"{old.worker}.{old.where.restarts + 1}.{self._rendezvous.port:x}{int(monotonic() * 1e3):x}"
        with self.client.changed:
            self.client.session = renew(old, incarnation)
            self.client.telemetry = Telemetry(old.worker, incarnation, self.settings.node, self.settings.hardware)

    def say_farewell(self) -> None:
        """Everybody has this step: stay until it is committed, and the file of it known to the ledger. Bounded."""
        session, step = self.session, self.strategy.step_number
        with self.client.changed:
            session.leaving = True
        over = Phase.LOST, Phase.FAILED, Phase.ENDED

        def settled() -> bool:
            return session.phase in over or (session.committed >= step and session.files.newest is None)

        if not self.client.wait(settled, FAREWELL_S):
            log.warning("step %d was not committed within %.0f s: leaving all the same", step, FAREWELL_S)
        self.departed = True

    def drain_on_sigterm(self) -> None:
        """SIGTERM: finish the step, leave, exit with 143. A handler that was there before is called as well.

        Where everybody leaves at once, the first member writes a checkpoint: nothing has to be done again.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGTERM)

        def drain(number: int, frame: Any) -> None:
            self.draining = True
            if callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, drain)

    def finish(self) -> None:
        """Say good-bye, whatever happened."""
        self.client.on_closed = None
        self.strategy.abort()
        self.strategy.detach()
        if self.generation is not None:
            self.generation.leave()
            self.generation = None
        self.client.stop(leave=True)
