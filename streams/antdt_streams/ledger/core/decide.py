"""What the ledger decides: one request in, events and answers out.

Rules (numbers of the exactly-once protocol)
  2   requests are level-triggered: every one may arrive again, at any time, and then changes nothing
  3   generations come only from here: closed on a loss, a regroup or a join; granted when every member asked or is gone
  4   a lost incarnation is refused everything; Commit counts only from the first member of the open generation. While
      an incarnation of a worker may live, another one takes its place only where that is its own launcher's doing, its
      death is proven, or an operator wants it (`callers`)
  6   whoever holds at least the committed step may be the source; nobody: roll back to the newest checkpoint
  8   leases of whoever is gone stay in limbo until the next generation has reported every step that it began with:
      its first commit settles them, or the last of several where the source had more steps than a commit holds
  9   a checkpoint counts if its lineage is that of the ledger's own chain
  11  Done when nothing is left and the newest checkpoint holds it; looked at after every request
  12  Release names a lease that was never taken from
  20  an attempt counts against samples by evidence only (see `evidence`); whatever is in quarantine can be readmitted,
      also when the job is done, which it then is no longer

Every request that is not carried out becomes a Refused event with its author.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import lineage, records
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.records import Status

from antdt_streams.ledger.core import evidence
from antdt_streams.ledger.core.callers import Callers, Room
from antdt_streams.ledger.core.others import difference
from antdt_streams.ledger.core.state import Incarnation, Lease, State

RANGES_PER_REPLY_MAX = 256
LEASES_AN_ANSWER = 32
REASON_CHARS_MAX = 300
AUTHOR_CHARS_MAX = 128
AUTHORS_OF_SKIP_MAX = 64


@dataclass(slots=True)
class Answer:
    """To be turned into a Reply once the entry it rests on was read back. number -1: news, nobody asked."""

    worker: str
    incarnation: str
    number: int
    status: Status
    reason: str = ""
    leases: bool = False
    grant: bool = False


@dataclass(slots=True)
class Turn:
    """One request being decided: events are applied as they are emitted."""

    state: State
    offset: int
    callers: Callers = field(default_factory=Callers)
    events: list[records.Event] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def emit(self, event: records.Event) -> None:
        """Record an event and apply it."""
        self.state.apply(event)
        self.events.append(event)


class Refusal(Exception):
    """This request is not carried out."""

    def __init__(self, reason: str, status: Status = Status.REFUSED) -> None:
        super().__init__(reason)
        self.status = status


def decide(turn: Turn, request: records.Request) -> None:
    """Decide one request; its events are in `turn.events` and applied, its answers in `turn.answers`."""
    state, body = turn.state, request.body
    mark = len(turn.events)
    try:
        if state.done is not None and isinstance(body, records.Rollback):
            raise Refusal(f"The job is done, its model is {state.done}: nothing of it is undone. Start a new job.")
        who = state.incarnations.get(request.incarnation)
        # Who was given up is told so, also when all is done without it: it may hang, and has to be ended.
        given_up = who is not None and who.gone and isinstance(body, records.Heartbeat)
        if state.done is not None and not given_up and not isinstance(body, records.Leave | records.Readmit):
            # To a newcomer, a reason says that it came for something else.
            reason = evidence.in_quarantine(state)
            if isinstance(body, records.Join):
                reason = difference(state.spec, body.spec)
            turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.END, reason))
        else:
            _DECIDE[type(body)](turn, request, body)
    except Refusal as refusal:
        refuse(turn, request, str(refusal), refusal.status)
    if state.done is None:
        _grant(turn)
        if state.finished and state.checkpoints[-1].step == state.committed:
            turn.emit(records.Done(state.checkpoints[-1].file))
            _tell_members(turn, Status.END, evidence.in_quarantine(state))
    assert len(turn.events) >= mark


def refuse(turn: Turn, request: records.Request, reason: str, status: Status = Status.REFUSED) -> None:
    """Record and answer a refusal."""
    kind, generation = type(request.body).__name__, getattr(request.body, "generation", -1)
    reason = reason[:REASON_CHARS_MAX]
    author = request.worker[:64], request.incarnation[:128]
    turn.emit(records.Refused(*author, kind, generation, reason, turn.offset))
    grant = status in (Status.OK, Status.CLOSED)
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, status, reason, grant=grant))


def lose(turn: Turn, incarnation: str, reason: str, by: str = "") -> None:
    """An incarnation is gone for good; `by`: the one that has taken its place."""
    state = turn.state
    turn.emit(records.Lost(incarnation, reason[:REASON_CHARS_MAX], by))
    if state.open and incarnation in state.members:
        close(turn, f"{incarnation} is lost: {reason}")


def check_spec(spec: records.JobSpec) -> str | None:
    """What is wrong with a job's data, or None."""
    for name in ("samples", "epochs", "shard_size", "batch_size", "workers_min", "max_attempts"):
        if getattr(spec, name) < 1:
            return f"{name} is {getattr(spec, name)}: it must be at least 1."
    if spec.samples < spec.workers_min:
        return (
            f"The data set {spec.dataset!r} has {spec.samples} samples for {spec.workers_min} workers: "
            f"start at most {spec.samples} workers, or take more data."
        )
    if spec.batch_size < spec.workers_min:
        return (
            f"The global batch of {spec.batch_size} is smaller than the {spec.workers_min} workers: raise batch_size."
        )
    return None


