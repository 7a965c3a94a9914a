"""Deciding who works: joins, regroups, good-byes and signs of life.

Rule 4: while an incarnation of a worker may live, another one takes its place only where that is its own launcher's
doing, its death is proven, or an operator wants it (`callers`). Must not know what a group does about who comes and
goes (`groups`).
"""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.records import Status

from antdt_streams.ledger.core import changing, evidence
from antdt_streams.ledger.core.callers import Room
from antdt_streams.ledger.core.fences import gone, member, named
from antdt_streams.ledger.core.groups import REASON_CHARS_MAX
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.ledger.core.turn import Answer, Refusal, Turn, close, lose


def join(turn: Turn, request: records.Request, body: records.Join) -> None:
    """A newcomer, unless somebody else is this worker."""
    state = turn.state
    other = changing.other_job(state, body.spec)
    other = other or turn.rules.may_join(state, request.worker, body.role) or ""
    if other:
        raise Refusal(other)
    known = state.members.incarnations.get(request.incarnation)
    if known is not None:
        if known.gone:
            raise gone(state, known, request)
        _answer_member(turn, request, known)
        return
    if not changing.may_state(turn, request, body):
        return
    for name in [n for n, i in state.members.incarnations.items() if i.worker == request.worker and not i.gone]:
        if not _makes_room(turn, request, body, name):
            return
    turn.callers.joined(request.incarnation, request.worker)
    at = body.role, body.host, body.port, body.node, body.hardware, body.restarts
    by = body.launch, body.launcher, body.place
    turn.emit(records.Joined(request.incarnation, request.worker, *at, *by))
    changing.state_another(turn, request, body)
    turn.carry_out(turn.rules.on_join(state, request.incarnation))
    turn.answer(request, Status.OK, grant=True)


def _makes_room(turn: Turn, request: records.Request, body: records.Join, occupant: str) -> bool:
    """Whether `occupant` has made room for a newcomer of the same worker; if not, that one is told to wait."""
    who = turn.state.members.incarnations[occupant]
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
            f"{request.worker} is run by {named(occupant, who)}, which is alive. "
            "End it first, or take over with `antdt launch --take-over`.",
            Status.OCCUPIED,
        )
    reason = f"{request.worker} is run by {named(occupant, who)}: waiting for a sign of life, or for its end."
    if body.take_over:
        reason = f"{named(occupant, who)} is asked to leave: waiting until it has."
        mine = body.launcher or request.incarnation
        told = f"{mine} on {body.node} takes over {request.worker}."
        turn.answers.append(Answer(request.worker, occupant, -1, Status.LEAVE, told))
    turn.answer(request, Status.WAIT, reason)
    return False


def _answer_member(turn: Turn, request: records.Request, who: Incarnation) -> None:
    """Where it stands: its grant, also that of a generation which closed before it had heard of it; and what is waited
    for where there is none.
    """
    over = who.status in ("member", "attached") and not turn.state.members.open
    turn.answer(request, Status.CLOSED if over else Status.OK, _awaited(turn, who), grant=True)


def _awaited(turn: Turn, who: Incarnation) -> str:
    """Why there is no next generation yet, for those that wait for it; and who has come for it in vain."""
    if turn.state.members.open or who.status == "member":
        return ""
    why = [turn.rules.grant(turn.state)[1]]
    if turn.callers.refused:  # mostly nobody was, and thousands may ask
        alive = {one.worker for one in turn.state.members.incarnations.values() if not one.gone}
        why.append(turn.callers.newest_refusal(alive))
    return "; ".join(filter(None, why))[:REASON_CHARS_MAX]


def regroup(turn: Turn, request: records.Request, body: records.Regroup) -> None:
    """A member asks for the next generation, and claims what its model holds."""
    members, line, who = turn.state.members, turn.state.line, member(turn, request)
    if body.generation != members.generation or who.status in ("waiting", "attached"):
        # An old one: what it asked for has been granted, or is on its way. Who is attached need not ask.
        _answer_member(turn, request, who)
        return
    if members.open:
        close(turn, f"{request.worker} asks for a new one")
    if who.status == "member":
        claim = body.claim
        if claim is not None and claim <= line.committed and body.lineage != line.lineage_at(claim):
            claim = None  # its model is not what was committed
        if members.restoring:
            claim = None  # its model contains what was undone
        turn.emit(records.Ready(request.incarnation, claim, body.host, body.port))
        who = members.incarnations[request.incarnation]
    turn.answer(request, Status.OK, _awaited(turn, who), grant=True)


def leave(turn: Turn, request: records.Request, body: records.Leave) -> None:
    """A member goes on purpose."""
    member(turn, request)
    turn.emit(records.Left(request.incarnation))
    turn.gone(request.incarnation, f"{request.worker} left")
    turn.answer(request, Status.OK)


def exited(turn: Turn, request: records.Request, body: records.Exited) -> None:
    """A launcher reports the end of a process: a loss, and maybe evidence against samples."""
    who = turn.state.members.incarnations.get(request.incarnation)
    if who is not None and who.worker == request.worker and not who.gone:
        reason = f"exit status {body.exit_code} {body.reason}".strip()
        lose(turn, request.incarnation, reason)
        if evidence.died_of_samples(turn.state, request.incarnation, body.exit_code):
            for i in range(0, len(body.at) // 3 * 3, 3):
                key = body.key if i == 0 else ""
                evidence.blame(turn, request.incarnation, body.at[i : i + 3], key, reason, body.step)


def failed(turn: Turn, request: records.Request, body: records.Failed) -> None:
    """A member reports samples that made it fail."""
    member(turn, request)
    where = body.epoch, body.start, body.length, *body.more
    for i in range(0, len(where) // 3 * 3, 3):
        key = body.key if i == 0 else ""
        evidence.blame(turn, request.incarnation, where[i : i + 3], key, body.reason, body.step)
    turn.answer(request, Status.OK)


def heartbeat(turn: Turn, request: records.Request, body: records.Heartbeat) -> None:
    """A sign of life: whoever has missed something is told where it stands."""
    who = turn.state.members.incarnations.get(request.incarnation)
    if who is None or who.gone:
        refusal = gone(turn.state, who, request) if who is not None else Refusal("", Status.REJOIN)
        turn.answer(request, refusal.status, str(refusal))
    elif body.generation != turn.state.members.generation or not turn.state.members.open:
        _answer_member(turn, request, who)
    else:
        turn.answer(request, Status.OK)
