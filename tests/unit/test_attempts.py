"""Generations that do not form are said, paused for, and bounded."""

from __future__ import annotations

import pytest
from antdt.worker.attempts import Attempts
from antdt_schemas.errors import Unavailable

WHAT = "Generation 7 did not form: the store of w0 at 10.0.0.2:4 could not be reached (refused)."
HOSTS = ["10.0.0.2", "10.0.0.3"]


def test_it_is_said_at_once_and_tried_ever_later_and_given_up() -> None:
    attempts, now_s, said, pauses = Attempts(120.0), 100.0, list[str](), list[float]()

    def try_on() -> None:
        nonlocal now_s
        while now_s < 1000.0:
            sentence, pause_s = attempts.failed(now_s, WHAT, HOSTS)
            said.append(sentence)
            pauses.append(pause_s)
            now_s += pause_s

    with pytest.raises(Unavailable, match=r"w0 at 10\.0\.0\.2:4 .* tried \d+ times in 12\d s\. .*ANTDT_ADVERTISE"):
        try_on()
    assert WHAT in said[0]
    assert "for 120 s at most" in said[0]
    assert pauses == sorted(pauses)
    assert len(pauses) < 40, "each is a generation in the log"


def test_one_that_stands_forgets_them() -> None:
    attempts = Attempts(10.0)
    attempts.failed(0.0, WHAT, HOSTS)
    attempts.stands()
    assert "Tried 1 times in 0 s" in attempts.failed(1000.0, WHAT, HOSTS)[0]


def test_a_loopback_address_among_others_is_named_as_the_cause() -> None:
    said, _ = Attempts(10.0).failed(0.0, WHAT, ["127.0.0.1", "10.0.0.3"])
    assert "advertises a loopback address" in said
    said, _ = Attempts(10.0).failed(0.0, WHAT, ["127.0.0.1", "::1"])
    assert "loopback" not in said, "all on one machine"


def test_what_others_ask_for_is_said_when_it_goes_on() -> None:
    attempts = Attempts(10.0)
    assert [bool(attempts.closed(float(s), "w1 asks for a new one.")) for s in range(4)] == [False, False, True, True]