# -- membership


def _member(turn: Turn, request: records.Request) -> Incarnation:
    who = turn.state.incarnations.get(request.incarnation)
    if who is None or who.worker != request.worker:
        raise Refusal("This incarnation is not known: join first.", Status.REJOIN)
    if who.gone:
        raise _gone(turn.state, who, request)
    return who


def _gone(state: State, who: Incarnation, request: records.Request) -> Refusal:
    """A displaced one never comes back: whoever did would displace in its turn."""
    if who.status == "displaced":
        return Refusal(f"{_other(state, request)} has taken the place of {request.incarnation}.", Status.DISPLACED)
    return Refusal(f"This incarnation is {who.status}: join as a new one, without its model.", Status.REJOIN)


def _other(state: State, request: records.Request) -> str:
    """Who runs this worker now, or did last."""
    name = [n for n, i in state.incarnations.items() if i.worker == request.worker and n != request.incarnation][-1]
    return _named(name, state.incarnations[name])


def _named(name: str, who: Incarnation) -> str:
    return f"{name} of {who.launcher} on {who.node}" if who.launcher else f"{name} on {who.node}"


def _open_member(turn: Turn, request: records.Request, generation: int) -> None:
    state = turn.state
    who = _member(turn, request)
    if generation != state.generation or not state.open or who.status != "member":
        # A member of the open generation that asks in an older one has not heard of its grant: not closed for it.
        status = Status.OK if state.open and who.status == "member" else Status.CLOSED
        raise Refusal(f"Generation {generation} is closed; the newest is {state.generation}.", status)


def _join(turn: Turn, request: records.Request, body: records.Join) -> None:
    state = turn.state
    other = difference(state.spec, body.spec)
    if other:
        raise Refusal(other)
    known = state.incarnations.get(request.incarnation)
    if known is not None:
        if known.gone:
            raise _gone(state, known, request)
        _answer_member(turn, request, known)
        return
    for name in [n for n, i in state.incarnations.items() if i.worker == request.worker and not i.gone]:
        if not _makes_room(turn, request, body, name):
            return
    turn.callers.forget(request.incarnation)
    turn.emit(
        records.Joined(
            request.incarnation,
            request.worker,
            body.role,
            body.host,
            body.port,
            body.node,
            body.hardware,
            body.restarts,
            body.launch,
            body.launcher,
            body.place,
        )
    )
    if state.open:
        close(turn, f"{request.worker} joins")
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK, grant=True))


