"""What `antdt status` says of services that are there, behind, or gone."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import pytest
from antdt_streams.ledger.requests import sign_of_life
from antdt_streams.views import liveness
from antdt_streams.views.liveness import Found, ledger_said, processor_said


def test_a_ledger_in_words() -> None:
    assert ledger_said("j", answers=True, waiting=0, last_entry_s=3600.0, at_ms=1) == "answers"
    assert ledger_said("j", answers=True, waiting=7, last_entry_s=0.1, at_ms=1) == "answers, 7 requests wait"
    gone = ledger_said("j", answers=False, waiting=118, last_entry_s=62.4, at_ms=1)
    assert gone.startswith("IS NOT THERE: it has written nothing for 62 s, and 118 requests wait. Start one with")
    idle = ledger_said("j", answers=False, waiting=0, last_entry_s=9.0, at_ms=None)
    assert idle.startswith("is not there (last sign of life: none); nobody asks at the moment.")


def test_what_scripts_read_of_a_service_has_these_names() -> None:
    assert list(asdict(Found(True, 0, ""))) == [
        "answers", "behind", "said", "heard_s", "last_entry_s", "owner", "state", "instances",
    ]  # fmt: skip
    first, second = (json.loads(sign_of_life("o", at)) for at in (1.0, 2.0))
    assert first == {"owner": "o", "at_ms": 1000}
    assert first != second


def test_a_processor_in_words() -> None:
    assert processor_said("j", "STABLE", 1, 0) == "is there, nothing to do"
    assert processor_said("j", "STABLE", 2, 1500) == "is there, 2 instances, 1,500 records behind"
    assert "its group is preparing rebalancing" in processor_said("j", "PREPARING_REBALANCING", 1, 0)
    assert processor_said("j", "EMPTY", 0, 12).startswith("IS NOT THERE, 12 records behind.")


@pytest.mark.parametrize("clock_off_s", [0.0, -3600.0, 3600.0])
@pytest.mark.parametrize("lives", [True, False])
def test_a_sign_of_life_is_one_whatever_the_clocks_say(
    monkeypatch: pytest.MonkeyPatch, clock_off_s: float, lives: bool
) -> None:
    """A ledger that lives gives another sign each second; what a dead one has left stays as it was."""
    monkeypatch.setattr(liveness, "LOOK_AGAIN_S", 0.3)
    left = {"owner": "o", "at_ms": int((time.time() - 10.0 + clock_off_s) * 1000)}

    def again() -> dict[str, Any]:
        return {**left, "at_ms": left["at_ms"] + 1000} if lives else left

    assert liveness._heard_s(left, again) == (0.0 if lives else None)
    assert liveness._heard_s({}, again) is None
    fresh = {"owner": "o", "at_ms": int((time.time() - 1.0) * 1000)}
    assert liveness._heard_s(fresh, lambda: fresh) == pytest.approx(1.0, abs=0.5)
    assert liveness._heard_s(fresh, lambda: fresh, sure=True) is None, "it has just ended, and requests wait"
