"""When people are told that something is waited for."""

from __future__ import annotations

from antdt_schemas.waiting import Waiting


def test_it_is_said_soon_then_ever_more_seldom_and_when_it_is_over() -> None:
    waiting = Waiting(first_s=5.0, every_max_s=60.0)
    said = [now for now in range(300) if waiting.is_due(float(now))]
    assert said == [5, 10, 20, 40, 80, 140, 200, 260]
    assert waiting.over(300.0) == 300.0
    assert waiting.over(301.0) is None


def test_what_comes_in_time_is_not_spoken_of() -> None:
    waiting = Waiting(first_s=5.0)
    assert not waiting.is_due(100.0)
    assert not waiting.is_due(104.9)
    assert waiting.over(104.9) is None
    assert not waiting.is_due(106.0), "it is waited for anew"
    assert waiting.is_due(107.0, since_s=0.0) is False
    assert waiting.since_s == 106.0


def test_since_when_may_be_known_better() -> None:
    waiting = Waiting(first_s=5.0)
    assert waiting.is_due(100.0, since_s=94.0)
    assert waiting.over(101.0) == 7.0