def _makes_room(turn: Turn, request: records.Request, body: records.Join, occupant: str) -> bool:
    """Whether `occupant` has made room for a newcomer of the same worker; if not, that one is told to wait."""
    who = turn.state.incarnations[occupant]
    restart = body.launch != "" and body.launch == who.launch
    # A place is held by one launch at a time, and its workers end with it: whoever holds it now has outlived them.
    proven = body.place != "" and body.place == who.place
    room = Room.FREE if restart or proven else turn.callers.room(request.incarnation, occupant, body.take_over)
    if room is Room.FREE:
        lose(turn, occupant, f"{request.incarnation} has taken its place", request.incarnation)
        return True
    if room is Room.OCCUPIED:
        turn.callers.forget(request.incarnation)
        raise Refusal(
            f"{request.worker} is run by {_named(occupant, who)}, which is alive. "
            "End it first, or take over with `antdt launch --take-over`.",
            Status.OCCUPIED,
        )
    reason = f"{request.worker} is run by {_named(occupant, who)}: waiting for a sign of life, or for its end."
    if body.take_over:
        reason = f"{_named(occupant, who)} is asked to leave: waiting until it has."
        mine = body.launcher or request.incarnation
        told = f"{mine} on {body.node} takes over {request.worker}."
        turn.answers.append(Answer(request.worker, occupant, -1, Status.LEAVE, told))
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.WAIT, reason))
    return False


def _answer_member(turn: Turn, request: records.Request, who: Incarnation) -> None:
    """Where it stands: its grant, also that of a generation which closed before it had heard of it."""
    over = who.status == "member" and not turn.state.open
    status = Status.CLOSED if over else Status.OK
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, status, grant=True))


def _regroup(turn: Turn, request: records.Request, body: records.Regroup) -> None:
    state = turn.state
    who = _member(turn, request)
    if body.generation != state.generation or who.status == "waiting":
        # An old one: what it asked for has been granted, or is on its way.
        _answer_member(turn, request, who)
        return
    if state.open:
        close(turn, f"{request.worker} asks for a new one")
    if who.status == "member":
        claim = body.claim
        if claim is not None and claim <= state.committed and body.lineage != state.lineage_at(claim):
            claim = None  # its model is not what was committed
        if state.restoring:
            claim = None  # its model contains what was undone
        turn.emit(records.Ready(request.incarnation, claim, body.host, body.port))
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK, grant=True))


def _leave(turn: Turn, request: records.Request, body: records.Leave) -> None:
    state = turn.state
    _member(turn, request)
    turn.emit(records.Left(request.incarnation))
    if state.open and request.incarnation in state.members:
        close(turn, f"{request.worker} left")
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK))


def _exited(turn: Turn, request: records.Request, body: records.Exited) -> None:
    who = turn.state.incarnations.get(request.incarnation)
    if who is not None and who.worker == request.worker and not who.gone:
        reason = f"exit status {body.exit_code} {body.reason}".strip()
        lose(turn, request.incarnation, reason)
        if evidence.died_of_samples(turn.state, request.incarnation, body.exit_code):
            for i in range(0, len(body.at) // 3 * 3, 3):
                evidence.blame(turn, request.incarnation, body.at[i : i + 3], body.key if i == 0 else "", reason)


def _failed(turn: Turn, request: records.Request, body: records.Failed) -> None:
    _member(turn, request)
    evidence.blame(turn, request.incarnation, (body.epoch, body.start, body.length), body.key, body.reason)
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK))


def _heartbeat(turn: Turn, request: records.Request, body: records.Heartbeat) -> None:
    who = turn.state.incarnations.get(request.incarnation)
    if who is None or who.gone:
        gone = _gone(turn.state, who, request) if who is not None else Refusal("", Status.REJOIN)
        turn.answers.append(Answer(request.worker, request.incarnation, request.number, gone.status, str(gone)))
    elif body.generation != turn.state.generation or not turn.state.open:
        _answer_member(turn, request, who)
    else:
        turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK))


