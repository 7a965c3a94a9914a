"""What `antdt chaos` says of a run that does not end."""

from __future__ import annotations

from typing import Any

from antdt_streams.chaos.waits import sentences


def at(phase: str, phase_s: float, detail: str = "") -> dict[str, Any]:
    return {"phase": phase, "phase_s": phase_s, "allowed_s": 0.0, "detail": detail, "age_s": 1.0}


def found(**more: Any) -> dict[str, Any]:
    services = {"ledger": {"said": "IS NOT THERE: it has written nothing for 90 s, and 3,685 requests wait."}}
    return {"services": services, "open": True, "generation": 4, "members": ["w0", "w1", "w2"], "standings": {}} | more


def test_who_waits_for_whom_and_since_when_is_said() -> None:
    standings = {"w0.0.a": at("reducing", 70.0), "w1.2.b": at("loading", 71.0, "position 7 of epoch 0")}
    assert sentences(found(standings=standings)) == [
        "ledger IS NOT THERE: it has written nothing for 90 s, and 3,685 requests wait.",
        "w0.0.a is reducing since 71 s, and waits for the gradients of w1.2.b, w2",
        "w1.2.b is loading (position 7 of epoch 0) since 72 s",
        "w2 says nothing",
    ]


def test_where_everybody_has_asked_they_wait_for_the_ledger() -> None:
    standings = {f"w{n}.0.a": at("forming", 30.0) for n in range(3)}
    said = sentences(found(standings=standings, open=False))
    assert said[1] == "ledger waits for members of generation 4, which is closed, to ask for the next"
    assert said[2:] == [
        f"w{n}.0.a is forming since 31 s, and waits for the next generation of the ledger" for n in range(3)
    ]
