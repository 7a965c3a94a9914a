"""One incarnation of a worker or server, without a clock, a thread or a broker.

Owns which incarnation this is, which generation it is a member of, and the order in which its parts speak. Where a job
has servers, these are members, and a worker is attached: it is in no group, asks for no generation, and enters whatever
one is granted to the servers.
`tick(now_s)` says what to send, `on_reply` takes what came; both are called by whoever owns the connection. Everything
is level-triggered: whatever is lost is asked for again, whatever is repeated changes nothing. Must not know how samples
are chosen (`leases`), which steps may be reported (`commits`), or which answers mean a file (`files`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC
from antdt_schemas.strategies import servers_of

from antdt.host.whereabouts import IDLE, STAYING, TOGETHER, Standing
from antdt.worker.session.asking import Due, Outbox, SessionOptions
from antdt.worker.session.changes import Changes
from antdt.worker.session.commits import Commits, Composition
from antdt.worker.session.drops import Drops
from antdt.worker.session.files import Files
from antdt.worker.session.leases import Leases
from antdt.worker.session.moves import Moves
from antdt.worker.session.reading import ReadLeases

DETAIL_CHARS_MAX = 120
WORKER, SERVER = "worker", "server"


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
    before all is trained: where, and why; empty where it does not. `losses`: whom the first server is to refuse, and
    has not said that it does. `waits`: somebody waits for the ledger, so what there is to report is reported at once.
    `awaited`: why there is no next generation yet, as the ledger says; empty where it did not.

    It is lost when it was given up for dead: the worker may come back as another one. It is ousted when somebody else
    is this worker: then it may not.

    Invariant: from a grant that restores a file until `begin`, the model at hand is not that of the run: it is never
    claimed, whatever the caller says.
    """

    def __init__(
        self,
        worker: str,
        incarnation: str,
        spec: records.JobSpec,
        where: Where,
        options: SessionOptions | None = None,
        role: str = WORKER,
    ) -> None:
        self.worker, self.incarnation, self.spec, self.where = worker, incarnation, spec, where
        self.role, self.attached = role, role == WORKER and servers_of(spec.strategy) > 0
        self.losses: tuple[records.Loss, ...] = ()
        self.options = options or SessionOptions()
        self.phase, self.reason, self.file, self.wanted_else = Phase.JOINING, "", "", False
        self.generation, self.rank = 0, -1
        self.grant: records.Grant | None = None
        self.committed, self.finished = 0, False
        self.leaving, self.told, self.quarantined, self.stopped = False, "", 0, ""
        self.waits, self.awaited = False, ""
        self.standing = Standing()
        leases = ReadLeases if spec.order == TOPIC else Leases
        self.leases, self.files = leases(spec, self.options), Files(self.options)
        self.moves, self.drops = Moves(incarnation, self.options), Drops(self.options)
        self.outbox = Outbox(worker, incarnation)
        self._claim, self._commits, self.changes = _Claim(), Commits(self.options), Changes(self.options)
        self._join, self._beat = Due(), Due()
        self._void, self._now_s = False, 0.0
        self._over_s: float | None = None  # since when it knows that its generation is over, and has not left it
        # Of who is attached: whether it has joined, the newest grant that it heard of, and the request and the moment
        # with which it began to wait for the next one.
        self._joined, self._heard = False, 0
        self._next: records.Grant | None = None
        self._left_number, self._left_s = -1, -1.0

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
            claims = not self._void and self.role == WORKER
            claimed = _Claim(claim, lineage) if claims else _Claim()
            self.phase, self._claim, self._join = Phase.REGROUPING, claimed, Due()
            self._left_number, self._left_s = self.outbox.number, -1.0
            self.leases.drop()
            self._enter_next()

    def obey(self, losses: int) -> None:
        """The first server refuses everybody that was lost up to this number, and what it took of them was `applied`
        before: the ledger hears of it with the last of these steps.
        """
        self._commits.obey(losses, self.committed)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the training side waits for something to come."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False

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
        else:
            if reply.number >= 0 and reply.grant is None and self.phase in (Phase.JOINING, Phase.REGROUPING):
                self.awaited = reply.reason
            self._on_attached(reply) if self.attached else self._on_member(reply)
        if reply.generation == self.generation and self.phase is Phase.MEMBER:
            self.leases.take_answer(reply)
            self.moves.on_reply(reply, self.leases)
            self.drops.on_reply(reply)
            self.losses = tuple(loss for loss in reply.losses if loss.number > self._commits.obeyed)

    def _on_member(self, reply: records.Reply) -> None:
        """It enters the generation that it has asked for."""
        if reply.grant is not None and reply.grant.generation > self.generation:
            self._granted(reply.grant)
            if reply.status is Status.CLOSED and self.phase is Phase.MEMBER:
                self.phase, self.reason = Phase.CLOSED, "it closed before it was heard of"
        elif reply.status is Status.CLOSED and self.phase is Phase.MEMBER:
            if reply.generation == self.generation:
                self.phase, self.reason = Phase.CLOSED, reply.reason

    def _on_attached(self, reply: records.Reply) -> None:
        """It enters the newest generation that it has heard of, once it is out of the last one."""
        mine = reply.generation == self.generation and reply.grant is None
        if reply.grant is not None and reply.status is Status.OK and reply.grant.generation > self._heard:
            self._heard, self._next = reply.grant.generation, reply.grant
            if self.phase is Phase.MEMBER:
                self.phase, self.reason = Phase.CLOSED, "the next one was granted"
        elif reply.status is Status.CLOSED and mine and self.phase is Phase.MEMBER:
            self.phase, self.reason = Phase.CLOSED, reply.reason
        elif reply.status in (Status.OK, Status.CLOSED) and self.phase is Phase.JOINING and reply.number >= 0:
            self._joined = True
        elif reply.status is Status.OK and self.phase is Phase.REGROUPING and mine and reply.number > self._left_number:
            if self._left_s < 0.0:
                self._left_s = self._now_s
            elif self._now_s - self._left_s >= self.options.reenter_s:
                self.phase, self.reason = Phase.LOST, f"it left generation {self.generation}, which goes on"
        self._enter_next()

    def _enter_next(self) -> None:
        """A generation that it is not in yet."""
        grant = self._next
        if grant is not None and (self.phase is Phase.REGROUPING or (self.phase is Phase.JOINING and self._joined)):
            self._next = None
            self._granted(grant)

    def _is_addressed(self, reply: records.Reply) -> bool:
        if reply.grant is not None:
            return self.attached or any(m.incarnation == self.incarnation for m in reply.grant.members)
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
        if (
            self.generation
            and not self.attached
            and (self.phase is not Phase.REGROUPING or grant.generation != self.generation + 1)
        ):
            # Of one that has asked it is the next one: the log has lost its tail, and our model may be of that.
            self.phase, self.reason = Phase.LOST, "granted what it did not ask for"
            return
        self.generation, self.grant, self.phase, self.awaited = grant.generation, grant, Phase.MEMBER, ""
        names = [m.incarnation for m in grant.members]
        self.rank = -1 if self.attached else names.index(self.incarnation)
        self.committed = grant.committed  # exact at the grant; after a rollback less than before
        self.files.begin(grant)
        self.leases.begin()
        self.moves.begin()
        self.drops.begin()
        self.changes.begin()
        self._commits, self.losses = Commits(self.options), ()
        self._void = self._void or grant.restore_file is not None

    # -- what goes

    def tick(self, now_s: float) -> list[records.Request]:
        """Requests to send now, in order."""
        outbox, retry_s = self.outbox, self.options.retry_s
        self._now_s = now_s
        if self.phase is Phase.JOINING and now_s - self._join.at_s >= retry_s:
            w = self.where
            who = w.launch, w.launcher, w.place, w.take_over
            body = records.Join(self.role, w.host, w.port, w.node, w.hardware, w.restarts, self.spec, *who)
            outbox.post(body, self._join, now_s)
        elif self.phase is Phase.REGROUPING and not self.attached and now_s - self._join.at_s >= retry_s:
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
        standing, since_s = self._said(now_s), now_s - self._beat.at_s
        if outbox and not self.leaving and standing.phase_s < since_s and standing.phase != IDLE:
            self._beat.at_s = now_s
        elif self._beats and since_s >= every_s:
            said = standing.phase, standing.phase_s, standing.allowed_s, standing.detail[:DETAIL_CHARS_MAX]
            outbox.post(records.Heartbeat(self.generation, self.committed, *said), self._beat, now_s)
        return outbox.emptied()

    def last_words(self, now_s: float) -> list[records.Request]:
        """The process ends, for whatever reason: what there is to report, without waiting for its time."""
        if self.phase is Phase.MEMBER and self.rank == 0:
            self._commits.last(now_s, self.generation, self.committed, self.outbox)
        return self.outbox.emptied()

    def _said(self, now_s: float) -> Standing:
        """What heartbeats say. Whatever its training thread is at together with others ends with the generation: from
        when it was told of that on, it stays.
        """
        told = self.phase is Phase.CLOSED
        self._over_s = (now_s if self._over_s is None else self._over_s) if told else None
        said = self.standing
        if self._over_s is None or said.phase not in TOGETHER:
            return said
        what = ", ".join(filter(None, (said.phase, said.detail)))
        return Standing(STAYING, min(said.phase_s, now_s - self._over_s), said.allowed_s, what)

    @property
    def _beats(self) -> bool:
        """Whether heartbeats are its signs of life; who asks for something gives others."""
        waits = self.attached and self.phase is Phase.REGROUPING
        return waits or self.phase in (Phase.MEMBER, Phase.CLOSED)

    def _tick_member(self, now_s: float) -> None:
        self.leases.measure(now_s)
        if self.rank == 0:
            options = self.options
            hurried = self.waits or self.leaving or self.files.newest is not None  # a file's event is behind its steps
            every_s = options.hurried_s if hurried else options.commit_every_s
            self._commits.tick(now_s, self.generation, self.committed, self.outbox, every_s=every_s)
        self.changes.tick(now_s, self.generation, self.rank, self.stopped, self.outbox)
        if self.spec.batches or self.role != WORKER:
            return
        self.leases.release(now_s, self.generation, self.outbox)
        if not self.finished:
            self.leases.ask(now_s, self.generation, self.outbox)
            self.moves.tick(now_s, self.generation, self.leases, self.outbox)
        self.drops.tick(now_s, self.generation, self.outbox)
