"""The ledger in office: requests in, one entry a cycle out, replies only for what was read back.

Pure: a driver brings requests with their broker time, appends what `propose` returns, and brings every entry it reads.
Deciding applies events to the state ahead of the append, so that one cycle sees its own effects; none of it leaves this
object (no reply, no row) before the very bytes were read back in office. Superseded, the object is thrown away whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import auth, codec, records, topics
from antdt_schemas.errors import Superseded, Undecodable
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC
from antdt_schemas.topics import RECORD_BYTES_MAX

from antdt_streams.ledger.core import dealing, rows
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.callers import Callers
from antdt_streams.ledger.core.decide import decide
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.ledger.core.holdups import STUCK_MS, HoldUps
from antdt_streams.ledger.core.members import Members
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import Answer, Turn, close, lose, refuse

# A record is at most what its topic takes: a cycle is closed well before it gets there.
CYCLE_BYTES_MAX = 256 << 10
CYCLES_A_RECORD = 4
LOSSES_PER_REPLY_MAX = 256
PAUSE_MS = 1_000


@dataclass(frozen=True, slots=True)
class Incoming:
    """A record of `requests`: its offset, the broker's time, its bytes."""

    offset: int
    time_ms: int
    payload: bytes | None


@dataclass(slots=True)
class Cycle:
    """A proposed cycle, waiting for its place in the log."""

    body: records.Cycle
    payload: bytes
    answers: list[Answer]
    dead: list[tuple[Incoming, str]]


@dataclass(slots=True)
class Patience:
    """Who was heard from, in a clock that runs on requests: a pause that hits everybody at once costs nobody."""

    limit_ms: int
    clock_ms: int = 0
    last_ms: int = 0
    heard: dict[str, int] = field(default_factory=dict)

    def hear(self, incarnation: str, now_ms: int) -> None:
        """A request of this incarnation came at this broker time."""
        if self.last_ms:
            self.clock_ms += min(max(now_ms - self.last_ms, 0), PAUSE_MS)
        self.last_ms = now_ms  # a clock that was set back stops ours for one request only
        self.heard[incarnation] = self.clock_ms

    def silent(self, state: State) -> list[str]:
        """Incarnations that were silent for longer than the limit."""
        out = []
        for name, who in state.members.incarnations.items():
            if who.gone:
                self.heard.pop(name, None)
            elif self.clock_ms - self.heard.setdefault(name, self.clock_ms) > self.limit_ms:
                out.append(name)
        return out


class PoisonRequest(Exception):
    """Deciding a request failed, which is a bug of ours: the state may be changed by half and must be dropped."""

    def __init__(self, offset: int, error: Exception) -> None:
        super().__init__(f"The ledger failed on it: {type(error).__name__}: {error}"[:300])
        self.offset = offset


class Crowded(Exception):
    """An entry of all these requests would be too large: drop this object, and propose the first `fits` of them."""

    def __init__(self, fits: int) -> None:
        super().__init__(f"only the first {fits} requests fit into one entry")
        self.fits = fits


