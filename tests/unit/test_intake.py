"""Which requests share an entry of the log."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from antdt_schemas import codec, records
from antdt_schemas.hearing import Recreated
from antdt_streams.ledger import intake
from antdt_streams.ledger.core.leader import Incoming
from antdt_streams.ledger.options import LedgerOptions

OPTIONS = LedgerOptions(signs_s=0.25, idle_s=0.05, requests_per_cycle_max=1_000)
SIGN, LEAVE = records.Heartbeat(1, 0), records.Leave(1)


class Arriving:
    """A topic and its clock: what arrives when, in seconds; reading waits for the first one."""

    topic_id = ""

    def __init__(self, *what: tuple[float, Any]) -> None:
        self.what, self.now_s, self.offset = deque(what), 0.0, 0

    def take(self, wait_s: float, limit: int) -> list[Incoming]:
        due_s = self.now_s + wait_s
        if self.what and self.what[0][0] <= due_s:
            self.now_s = max(self.now_s, self.what[0][0])
        else:
            self.now_s = due_s
        out = list[Incoming]()
        while self.what and self.what[0][0] <= self.now_s and len(out) < limit:
            _, body = self.what.popleft()
            if isinstance(body, Exception):
                raise body
            payload = body if isinstance(body, bytes) else codec.encode(records.Request("w0", "w0.0", 1, body, b""))
            out.append(Incoming(self.offset, 0, payload))
            self.offset += 1
        return out

    def entry(self) -> tuple[int, float]:
        """How many requests the next entry has, and when it is made."""
        taking = intake.take(self, lambda: self.now_s, OPTIONS, "gathering")  # type: ignore[arg-type]
        while True:
            try:
                assert next(taking) == "gathering"
            except StopIteration as end:
                return len(end.value), round(self.now_s, 3)


def test_signs_of_life_wait_for_others_of_their_kind() -> None:
    topic = Arriving((0.0, SIGN), (0.1, SIGN), (0.2, SIGN), (0.3, SIGN))
    assert topic.entry() == (3, 0.25)
    assert topic.entry() == (1, 0.55)


def test_whatever_else_comes_takes_them_along_at_once() -> None:
    topic = Arriving((0.0, SIGN), (0.1, SIGN), (0.12, LEAVE), (0.13, SIGN))
    assert topic.entry() == (3, 0.12)
    assert Arriving((0.02, LEAVE), (0.03, SIGN)).entry() == (1, 0.02)
    assert Arriving((0.02, b"no request"), (0.03, SIGN)).entry() == (1, 0.02), "it is to be refused"


def test_many_signs_are_worth_an_entry() -> None:
    topic = Arriving(*[(0.01, SIGN)] * (intake.SIGNS_MAX + 1), (0.02, SIGN))
    assert topic.entry() == (intake.SIGNS_MAX + 1, 0.01)


def test_where_nothing_comes_nothing_is_waited_for() -> None:
    assert Arriving().entry() == (0, OPTIONS.idle_s)


def test_a_topic_that_was_created_again_is_said_while_something_is_held_back() -> None:
    topic = Arriving((0.0, SIGN), (0.1, Recreated("requests", "a", "b")))
    with pytest.raises(Recreated):
        topic.entry()
