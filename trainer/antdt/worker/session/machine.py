"""One incarnation of a worker, without a clock, a thread or a broker.

Owns which incarnation this is, which generation it is a member of, and the order in which its parts speak.
`tick(now_s)` says what to send, `on_reply` takes what came; both are called by whoever owns the connection. Everything
is level-triggered: whatever is lost is asked for again, whatever is repeated changes nothing. Must not know how samples
are chosen (`leases`), which steps may be reported (`commits`), or which answers mean a file (`files`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC

from antdt.host.whereabouts import Standing
from antdt.worker.session.asking import Due, Outbox, SessionOptions
from antdt.worker.session.changes import Changes
from antdt.worker.session.commits import Commits, Composition
from antdt.worker.session.files import Files
from antdt.worker.session.leases import Leases
from antdt.worker.session.reading import ReadLeases

DETAIL_CHARS_MAX = 120


class Phase(StrEnum):
    """Where this incarnation stands."""

    JOINING = "joining"
    MEMBER = "member"
    CLOSED = "closed"
    REGROUPING = "regrouping"
    LOST = "lost"
    OUSTED = "ousted"
    ENDED = "ended"
    FAILED = "failed"


# Nothing that comes changes any more what has become of this incarnation.
OVER = (Phase.ENDED, Phase.LOST, Phase.OUSTED, Phase.FAILED)


@dataclass(slots=True)
class _Claim:
    step: int | None = None
    lineage: bytes = b""


@dataclass(frozen=True, slots=True)
class Where:
    """What a join says of the process: address of its rendezvous store, machine, hardware class, earlier lives.

    launch, launcher, place: who started it, and what only one launch of this machine can hold. take_over: once, whoever
    runs this worker now is asked to leave.
    """

    host: str
    port: int
    node: str = ""
    hardware: str = ""
    restarts: int = 0
    launch: str = ""
    launcher: str = ""
    place: str = ""
    take_over: bool = False


class Session:
    """One incarnation. `told`: who wants its place, and waits for it to leave; empty while nobody does. `wanted_else`:
    the job has ended, and `reason` says in what it is not the one that this worker came for. `stopped`: the job ends
    before all is trained: where, and why; empty where it does not.

    It is lost when it was given up for dead: the worker may come back as another one. It is ousted when somebody else
    is this worker: then it may not.

    Invariant: from a grant that restores a file until `begin`, the model at hand is not that of the run: it is never
    claimed, whatever the caller says.
    """

    def __init__(
        self, worker: str, incarnation: str, spec: records.JobSpec, where: Where, options: SessionOptions | None = None
    ) -> None:
        self.worker, self.incarnation, self.spec, self.where = worker, incarnation, spec, where
        self.options = options or SessionOptions()
        self.phase, self.reason, self.file, self.wanted_else = Phase.JOINING, "", "", False
        self.generation, self.rank = 0, -1
        self.grant: records.Grant | None = None
        self.committed, self.finished = 0, False
        self.leaving, self.told, self.quarantined, self.stopped = False, "", 0, ""
        self.standing = Standing()
        leases = ReadLeases if spec.order == TOPIC else Leases
        self.leases, self.files = leases(spec, self.options), Files(self.options)
        self.outbox = Outbox(worker, incarnation)
        self._claim, self._commits, self.changes = _Claim(), Commits(self.options), Changes(self.options)
        self._join, self._beat = Due(), Due()
        self._void = False

    def limit_commits(self, numbers_max: int) -> None:
        """No request names more numbers of ranges than this: what the topics take."""
        if numbers_max < self.options.commit_numbers_max:
            self.options = self._commits.options = replace(self.options, commit_numbers_max=numbers_max)

    # -- what the training side asks and says

    def begin(self, pending: Sequence[Composition], lineage: bytes) -> None:
        """The generation has formed; its model, of this lineage, carries steps that may not be committed yet."""
        self._void = False
        self._commits = Commits(self.options, [c for c in pending if c.step > self.committed], lineage, settle=True)

    def applied(self, composition: Composition) -> None:
        """A step is in this model. It is reported once it is proven to be in every member's."""
        self._commits.add(composition)

    def proven(self, step: int) -> None:
        """Every member has applied `step`: an exchange after it was completed."""
        self._commits.proven(step)

    def regroup(self, claim: int | None, lineage: bytes) -> None:
        """The generation is over for this member, and nobody touches its model any more: ask for the next one.

        A member that was granted a file and has not got its model holds one that was rolled back: it claims none.
        """
        if self.phase in (Phase.MEMBER, Phase.CLOSED):
            claimed = _Claim() if self._void else _Claim(claim, lineage)
            self.phase, self._claim, self._join = Phase.REGROUPING, claimed, Due()
            self.leases.drop()

    @property
    def unreported(self) -> int:
        """Steps in this model that are not known to be committed."""
        return sum(1 for c in self._commits.compositions if c.step > self.committed)

    # -- what comes

    def on_reply(self, reply: records.Reply) -> None:
        """Take a reply to this incarnation, or a grant to it and others; anything else is ignored."""
        if self.phase in OVER or not self._is_addressed(reply):
            return
        self._acknowledge(reply)
        if reply.status is Status.LEAVE:
            self.told = reply.reason
            return
        if self.leases.is_release(reply):
            return
        if reply.status in (Status.END, Status.OVER):
            self.phase, self.file, self.reason = Phase.ENDED, reply.file, reply.reason
            self.wanted_else = reply.status is Status.OVER
        elif reply.status in (Status.OCCUPIED, Status.DISPLACED):
            self.phase, self.reason = Phase.OUSTED, reply.reason
        elif reply.status is Status.LOST or (reply.status is Status.REJOIN and self.phase is not Phase.JOINING):
            self.phase, self.reason = Phase.LOST, reply.reason
        elif reply.status is Status.REFUSED:
            self._refused(reply)
        elif reply.grant is not None and reply.grant.generation > self.generation:
            self._granted(reply.grant)
            if reply.status is Status.CLOSED and self.phase is Phase.MEMBER:
                self.phase, self.reason = Phase.CLOSED, "it closed before it was heard of"
        elif reply.status is Status.CLOSED and self.phase is Phase.MEMBER:
            if reply.generation == self.generation:
                self.phase, self.reason = Phase.CLOSED, reply.reason
        if reply.generation == self.generation and self.phase is Phase.MEMBER:
            self.leases.take_answer(reply)

    def _is_addressed(self, reply: records.Reply) -> bool:
        if reply.grant is not None:
            return any(m.incarnation == self.incarnation for m in reply.grant.members)
        return reply.incarnation == self.incarnation

    def _acknowledge(self, reply: records.Reply) -> None:
        if reply.status is Status.WAIT and self.phase is Phase.JOINING:
            self.reason = reply.reason  # whom it waits for
        if reply.generation >= self.generation:
            self.committed = max(self.committed, reply.committed)
            self.finished, self.quarantined, self.stopped = reply.finished, reply.quarantined, reply.stopped
        self._commits.drop(self.committed)
        if reply.number < 0:
            return  # news, nobody asked: not the answer to what was never sent
        self._commits.answered(reply, self.committed)
        self.files.answered(reply)
        self.changes.answered(reply)

    def _refused(self, reply: records.Reply) -> None:
        # A refused checkpoint is dropped: the next one is taken. Anything else refused is a fault that must be loud.
        if not self.files.asked(reply.number):
            self.phase, self.reason = Phase.FAILED, reply.reason

    def _granted(self, grant: records.Grant) -> None:
        if self.generation and (self.phase is not Phase.REGROUPING or grant.generation != self.generation + 1):
            # Of one that has asked it is the next one: the log has lost its tail, and our model may be of that.
            self.phase, self.reason = Phase.LOST, "granted what it did not ask for"
            return
        self.generation, self.grant, self.phase = grant.generation, grant, Phase.MEMBER
        self.rank = [m.incarnation for m in grant.members].index(self.incarnation)
        self.committed = grant.committed  # exact at the grant; after a rollback less than before
        self.files.begin(grant)
        self.leases.begin()
        self.changes.begin()
        self._commits = Commits(self.options)
        self._void = self._void or grant.restore_file is not None

    # -- what goes

    def tick(self, now_s: float) -> list[records.Request]:
        """Requests to send now, in order."""
        outbox, retry_s = self.outbox, self.options.retry_s
        if self.phase is Phase.JOINING and now_s - self._join.at_s >= retry_s:
            w = self.where
            who = w.launch, w.launcher, w.place, w.take_over
            body = records.Join("worker", w.host, w.port, w.node, w.hardware, w.restarts, self.spec, *who)
            outbox.post(body, self._join, now_s)
        elif self.phase is Phase.REGROUPING and now_s - self._join.at_s >= retry_s:
            where = self.where.host, self.where.port
            regroup = records.Regroup(self.generation, self._claim.step, self._claim.lineage, *where)
            outbox.post(regroup, self._join, now_s)
        elif self.phase is Phase.MEMBER:
            self._tick_member(now_s)
        if self.phase in (Phase.MEMBER, Phase.CLOSED) and self.rank == 0:
            # Also when the generation is closed: a checkpoint counts by its lineage, whoever is a member by then.
            self.files.tick(now_s, self.committed, outbox)
        every_s = self.options.heartbeat_leaving_s if self.leaving else self.options.heartbeat_s
        # Any request is a sign of life, but what it is stuck at only a heartbeat tells.
        standing, since_s = self.standing, now_s - self._beat.at_s
        if outbox and not self.leaving and standing.phase_s < since_s:
            self._beat.at_s = now_s
        elif self.phase in (Phase.MEMBER, Phase.CLOSED) and since_s >= every_s:
            said = standing.phase, standing.phase_s, standing.allowed_s, standing.detail[:DETAIL_CHARS_MAX]
            outbox.post(records.Heartbeat(self.generation, self.committed, *said), self._beat, now_s)
        return outbox.emptied()

    def _tick_member(self, now_s: float) -> None:
        self.leases.measure(now_s)
        if self.rank == 0:
            self._commits.tick(now_s, self.generation, self.committed, self.outbox)
        self.changes.tick(now_s, self.generation, self.rank, self.stopped, self.outbox)
        if self.spec.batches:
            return
        self.leases.release(now_s, self.generation, self.outbox)
        if not self.finished:
            self.leases.ask(now_s, self.generation, self.outbox)
