"""One request being decided: what comes of it, and the moves that several requests share.

Owns how events become answers: whoever is a member is told of a close and of a grant, whatever brought it about.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from antdt_schemas import records
from antdt_schemas.records import Status

from antdt_streams.ledger.core.callers import Callers
from antdt_streams.ledger.core.groups import REASON_CHARS_MAX, GroupRules, closed, rules_of
from antdt_streams.ledger.core.state import State

AUTHOR_CHARS_MAX = 128


@dataclass(slots=True)
class Answer:
    """To be turned into a Reply once the entry it rests on was read back. number -1: news, nobody asked. grant: the
    newest one, for everybody who reads what this worker reads. file: the final one, if there was one when it was
    decided: a later request of the same cycle may readmit what is missing, and then there is none. loads: what others
    were dealt, and have not begun.
    """

    worker: str
    incarnation: str
    number: int
    status: Status
    reason: str = ""
    leases: bool = False
    warning: str = ""
    grant: bool = False
    file: str = ""
    loads: bool = False


@dataclass(slots=True)
class Turn:
    """One request being decided: events are applied as they are emitted. grant_to: workers that are to hear of the
    newest grant, whose list of members is long: it is published once for all of them.
    """

    state: State
    offset: int
    callers: Callers = field(default_factory=Callers)
    events: list[records.Event] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    grant_to: set[str] = field(default_factory=set)

    @property
    def rules(self) -> GroupRules:
        """What holds for the group of this job."""
        return rules_of(self.state.spec.strategy)

    def emit(self, event: records.Event) -> None:
        """Record an event and apply it."""
        self.state.apply(event)
        self.events.append(event)

    def carry_out(self, events: Iterable[records.Event]) -> None:
        """Emit events, and tell the members what becomes of their generation."""
        for event in events:
            self.emit(event)
            if isinstance(event, records.Closed):
                self.tell_members(Status.CLOSED, event.reason)
            elif isinstance(event, records.Granted):
                members = self.state.members
                self.grant_to.update(members.incarnations[name].worker for name in members.everybody())

    def answer(
        self,
        request: records.Request,
        status: Status,
        reason: str = "",
        *,
        leases: bool = False,
        grant: bool = False,
        loads: bool = False,
    ) -> None:
        """Answer whoever has asked. grant: if it is a member, or attached, it may not have heard of the newest one."""
        who = request.worker, request.incarnation, request.number
        self.answers.append(Answer(*who, status, reason, leases, file=self.state.done or "", loads=loads))
        asker = self.state.members.incarnations.get(request.incarnation) if grant else None
        if asker is not None and (asker.status == "member" or (asker.status == "attached" and self._open)):
            self.grant_to.add(request.worker)

    @property
    def _open(self) -> bool:
        return self.state.members.open

    def tell_members(self, status: Status, reason: str) -> None:
        """News for every member that lives, and whoever is attached."""
        for name in self.state.members.everybody():
            self.tell(name, status, reason)

    def tell(self, incarnation: str, status: Status, reason: str = "") -> None:
        """News for one."""
        worker = self.state.members.incarnations[incarnation].worker
        self.answers.append(Answer(worker, incarnation, -1, status, reason, file=self.state.done or ""))

    def gone(self, incarnation: str, why: str) -> None:
        """What follows from the end of an incarnation, which is recorded."""
        self.carry_out(self.rules.on_loss(self.state, incarnation, why))
        members = self.state.members
        if members.open and members.incarnations[incarnation].loss:
            self.tell(members.group[0], Status.OK)  # it is to refuse this worker


class Refusal(Exception):
    """This request is not carried out."""

    def __init__(self, reason: str, status: Status = Status.REFUSED) -> None:
        super().__init__(reason)
        self.status = status


def refuse(turn: Turn, request: records.Request, reason: str, status: Status = Status.REFUSED) -> None:
    """Record and answer a refusal."""
    kind, generation = type(request.body).__name__, getattr(request.body, "generation", -1)
    reason = reason[:REASON_CHARS_MAX]
    author = request.worker[:64], request.incarnation[:128]
    turn.emit(records.Refused(*author, kind, generation, reason, turn.offset))
    grant = status in (Status.OK, Status.CLOSED)
    turn.answer(request, status, reason, grant=grant)


def lose(turn: Turn, incarnation: str, reason: str, by: str = "") -> None:
    """An incarnation is gone for good; `by`: the one that has taken its place."""
    turn.emit(records.Lost(incarnation, reason[:REASON_CHARS_MAX], by))
    turn.gone(incarnation, f"{incarnation} is lost: {reason}")


def close(turn: Turn, reason: str) -> None:
    """The open generation is over: its members ask for the next one."""
    turn.carry_out((closed(turn.state, reason),))
