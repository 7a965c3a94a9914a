"""Who may ask what: rule 4.

Owns which incarnation is heard, and what the others are told. Must not know what is asked for.
"""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.records import Status

from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import Refusal, Turn


def member(turn: Turn, request: records.Request) -> Incarnation:
    """Who asks, or Refusal: it is not known, or gone."""
    who = turn.state.members.incarnations.get(request.incarnation)
    if who is None or who.worker != request.worker:
        raise Refusal("This incarnation is not known: join first.", Status.REJOIN)
    if who.gone:
        raise gone(turn.state, who, request)
    return who


def open_member(turn: Turn, request: records.Request, generation: int) -> None:
    """Refusal unless whoever asks is a member of the open generation, or attached, and asks in it."""
    members, who = turn.state.members, member(turn, request)
    takes_part = who.status in ("member", "attached")
    if generation != members.generation or not members.open or not takes_part:
        # A member of the open generation that asks in an older one has not heard of its grant: not closed for it.
        status = Status.OK if members.open and takes_part else Status.CLOSED
        raise Refusal(f"Generation {generation} is closed; the newest is {members.generation}.", status)


def gone(state: State, who: Incarnation, request: records.Request) -> Refusal:
    """A displaced one never comes back: whoever did would displace in its turn."""
    if who.status == "displaced":
        return Refusal(f"{_other(state, request)} has taken the place of {request.incarnation}.", Status.DISPLACED)
    return Refusal(f"This incarnation is {who.status}: join as a new one, without its model.", Status.LOST)


def _other(state: State, request: records.Request) -> str:
    """Who runs this worker now, or did last."""
    known = state.members.incarnations
    name = [n for n, i in known.items() if i.worker == request.worker and n != request.incarnation][-1]
    return named(name, known[name])


def named(name: str, who: Incarnation) -> str:
    """An incarnation, and who started it where."""
    return f"{name} of {who.launcher} on {who.node}" if who.launcher else f"{name} on {who.node}"
