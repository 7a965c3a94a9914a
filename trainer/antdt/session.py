"""A worker's side of the exactly-once protocol, without a clock, a thread or a broker.

Owns which incarnation this is, which generation it is a member of, what it holds on lease, and what is still to be
reported. `tick(now_s)` says what to send, `on_reply` takes what came; both are called by whoever owns the connection.
Everything is level-triggered: whatever is lost is asked for again, whatever is repeated changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from antdt_schemas import records
from antdt_schemas.limits import CHECKPOINTS_KEPT
from antdt_schemas.records import Status

NUMBERS_A_COMMIT_MAX = 20_000
ASKED_MAX = 64
RELEASES_KEPT = 1024
STEPS_UNCOMMITTED = 3  # the one at hand, the one that it proves, and the one whose commit is on its way


class Phase(StrEnum):
    """Where this incarnation stands."""

    JOINING = "joining"
    MEMBER = "member"
    CLOSED = "closed"
    REGROUPING = "regrouping"
    LOST = "lost"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Bounds; seconds, steps, and samples where it says so.

    What is not answered is asked again after retry_s, then ever later up to retry_max_s. Samples are leased ahead for
    prefetch_s, and again when half of them are left, so that training outlasts a broker that is away for half a minute;
    for prefetch_steps while the own speed is not known.
    """

    retry_s: float = 0.5
    retry_max_s: float = 2.0
    wait_retry_s: float = 0.1
    heartbeat_s: float = 1.0
    heartbeat_leaving_s: float = 0.05
    commit_every_s: float = 0.05
    commit_steps_max: int = 64
    prefetch_s: float = 60.0
    prefetch_steps: int = 3
    prefetch_samples_max: int = 1 << 20
    rate_every_s: float = 0.25
    answer_s: float = 0.1


@dataclass(slots=True)
class Held:
    """A lease: [next, end) was not taken yet; [front, next) is taken and not known to be committed."""

    lease: int
    token: int
    epoch: int
    front: int
    next: int
    end: int

    @property
    def length(self) -> int:
        """Samples that were not taken."""
        return self.end - self.next


@dataclass(frozen=True, slots=True)
class Composition:
    """A step that is in this worker's model: flat quintuples (lease, token, epoch, start, length) in rank order.

    lineage: that of the model after the step; empty where the step came with somebody else's model.
    """

    step: int
    ranges: tuple[int, ...]
    lineage: bytes
    plan: int


@dataclass(slots=True)
class _Due:
    """When something was last sent, under which number, and how often in a row without an answer."""

    at_s: float = -1e9
    number: int = -1
    tries: int = 0

    def answered(self) -> None:
        """The next one need not wait."""
        self.tries = 0

    def pause_s(self, options: SessionOptions) -> float:
        """How long to wait for the answer."""
        return float(min(options.retry_max_s, options.retry_s * 2 ** min(max(self.tries - 1, 0), 8)))


@dataclass(slots=True)
class _Claim:
    step: int | None = None
    lineage: bytes = b""


@dataclass(frozen=True, slots=True)
class Where:
    """What a join says of the process: address of its rendezvous store, machine, hardware class, earlier lives."""

    host: str
    port: int
    node: str = ""
    hardware: str = ""
    restarts: int = 0


@dataclass(slots=True)
class _Pending:
    compositions: deque[Composition] = field(default_factory=deque)
    lineage: bytes = b""
    provable: int = -1
    settle: bool = False
    sent_step: int = -1
    sent: _Due = field(default_factory=_Due)
    numbers: set[int] = field(default_factory=set)