def close(turn: Turn, reason: str) -> None:
    """The open generation is over: its members ask for the next one."""
    turn.emit(records.Closed(turn.state.generation, reason[:REASON_CHARS_MAX]))
    _tell_members(turn, Status.CLOSED, reason[:REASON_CHARS_MAX])


def _tell_members(turn: Turn, status: Status, reason: str = "") -> None:
    state = turn.state
    for name in state.members:
        who = state.incarnations[name]
        if not who.gone:
            turn.answers.append(Answer(who.worker, name, -1, status, reason, grant=status is Status.OK))


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which w2 comes before w10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in parts)


def _grant(turn: Turn) -> None:
    state = turn.state
    if state.open:
        return
    if any(state.incarnations[m].status == "member" for m in state.members):
        return  # somebody of the old generation has not asked yet
    asking = {n: i for n, i in state.incarnations.items() if i.status in ("waiting", "ready")}
    if not asking or (state.generation == 0 and len(asking) < state.spec.workers_min):
        return
    members = tuple(sorted(asking, key=lambda n: (natural(asking[n].worker), n)))
    holders = [(i.claim, n) for n, i in asking.items() if i.claim is not None and i.claim >= state.committed]
    source = max(holders)[1] if holders else None
    restore, source_step = None, None
    if source is None:
        newest = state.checkpoints[-1]
        if state.committed > newest.step:
            turn.emit(records.RolledBack(newest.step, "nobody holds a model with everything committed"))
        restore = newest.file
    else:
        source_step = asking[source].claim
    turn.emit(records.Granted(state.generation + 1, members, source, source_step, state.committed, restore))
    _tell_members(turn, Status.OK)


# -- shards


def _lease(turn: Turn, request: records.Request, body: records.Lease) -> None:
    state = turn.state
    _open_member(turn, request, body.generation)
    missing = body.samples - state.held_samples(request.incarnation, state.generation)
    room = RANGES_PER_REPLY_MAX - len(state.held.get(request.incarnation, ()))
    missing = min(missing, _fair_share(state))
    # In pieces: what turns out to be too much is released by whole leases.
    at_once = max(2 * state.spec.shard_size, state.spec.batch_size, missing // LEASES_AN_ANSWER)
    while missing > 0 and room > 0:
        piece = _next_piece(state, min(missing, at_once))
        if piece is None:
            break
        epoch, start, end = piece
        suspects = evidence.suspects(state, epoch, start, end)
        end = suspects or end
        shards = len(state.shards_between(start, end))
        turn.emit(
            records.Leased(state.next_lease, shards, request.incarnation, state.generation, epoch, start, end - start)
        )
        missing -= end - start
        room -= 1
        if suspects:
            break  # the others are for somebody else
    status = Status.OK if state.held.get(request.incarnation) else Status.WAIT
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, status, leases=True))


