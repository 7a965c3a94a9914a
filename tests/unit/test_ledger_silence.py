"""When a standby takes office: in time, and never beside a leader that answers."""

from __future__ import annotations

import random

import pytest
from antdt_streams.ledger.silence import Silence

PATIENCE_S = 1.0


def takes_office(events: list[tuple[float, str]], until_s: float) -> float | None:
    """When a standby takes office that looks every 20 ms; events: (time, "ask" or "answer"), in order."""
    silence, asked, answered, now = Silence(PATIENCE_S), 0, 0, 0.0
    silence.begin(0.0)
    queue = list(events)
    while now < until_s:
        now += 0.02
        wrote = False
        while queue and queue[0][0] <= now:
            _, what = queue.pop(0)
            asked += what == "ask"
            if what == "answer":
                answered, wrote = asked, True
        if wrote:
            silence.wrote(now, leader=False)
        elif silence.is_look_due(now) and silence.looked(now, answered, asked):
            return now
    return None


def test_an_idle_leader_is_left_alone_for_ever() -> None:
    assert takes_office([(0.0, "ask"), (0.1, "answer")], 1000.0) is None


@pytest.mark.parametrize("idle_s", [0.0, 0.3, 1.0, 100.0])
def test_a_dead_leader_is_followed_once_somebody_asks(idle_s: float) -> None:
    at = takes_office([(0.0, "ask"), (0.05, "answer"), (0.05 + idle_s, "ask")], 200.0)
    assert at is not None
    waited_s = at - 0.05 - idle_s
    assert PATIENCE_S * 3 / 4 - 0.03 <= waited_s <= PATIENCE_S * 5 / 4 + 0.05


@pytest.mark.parametrize("seed", range(20))
def test_a_leader_that_answers_within_half_the_patience_keeps_its_office(seed: int) -> None:
    draw, now, events = random.Random(seed), 0.0, []
    for _ in range(100):
        now += draw.choice([0.01, 0.2, 0.9, 3.0])
        events.append((now, "ask"))
        now += draw.uniform(0.0, PATIENCE_S / 2)
        events.append((now, "answer"))
    assert takes_office(events, now + 10.0) is None


def test_under_load_a_dead_leader_is_followed_within_the_patience() -> None:
    events = [(i / 20, "ask" if i % 2 else "answer") for i in range(100)] + [(5.0 + i / 20, "ask") for i in range(100)]
    at = takes_office(events, 20.0)
    assert at is not None
    assert at - 4.9 <= PATIENCE_S + 0.3


def test_what_a_leader_found_no_request_in_is_not_waited_for_again() -> None:
    """The marker of a transaction lies at the end of the requests for good."""
    silence = Silence(PATIENCE_S)
    silence.begin(0.0)
    assert not silence.looked(0.5, 7, 8)
    assert silence.looked(1.1, 7, 8)
    silence.wrote(1.2, leader=True)  # our own entry, or that of another standby
    silence.begin(2.0)
    assert not any(silence.looked(2.0 + i, 7, 8) for i in range(10))
    assert not silence.looked(12.0, 7, 9), "whoever is not answered asks again"
    assert silence.looked(13.1, 7, 9)


def test_who_slept_between_two_looks_has_not_seen_anybody_wait() -> None:
    silence = Silence(PATIENCE_S)
    silence.begin(0.0)
    assert not silence.looked(100.0, 7, 8)
    assert not silence.looked(100.25, 7, 8)
    assert silence.looked(100.6, 7, 8)


def test_a_broker_that_is_away_makes_nobody_leader() -> None:
    silence = Silence(PATIENCE_S)
    silence.begin(0.0)
    assert not silence.looked(0.5, 7, 8)
    for i in range(1, 20):
        silence.in_vain(float(i))
        assert not silence.looked(i + 0.3, 7, 8)


def test_an_end_below_the_position_is_another_topic() -> None:
    silence = Silence(PATIENCE_S)
    silence.begin(0.0)
    assert silence.waits(7, 3)
    assert not silence.looked(1.0, 7, 3)
    assert silence.looked(1.5, 7, 3)