class InOffice:
    """A leader whose Leader entry was read back: `fold` has read the log up to it."""

    def __init__(
        self,
        fold: Fold,
        secret: bytes | None = None,
        poisoned: Mapping[int, str] | None = None,
        record_bytes_max: int = RECORD_BYTES_MAX,
        stuck_ms: int = STUCK_MS,
    ) -> None:
        """poisoned: offsets of requests that were found to be poison, and why. They are refused, in the log, so that
        every replay agrees. record_bytes_max: of an entry, as the topic takes it. stuck_ms: for how long somebody may
        hold up the others who has not announced it; no replay depends on it.
        """
        assert fold.genesis is not None
        assert fold.state is not None
        assert fold.office is not None
        self.fold, self.state, self.genesis, self.office = fold, fold.state, fold.genesis, fold.office
        self.secret, self.poisoned = secret, dict(poisoned or {})
        self.record_bytes_max = record_bytes_max
        self.cycle_bytes_max = min(CYCLE_BYTES_MAX, record_bytes_max // CYCLES_A_RECORD)
        self.patience, self.callers = Patience(fold.genesis.patience_ms), Callers()
        self.holdups = HoldUps(fold.genesis.patience_ms, stuck_ms)
        self.pending: Cycle | None = None
        self._checked_ms = 0

    def propose(self, requests: list[Incoming], facts: tuple[records.Event, ...] = ()) -> tuple[bytes, int]:
        """Decide requests, in order, after `facts` that no request caused. Returns the entry to append and how many
        requests it covers.

        An entry never grows far beyond `cycle_bytes_max`: the rest waits.

        Raises:
            PoisonRequest: drop this object, and go on from the last entry that was read with that request poisoned.
            Crowded: likewise, with fewer requests at a time.
        """
        assert self.pending is None, "one cycle at a time"
        state, events = self.state, list[records.Event]()
        if self.genesis.digest_every and (state.sequence + 1) % self.genesis.digest_every == 0:
            events.append(records.Digested(rows.digest(state)))
        for fact in facts:
            state.apply(fact)
            events.append(fact)
        turns, dead = self._decide_all(requests)
        taken, last = len(turns), self.fold.position
        body = records.Cycle(
            epoch_offset=self.office.offset,
            epoch_hash=self.office.hash,
            sequence=state.sequence + 1,
            previous_offset=last.next_offset - 1,
            previous_hash=last.hash,
            requests_next=requests[taken - 1].offset + 1 if taken else state.requests_next,
            now_ms=max([state.now_ms, *(incoming.time_ms for incoming in requests[:taken])]),
            events=(*events, *(event for turn in turns for event in turn.events)),
        )
        payload = codec.encode(records.Entry(body))
        self._check_room(payload, body, requests[:taken])
        grant_to = set[str]().union(*(turn.grant_to for turn in turns))
        answers = [answer for turn in turns for answer in turn.answers] + _for_all(grant_to)
        self.pending = Cycle(body, payload, answers, dead)
        return payload, taken

    def _decide_all(self, requests: list[Incoming]) -> tuple[list[Turn], list[tuple[Incoming, str]]]:
        """As many as fit into an entry; and those that are dead letters, with the reason."""
        turns, dead, size = list[Turn](), list[tuple[Incoming, str]](), 0
        for incoming in requests:
            if turns and size + len(incoming.payload or b"") > self.cycle_bytes_max:
                break  # what it makes is about as large as itself
            turn = Turn(self.state, incoming.offset, self.callers)
            try:
                self._decide(turn, incoming, dead)
            except Exception as error:
                raise PoisonRequest(incoming.offset, error) from error
            turns.append(turn)
            size += sum(map(_size, turn.events))
            if size > self.cycle_bytes_max:
                break
        return turns, dead

    def _check_room(self, payload: bytes, body: records.Cycle, requests: list[Incoming]) -> None:
        """An entry, and a grant, that its topic does not take must not be decided: whoever asked for it is refused."""
        size, what = len(payload), "an entry"
        if any(isinstance(event, records.Granted) for event in body.events):
            for_all = self.reply(Answer("", "", -1, Status.OK, grant=True))
            size, what = max((size, what), (len(codec.encode(for_all)), "a grant"))
        if size > self.record_bytes_max:
            assert requests, f"{what} of {size} bytes without a request"
            if len(requests) > 1:
                raise Crowded(len(requests) - 1)
            said = f"it would make {what} of {size} bytes, and its topic takes {self.record_bytes_max}"
            raise PoisonRequest(requests[0].offset, ValueError(said))

    def _decide(self, turn: Turn, incoming: Incoming, dead: list[tuple[Incoming, str]]) -> None:
        try:
            request = codec.decode(incoming.payload, records.Request)
        except Undecodable as error:
            turn.emit(records.Refused("", "", "undecodable", -1, str(error)[:300], incoming.offset))
            dead.append((incoming, str(error)))
            return
        if incoming.offset in self.poisoned:
            reason = self.poisoned[incoming.offset]
            refuse(turn, request, reason)
            dead.append((incoming, reason))
            return
        if not auth.is_authentic(request, self.secret):
            refuse(turn, request, "The request is not authenticated with this job's secret (ANTDT_SECRET).")
            return
        if not isinstance(request.body, records.Exited):
            self.patience.hear(request.incarnation, incoming.time_ms)
            self.callers.hear(request.incarnation, self.patience.clock_ms)
        decide(turn, request)
        if isinstance(request.body, records.Heartbeat):
            if request.incarnation in self.state.members.incarnations:
                self.holdups.hear(request.incarnation, request.body, self.patience.clock_ms)
            for answer in turn.answers:
                if answer.incarnation == request.incarnation:
                    answer.warning = self.holdups.named.get(request.incarnation, "")
        if self.patience.clock_ms - self._checked_ms >= self.genesis.patience_ms // 8:
            self._checked_ms = self.patience.clock_ms
            if self.state.done is None:
                self._look_at_everybody(turn)

    def _look_at_everybody(self, turn: Turn) -> None:
        """Who is silent, or stuck, is lost; where all wait for each other, they meet again."""
        for name in self.patience.silent(self.state):
            lose(turn, name, f"silent for more than {self.genesis.patience_ms} ms")
        found = self.holdups.look(self.state, self.patience.clock_ms)
        for name, reason in found.lost:
            lose(turn, name, reason)
        if found.deadlock and self.state.members.open:
            close(turn, found.deadlock)

    def read_back(self, offset: int, payload: bytes) -> Cycle | None:
        """An entry came from the log. Returns the pending cycle if this is it.

        Raises:
            Superseded: another leader took office; drop this object.
        """
        if self.pending is not None and payload == self.pending.payload:
            cycle, self.pending = self.pending, None
            self.fold.confirm(offset, payload, cycle.body)
            return cycle
        verdict = self.fold.read_foreign(offset, payload)
        if verdict is Verdict.LEADER:
            assert self.fold.office is not None
            raise Superseded(f"{self.fold.office.owner} took office at offset {offset}.")
        return None

    def reply(self, answer: Answer) -> records.Reply:
        """The Reply of an answer, from the state as it is now in the log."""
        state, status = self.state, answer.status
        who = state.members.incarnations.get(answer.incarnation)
        leases = _leases(state, answer.incarnation) if answer.leases and who is not None and not who.gone else ()
        places = _places(state, leases) if leases and state.spec.order == TOPIC else ()
        grant = _grant(state, self.genesis.run_id) if answer.grant else None
        if grant is not None and not state.members.open:
            status = Status.CLOSED  # it closed before somebody had heard of it
        return records.Reply(
            worker=answer.worker,
            incarnation=answer.incarnation,
            number=answer.number,
            status=status,
            reason=answer.reason,
            generation=state.members.generation,
            committed=state.line.committed,
            finished=state.finished,
            leases=leases,
            grant=grant,
            file=answer.file or state.done or "",
            quarantined=state.shards.quarantined_total,
            warning=answer.warning,
            stopped=state.why_stopped,
            places=places,
            losses=_losses(state.members, answer.incarnation),
            loads=dealing.loads(state, answer.incarnation) if answer.loads else (),
        )


def _for_all(workers: Iterable[str]) -> list[Answer]:
    """One answer for each partition that some of these workers read: what is written into it, all of them take.

    The last ones of a cycle: what is said of older generations goes ahead of it.
    """
    partitions = {topics.replies_partition(worker): worker for worker in sorted(workers)}
    return [Answer(worker, "", -1, Status.OK, grant=True) for _, worker in sorted(partitions.items())]


def _grant(state: State, run_id: str) -> records.Grant:
    g = state.members.grant
    assert g is not None
    members = ((n, state.members.incarnations[n]) for n in g.members)
    fixed = state.shards if isinstance(state.shards, Batches) else None
    excluded, tail, suspects = fixed.ahead() if fixed is not None else ((), (), ())
    return records.Grant(
        run_id,
        g.generation,
        tuple(records.Member(n, i.worker, i.host, i.port) for n, i in members),
        g.source,
        g.source_step,
        g.committed,
        g.restore_file,
        tuple(c.step for c in state.line.checkpoints),
        state.spec.shard_size,
        excluded,
        tail,
        suspects,
        batch_size=fixed.layouts.of(g.generation).batch_size if fixed is not None else 0,
        stop_step=state.stop.step if state.stop is not None else 0,
        batch_size_first=state.spec.batch_size if fixed is not None else 0,
    )


def _losses(members: Members, incarnation: str) -> tuple[records.Loss, ...]:
    """Whom the first server of the open generation has not said that it refuses."""
    if not (members.losses and members.open and incarnation == members.group[0]):
        return ()
    last = min(len(members.losses), members.fenced + LOSSES_PER_REPLY_MAX)
    return tuple(records.Loss(number, members.losses[number]) for number in range(members.fenced + 1, last + 1))


def _leases(state: State, incarnation: str) -> tuple[int, ...]:
    out: list[int] = []
    for number in state.shards.held.get(incarnation, ()):
        lease = state.shards.leases[number]
        if lease.generation == state.members.generation:
            out += (number, lease.token, lease.epoch, lease.front, lease.end - lease.front)
    return tuple(out)


def _places(state: State, leases: tuple[int, ...]) -> tuple[int, ...]:
    """Where in the topic these are."""
    at = ((leases[i + 3], leases[i + 4]) for i in range(0, len(leases), 5))
    return tuple(number for start, length in at for run in state.shards.space.runs(start, length) for number in run)


_SIZES: dict[type[records.Event], Callable[[Any], int]] = {
    records.Committed: lambda e: 64 + 6 * len(e.ranges),
    records.Vacant: lambda e: 64 + 6 * len(e.places),
    records.SetAside: lambda e: 64 + len(e.key) + len(e.reason),
    records.Extended: lambda e: 160 + 9 * len(e.blocks),
    records.Dealt: lambda e: 64 + 6 * len(e.pieces) + sum(map(len, e.incarnations)),
    records.Granted: lambda e: 64 + sum(map(len, e.members)),
}


def _size(event: records.Event) -> int:
    """About how many bytes an event takes."""
    size = _SIZES.get(type(event))
    return size(event) if size is not None else 160