def _fair_share(state: State) -> int:
    """At the end of the data nobody takes what the others could do meanwhile."""
    left = state.samples_total - state.committed_total - state.quarantined_total
    return max(state.spec.shard_size, -(-left // (2 * max(1, len(state.members)))))


def _next_piece(state: State, limit: int) -> tuple[int, int, int] | None:
    """The first samples that nobody holds: (epoch, start, end), whole shards where nothing came back."""
    size = state.spec.shard_size
    for number in range(state.first_epoch_with_work, state.spec.epochs):
        epoch = state.epochs.get(number)
        if epoch is not None and epoch.returned:
            start, end = epoch.returned.first()
            return number, start, min(end, _shard_end(start, limit, size))
        cursor = epoch.cursor if epoch is not None else 0
        if cursor < state.spec.samples:
            return number, cursor, min(state.spec.samples, _shard_end(cursor, limit, size))
    return None


def _shard_end(start: int, limit: int, size: int) -> int:
    """End of the last shard that a run of about `limit` samples from `start` touches."""
    return -(-(start + max(limit, 1)) // size) * size


def _release(turn: Turn, request: records.Request, body: records.Release) -> None:
    """What is not held went back before: a request may arrive again, long after it was answered."""
    state = turn.state
    _open_member(turn, request, body.generation)
    if len(body.more) % 2:
        raise Refusal(f"{len(body.more)} numbers, not pairs of a lease and its token.")
    values = iter((body.lease, body.token, *body.more))
    held = dict[int, Lease]()
    for number, token in zip(values, values, strict=True):
        lease = state.leases.get(number)
        if lease is None or lease.incarnation != request.incarnation or lease.token != token:
            continue
        if lease.front != lease.start:
            raise Refusal(f"Lease {number} was taken from.")
        held[number] = lease
    for number, lease in held.items():
        turn.emit(records.Returned(number, lease.epoch, lease.front, lease.end - lease.front, False, False))
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK, leases=True))


# -- steps


def _commit(turn: Turn, request: records.Request, body: records.Commit) -> None:
    state = turn.state
    _open_member(turn, request, body.generation)
    if request.incarnation != state.members[0]:
        raise Refusal(f"Only the first member commits: {state.members[0]}.")
    if len(body.plans) != len(body.compositions):
        raise Refusal(f"{len(body.compositions)} compositions and {len(body.plans)} plans.")
    new = range(max(body.first_step, state.committed + 1), body.first_step + len(body.compositions))
    if body.first_step > state.committed + 1:
        raise Refusal(f"Step {body.first_step} is committed before step {state.committed + 1}: a gap.")
    events = _validated(state, body, new)
    skipped = _skipped(body)
    for event in events:
        turn.emit(event)
        if event.step in skipped:
            turn.emit(skipped[event.step])
    if not state.settled and _has_reported_what_it_began_with(state):
        _settle(turn)
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK))


def _validated(state: State, body: records.Commit, new: range) -> list[records.Committed]:
    """Events of the steps that are new, or Refusal: all or nothing."""
    events: list[records.Committed] = []
    at, fronts = state.lineage, dict[int, int]()
    for step in new:
        flat = body.compositions[step - body.first_step]
        if len(flat) % 5:
            raise Refusal(f"The composition of step {step} has {len(flat)} numbers, not quintuples.")
        ranges: list[int] = []
        for i in range(0, len(flat), 5):
            number, token, epoch, start, length = flat[i : i + 5]
            lease = state.leases.get(number)
            if lease is None or lease.token != token:
                raise Refusal(f"Step {step} names lease {number}, which is not live under that token.")
            front = fronts.get(number, lease.front)
            if lease.epoch != epoch or start != front or length < 1 or start + length > lease.end:
                raise Refusal(
                    f"Step {step} takes [{start}, {start + length}) of epoch {epoch} from lease {number}, "
                    f"which holds [{front}, {lease.end}) of epoch {lease.epoch}."
                )
            fronts[number] = start + length
            ranges += (number, epoch, start, length)
        at = lineage.next_lineage(at, step, ranges)
        plan = body.plans[step - body.first_step]
        events.append(records.Committed(state.generation, step, tuple(ranges), at, plan))
    last = body.first_step + len(body.compositions) - 1
    if last >= state.committed and body.lineage and body.lineage != at:
        raise Refusal(f"After step {last} this model's lineage is {body.lineage.hex()}, the ledger's {at.hex()}.")
    return events


def _skipped(body: records.Commit) -> dict[int, records.StepSkipped]:
    """Steps that were skipped because their gradient was not finite; the members know, nobody else can."""
    for skip in body.skipped:
        if not body.first_step <= skip.step < body.first_step + len(body.compositions):
            raise Refusal(f"Step {skip.step} is said to be skipped, but is not among those that are committed.")
    return {
        skip.step: records.StepSkipped(
            skip.step, tuple(a[:AUTHOR_CHARS_MAX] for a in skip.authors[:AUTHORS_OF_SKIP_MAX])
        )
        for skip in body.skipped
    }


def _has_reported_what_it_began_with(state: State) -> bool:
    """The source's steps are in every member's model: as long as one is not committed, old leases may be in it.

    Found by killing a worker after the broker was away: the source held 109 steps, a commit holds 64.
    """
    assert state.grant is not None
    return state.committed >= (state.grant.source_step or 0)


