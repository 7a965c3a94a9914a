"""How a worker leaves: a real session, and whatever would be sent or come is said by the test."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from antdt.strategies.allreduce import GenerationClosed
from antdt.worker.membership import Membership
from antdt.worker.session import Phase, Session
from antdt_schemas import records
from antdt_schemas.records import Status

from tests.unit.test_session import GRANT, SPEC, Where, reply


class Told:
    """In place of the connection: `wait` lets the next thing happen, once."""

    def __init__(self, session: Session) -> None:
        self.session, self.changed = session, threading.Condition()
        self.happens: list[Callable[[], None]] = []

    def wait(self, met: Callable[[], bool], _: float) -> bool:
        while not met() and self.happens:
            self.happens.pop(0)()
        return met()


class Model:
    """In place of the strategy."""

    step_number, void = 6, False


@pytest.fixture
def leaving() -> Any:
    member = object.__new__(Membership)
    session = Session("w0", "w0.0", SPEC, Where("h", 1))
    session.on_reply(reply(-1, grant=GRANT))
    session.begin([], b"")
    session.committed = 5
    member.client, member.strategy = Told(session), Model()  # type: ignore[assignment]
    member.settings = type("Grace", (), {"grace_s": 30.0})  # type: ignore[assignment]
    member.departed, member.saved, member._told_at_s, member._taken_over = False, True, None, ""
    member.somebody_leaves()
    return member


def test_a_generation_that_closes_before_the_last_step_is_committed_is_left_from_the_next_one(leaving: Any) -> None:
    """Somebody joins just then: the step, and the file of it, would be lost, and done again by whoever has joined."""
    session = leaving.session
    leaving.client.happens = [lambda: session.on_reply(reply(-1, Status.CLOSED, reason="w1 joins"))]
    with pytest.raises(GenerationClosed, match="it closed before step 6 was committed"):
        leaving.say_farewell()
    assert session.phase is Phase.CLOSED
    assert not leaving.departed
    assert not session.leaving, "it asks for the next one at leisure"
    assert not leaving.may_go


def test_whoever_is_committed_leaves_although_the_generation_has_closed(leaving: Any) -> None:
    session = leaving.session

    def commit() -> None:
        session.committed = 6

    leaving.client.happens = [commit, lambda: session.on_reply(reply(-1, Status.CLOSED, reason="w1 left"))]
    session.rank = 1
    leaving.say_farewell()
    assert leaving.departed and leaving.saved


def test_where_there_is_no_time_left_the_work_is_said_to_be_lost(leaving: Any) -> None:
    leaving._told_at_s = 0.0  # long ago
    leaving.client.happens = [lambda: leaving.session.on_reply(reply(-1, Status.CLOSED, reason="w1 joins"))]
    leaving.say_farewell()
    assert leaving.departed and not leaving.saved


def test_whoever_has_written_the_file_of_the_last_step_stays_until_the_ledger_knows_it(leaving: Any) -> None:
    """The other one has left behind this step, and this one is told to go as well, between two generations."""
    leaving._told_at_s = monotonic()
    assert leaving.may_go
    leaving.session.files.newest = records.Checkpoint(1, 6, b"", "step-6.pt")
    assert not leaving.may_go