class Session:
    """One incarnation.

    Invariants: leases are of the current generation; the order of `held` is that of taking. From a grant that restores
    a file until `begin`, the model at hand is not that of the run: it is never claimed, whatever the caller says.
    """

    def __init__(
        self, worker: str, incarnation: str, spec: records.JobSpec, where: Where, options: SessionOptions | None = None
    ) -> None:
        self.worker, self.incarnation, self.spec, self.where = worker, incarnation, spec, where
        self.options = options or SessionOptions()
        self.phase, self.reason, self.file = Phase.JOINING, "", ""
        self.generation, self.rank = 0, -1
        self.grant: records.Grant | None = None
        self.committed, self.finished = 0, False
        self.held: deque[Held] = deque()
        self.untaken = 0
        self.checkpoint: records.Checkpoint | None = None
        self.kept_steps = deque([0], maxlen=CHECKPOINTS_KEPT)  # what the ledger may restore; 0: not known to be less
        self.leaving = False
        # Until the first plan: what an even split gives. rate: samples taken per second, lately; 0 while unknown.
        self.batch_size, self.rate = max(1, spec.batch_size // max(1, spec.workers_min)), 0.0
        self._taken, self._taken_since_s = 0, -1.0
        self._samples_total = spec.samples * spec.epochs
        self._frontier, self._unleased = 0, self._samples_total
        self._by_lease: dict[int, Held] = {}
        self._claim, self._pending = _Claim(), _Pending()
        self._number = 0
        self._join, self._lease, self._beat, self._file = _Due(), _Due(), _Due(), _Due()
        self._waiting, self._answered = False, False
        self._newest_lease, self._asked = 0, set[int]()
        self._recent: deque[int] = deque(maxlen=STEPS_UNCOMMITTED)
        self._files: dict[int, str] = {}
        self._void = False
        self._released: dict[int, tuple[int, _Due]] = {}
        self._release_numbers: deque[int] = deque(maxlen=RELEASES_KEPT)

    # -- what the training side asks and says

    def take(self, samples: int, ranges_max: int) -> list[tuple[int, int, int, int, int]]:
        """Take at most `samples` from the front: (lease, token, epoch, start, length), at most `ranges_max` of them."""
        out: list[tuple[int, int, int, int, int]] = []
        before = self.untaken
        while samples > 0 and self.held and len(out) < ranges_max:
            first = self.held[0]
            length = min(samples, first.end - first.next)
            out.append((first.lease, first.token, first.epoch, first.next, length))
            first.next += length
            samples -= length
            self.untaken -= length
            if first.next == first.end:
                self.held.popleft()
        self._taken += before - self.untaken
        self._recent.append(before - self.untaken)
        return out

    def begin(self, pending: Sequence[Composition], lineage: bytes) -> None:
        """The generation has formed; its model, of this lineage, carries steps that may not be committed yet."""
        self._void = False
        self._pending = _Pending(deque(c for c in pending if c.step > self.committed), lineage, settle=True)

    def applied(self, composition: Composition) -> None:
        """A step is in this model. It is reported once it is proven to be in every member's."""
        self._pending.compositions.append(composition)

    def proven(self, step: int) -> None:
        """Every member has applied `step`: an exchange after it was completed."""
        self._pending.provable = max(self._pending.provable, step)

    def observe(self, total: int, expected: int = 0) -> None:
        """All members together had `total` samples in a step, and would have taken `expected`.

        Where somebody has run out of samples, nobody may sit on more than is needed until the next answer comes: whole
        leases go back, from the end. Only so may a worker hold many at all, whose speed nobody can foretell.
        """
        self._unleased = max(0, self._unleased - total)  # about so much was leased meanwhile, by all together
        if total >= expected:
            return
        while len(self.held) > 1 and self.untaken - (last := self.held[-1]).length >= 2 * self._least():
            self.held.pop()
            del self._by_lease[last.lease]
            self.untaken -= last.length
            self._released[last.lease] = (last.token, _Due())

    def wrote(self, file: records.Checkpoint) -> None:
        """A durable file holds this step: said to the ledger until it answers. An older one is not spoken of again."""
        self.checkpoint, self._file = file, _Due()

    def regroup(self, claim: int | None, lineage: bytes) -> None:
        """The generation is over for this member, and nobody touches its model any more: ask for the next one.

        A member that was granted a file and has not got its model holds one that was rolled back: it claims none.
        """
        if self.phase in (Phase.MEMBER, Phase.CLOSED):
            claimed = _Claim() if self._void else _Claim(claim, lineage)
            self.phase, self._claim, self._join = Phase.REGROUPING, claimed, _Due()
            self._drop_leases()

    @property
    def answered(self) -> bool:
        """A lease request of this generation was answered, with samples or with WAIT."""
        return self._answered

    @property
    def unreported(self) -> int:
        """Steps in this model that are not known to be committed."""
        return sum(1 for c in self._pending.compositions if c.step > self.committed)

    # -- what comes

    def on_reply(self, reply: records.Reply) -> None:
        """Take a reply; one of another incarnation is ignored."""
        if reply.incarnation != self.incarnation or self.phase in (Phase.ENDED, Phase.LOST, Phase.FAILED):
            return
        self._acknowledge(reply)
        if self._is_release(reply):
            return
        if reply.status is Status.END:
            self.phase, self.file = Phase.ENDED, reply.file
        elif reply.status is Status.REJOIN:
            if self.phase is not Phase.JOINING or "lost" in reply.reason or "left" in reply.reason:
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
        if reply.generation == self.generation and self.phase is Phase.MEMBER and reply.number in self._asked:
            # Also an answer to an older question: a ledger that is slower than our patience must not starve us.
            self._asked = {n for n in self._asked if n > reply.number}
            more = self._merge(reply.leases)
            # Where nothing came, asking again at once would only be noise.
            self._waiting, self._answered = reply.status is Status.WAIT or not more, True
            if reply.number == self._lease.number:
                self._lease.answered()

    def _is_release(self, reply: records.Reply) -> bool:
        """Whether this only says what became of a release. One that is refused has been carried out before."""
        for lease, (_, due) in self._released.items():
            if due.number == reply.number >= 0 and reply.status in (Status.OK, Status.REFUSED):
                del self._released[lease]
                return True
        return reply.status is Status.REFUSED and reply.number in self._release_numbers

    def _acknowledge(self, reply: records.Reply) -> None:
        if reply.generation >= self.generation:
            self.committed = max(self.committed, reply.committed)
            self.finished = reply.finished
        pending = self._pending.compositions
        while pending and pending[0].step <= self.committed:
            pending.popleft()
            self._pending.settle = False  # the first commit of a generation settles, whatever it carries
        if reply.number < 0:
            return  # news, nobody asked: not the answer to what was never sent
        # Answers to older questions count, too: a ledger that is slower than our patience must not starve us.
        sent = self._pending.sent
        if reply.number in self._pending.numbers and reply.status is Status.OK:
            self._pending.settle = False
        if reply.number == sent.number or self.committed >= self._pending.sent_step > 0:
            sent.answered()
        file = self.checkpoint
        if file is not None and self._files.get(reply.number) == file.file and reply.status is not Status.CLOSED:
            if reply.status is Status.OK:
                self.kept_steps.append(file.step)
            self.checkpoint = None

    def _refused(self, reply: records.Reply) -> None:
        # A refused checkpoint is dropped: the next one is taken. Anything else refused is a fault that must be loud.
        if reply.number not in self._files:
            self.phase, self.reason = Phase.FAILED, reply.reason

    def _granted(self, grant: records.Grant) -> None:
        if self.generation and (self.phase is not Phase.REGROUPING or grant.generation != self.generation + 1):
            # Of one that has asked it is the next one: the log has lost its tail, and our model may be of that.
            self.phase, self.reason = Phase.LOST, "granted what it did not ask for"
            return
        ranks = [i for i, m in enumerate(grant.members) if m.incarnation == self.incarnation]
        if not ranks:
            self.phase, self.reason = Phase.LOST, "left out of a grant"
            return
        self.generation, self.grant, self.phase, self.rank = grant.generation, grant, Phase.MEMBER, ranks[0]
        self.committed = grant.committed  # exact at the grant; after a rollback less than before
        if grant.kept_steps or grant.restore_file is not None:
            self.kept_steps = deque(grant.kept_steps or [0], maxlen=CHECKPOINTS_KEPT)
        self._drop_leases()
        self._pending = _Pending()
        self._frontier, self._unleased = 0, self._samples_total
        self._lease, self._waiting, self._answered, self.checkpoint = _Due(), False, False, None
        self._newest_lease, self._asked, self._file = 0, set(), _Due()
        self._void = self._void or grant.restore_file is not None

    def _drop_leases(self) -> None:
        self.held.clear()
        self._by_lease.clear()
        self._released.clear()
        self.untaken = 0

    def _merge(self, flat: tuple[int, ...]) -> bool:
        """The whole list of what we hold uncommitted: new ones are appended, the others' fronts move.

        Returns whether there are new ones.
        """
        listed, before = set[int](), self._newest_lease
        for i in range(0, len(flat), 5):
            number, token, epoch, front, length = flat[i : i + 5]
            listed.add(number)
            known = self._by_lease.get(number)
            if known is None:
                if number <= self._newest_lease:
                    continue  # taken and committed long ago: this list is older than the last one
                self._newest_lease = number
                self._frontier = max(self._frontier, epoch * self.spec.samples + front + length)
                self._unleased = self._samples_total - self._frontier
                known = Held(number, token, epoch, front, front, front + length)
                self._by_lease[number] = known
                self.held.append(known)
                self.untaken += length
            known.front = max(known.front, front)
        newest = max(listed, default=self._newest_lease)
        for number in [n for n, h in self._by_lease.items() if n not in listed and n <= newest and h.next == h.end]:
            del self._by_lease[number]
        return self._newest_lease > before

    # -- what goes

    def tick(self, now_s: float) -> list[records.Request]:
        """Requests to send now, in order."""
        out: list[records.Request] = []
        retry = self.options.retry_s
        if self.phase is Phase.JOINING and now_s - self._join.at_s >= retry:
            w = self.where
            body = records.Join("worker", w.host, w.port, w.node, w.hardware, w.restarts, self.spec)
            out.append(self._request(body, self._join, now_s))
        elif self.phase is Phase.REGROUPING and now_s - self._join.at_s >= retry:
            where = self.where.host, self.where.port
            regroup = records.Regroup(self.generation, self._claim.step, self._claim.lineage, *where)
            out.append(self._request(regroup, self._join, now_s))
        elif self.phase is Phase.MEMBER:
            self._tick_member(now_s, out)
        if self.phase in (Phase.MEMBER, Phase.CLOSED) and self.rank == 0:
            self._tick_file(now_s, out)
        every_s = self.options.heartbeat_leaving_s if self.leaving else self.options.heartbeat_s
        if out and not self.leaving:
            self._beat.at_s = now_s
        elif self.phase in (Phase.MEMBER, Phase.CLOSED) and now_s - self._beat.at_s >= every_s:
            out.append(self._request(records.Heartbeat(self.generation, self.committed), self._beat, now_s))
        return out

    def _tick_rate(self, now_s: float) -> None:
        """How fast samples are taken: a loop of short steps must hold more than a few of them."""
        since = now_s - self._taken_since_s
        if since >= self.options.rate_every_s:
            measured = self._taken / since
            self.rate = (self.rate + measured) / 2 if self.rate else measured
            self._taken, self._taken_since_s = 0, now_s

    def _tick_member(self, now_s: float, out: list[records.Request]) -> None:
        self._tick_rate(now_s)
        if self.rank == 0:
            self._tick_commit(now_s, out)
        self._tick_release(now_s, out)
        target = self._target()
        pause_s = self._lease.pause_s(self.options)
        if not self._lease.tries:  # the last question was answered
            pause_s = self.options.wait_retry_s if self._waiting else 0.0
        if self.untaken * 2 <= target and not self.finished and now_s - self._lease.at_s >= pause_s:
            # The ledger counts what is not committed. Fronts are as old as the last answer: what was taken lately is a
            # better guess, and one that is too low only while the ledger is far behind.
            taken = sum(h.next - h.front for h in self._by_lease.values())
            lately = max(sum(self._recent), int(self.rate * self.options.rate_every_s))
            taken = min(taken, lately) if self.untaken else taken
            out.append(self._request(records.Lease(self.generation, taken + target), self._lease, now_s))
            self._asked.add(self._lease.number)
            if len(self._asked) > ASKED_MAX:
                self._asked.discard(min(self._asked))

    def _tick_release(self, now_s: float, out: list[records.Request]) -> None:
        for lease, (token, due) in self._released.items():
            if now_s - due.at_s >= due.pause_s(self.options):
                out.append(self._request(records.Release(self.generation, lease, token), due, now_s))
                self._release_numbers.append(due.number)

    def _least(self) -> int:
        """Samples until the next answer: a step, and more of them where they are short."""
        return max(self.batch_size, int(self.rate * self.options.answer_s))

    def _tick_file(self, now_s: float, out: list[records.Request]) -> None:
        """Also when the generation is closed: a checkpoint counts by its lineage, whoever is a member by then."""
        file = self.checkpoint
        if file is not None and file.step <= self.committed:
            if now_s - self._file.at_s >= self._file.pause_s(self.options):
                out.append(self._request(file, self._file, now_s))
                self._files[self._file.number] = file.file
                if len(self._files) > ASKED_MAX:
                    del self._files[min(self._files)]

    def _target(self) -> int:
        """Samples to hold: some steps' worth, and what is used up in `prefetch_s`.

        Towards the end of the data everybody holds less, half of what nobody holds in proportion to the batches: who
        holds many steps there makes the others wait, and the last steps small.
        """
        o, spec = self.options, self.spec
        target = min(o.prefetch_samples_max, max(o.prefetch_steps * self.batch_size, int(o.prefetch_s * self.rate)))
        return max(self._least(), min(target, self._unleased * self.batch_size // (2 * spec.batch_size)))

    def _tick_commit(self, now_s: float, out: list[records.Request]) -> None:
        pending = self._pending
        since = now_s - pending.sent.at_s
        ready = [c for c in pending.compositions if c.step <= pending.provable]
        new = bool(ready) and ready[-1].step > pending.sent_step
        first = pending.settle and pending.provable >= 0 and pending.sent.number < 0
        again = (bool(ready) or (pending.settle and pending.provable >= 0)) and since >= self.options.retry_s
        # One at a time: whatever comes meanwhile goes with the next one, however long the ledger is away.
        pause_s = pending.sent.pause_s(self.options) if pending.sent.tries else self.options.commit_every_s
        if len(ready) > self.options.commit_steps_max and not pending.sent.tries:
            pause_s = 0.0
        if since < pause_s or not (new or first or again):
            return
        room, chosen = NUMBERS_A_COMMIT_MAX, list[Composition]()
        for c in ready[: self.options.commit_steps_max]:
            if chosen and room < len(c.ranges):
                break
            room -= len(c.ranges)
            chosen.append(c)
        body = records.Commit(
            generation=self.generation,
            first_step=chosen[0].step if chosen else self.committed + 1,
            compositions=tuple(c.ranges for c in chosen),
            plans=tuple(c.plan for c in chosen),
            lineage=chosen[-1].lineage if chosen else pending.lineage,
            log_seen=-1,
        )
        out.append(self._request(body, pending.sent, now_s))
        if pending.settle and len(pending.numbers) < ASKED_MAX:
            pending.numbers.add(pending.sent.number)
        pending.sent_step = chosen[-1].step if chosen else pending.sent_step

    def _request(self, body: records.RequestBody, due: _Due, now_s: float) -> records.Request:
        self._number += 1
        due.at_s, due.number, due.tries = now_s, self._number, due.tries + 1
        return records.Request(self.worker, self.incarnation, self._number, body, b"")