def _settle(turn: Turn) -> None:
    """A generation has reported what it began with: what older generations still held is not in the model.

    An attempt counts for those samples only against which there is evidence.
    """
    state = turn.state
    turn.emit(records.Settled(state.generation))
    for number in sorted(n for n, lease in state.leases.items() if lease.generation < state.generation):
        lease = state.leases[number]
        epoch, at, end = lease.epoch, lease.front, lease.end
        for low, high in [*evidence.against(state, number), (end, end)]:
            if at < low:
                turn.emit(records.Returned(number, epoch, at, low - at, False, False))
            for start, stop, out in _verdicts(state, epoch, low, high) if low < high else ():
                turn.emit(records.Returned(number, epoch, start, stop - start, True, out))
            at = high


def _verdicts(state: State, epoch: int, start: int, end: int) -> list[tuple[int, int, bool]]:
    """Cut [start, end), which counts, where the verdict changes: (start, end, quarantined)."""
    size, attempts, out = state.spec.shard_size, state.epoch(epoch).attempts, list[tuple[int, int, bool]]()
    suffices = evidence.suffices(state, start, end)
    for shard in state.shards_between(start, end):
        low, high = max(start, shard * size), min(end, (shard + 1) * size)
        spent = suffices and attempts.get(shard, 0) + 1 >= state.spec.max_attempts
        if out and out[-1][2] == spent:
            out[-1] = (out[-1][0], high, spent)
        else:
            out.append((low, high, spent))
    return out


def _checkpoint(turn: Turn, request: records.Request, body: records.Checkpoint) -> None:
    state = turn.state
    if state.lineage_at(body.step) != body.lineage:
        raise Refusal(f"The lineage of step {body.step} is not {body.lineage.hex()} in the ledger's chain.")
    known = any(c.file == body.file for c in state.checkpoints)
    if not known and body.file == INIT_FILE:
        raise Refusal(f"{INIT_FILE!r} is the model before any step.")
    if not known and body.step < state.checkpoints[0].step:
        raise Refusal(f"Step {body.step} is older than every checkpoint that is kept.")
    if not known:
        turn.emit(records.Checkpointed(body.step, body.lineage, body.file, body.digest[:16]))
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK))


def _rollback(turn: Turn, request: records.Request, body: records.Rollback) -> None:
    """An operator's wish; `author` is unique to it, so that the same request never undoes anything twice."""
    state, author = turn.state, body.author[:AUTHOR_CHARS_MAX]
    if not author:
        raise Refusal("A roll-back names its author.")
    if author not in state.authors:
        steps = sorted({0, *(c.step for c in state.checkpoints)})
        step = steps[-1] if body.step < 0 else body.step
        if step not in steps:
            raise Refusal(f"No checkpoint of step {step} is kept: choose one of {', '.join(map(str, steps))}.")
        if state.open:
            close(turn, f"{author} rolls back to step {step}")
        turn.emit(records.RolledBack(step, body.reason[:REASON_CHARS_MAX], author))
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK))


def _readmit(turn: Turn, request: records.Request, body: records.Readmit) -> None:
    state = turn.state
    for number in sorted(state.epochs):
        for start, end in list(state.epochs[number].quarantined):
            turn.emit(records.Readmitted(number, start, end - start))
    turn.answers.append(Answer(request.worker, request.incarnation, request.number, Status.OK))


_DECIDE: dict[type, Callable[[Turn, records.Request, Any], None]] = {
    records.Join: _join,
    records.Regroup: _regroup,
    records.Lease: _lease,
    records.Release: _release,
    records.Commit: _commit,
    records.Checkpoint: _checkpoint,
    records.Heartbeat: _heartbeat,
    records.Leave: _leave,
    records.Exited: _exited,
    records.Readmit: _readmit,
    records.Rollback: _rollback,
    records.Failed: _failed,
}
