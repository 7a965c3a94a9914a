"""antdt jobs: what state a job is in, by what its log and its services say."""

from __future__ import annotations

from typing import Any

import pytest
from antdt_streams.cli.jobs import age
from antdt_streams.views.jobs import running_of, state_of

TRAINS: dict[str, Any] = {
    "file": None, "stopped": "", "run_id": "r", "samples_total": 9, "open": True, "members": ["w0"],
    "next_generation": "", "watched": False,
}  # fmt: skip
ALL = ("ledger", "monitor", "controller")


@pytest.mark.parametrize(
    ("found", "running", "said"),
    [
        ({}, ALL, "trains"),
        ({}, None, "trains"),
        ({}, ("monitor",), "stands: no ledger"),
        ({"open": False, "next_generation": "w1 is awaited"}, ALL, "waits: w1 is awaited"),
        ({"open": False}, ALL, "waits: for workers"),
        ({"members": []}, ALL, "waits: for workers"),
        ({"file": "f"}, (), "done"),
        ({"file": "f", "stopped": "was stopped at step 4"}, (), "stopped"),
        ({"watched": True, "samples_total": 0}, ALL, "watched: 1 workers"),
        ({"watched": True, "samples_total": 0, "members": []}, ALL, "watched: nobody is there"),
        ({"watched": True, "samples_total": 0}, (), "watched, no ledger"),
        ({"run_id": None, "samples_total": 0}, ALL, "not begun"),
        ({"run_id": None, "samples_total": 0}, (), "not begun, no ledger"),
    ],
)
def test_the_state_of_a_job(found: dict[str, Any], running: tuple[str, ...] | None, said: str) -> None:
    assert state_of({**TRAINS, **found}, running) == said


def test_services_of_which_nothing_can_be_told_are_not_taken_for_absent() -> None:
    there, gone, hidden = ({"answers": answers} for answers in (True, False, None))
    assert running_of({"ledger": there, "monitor": hidden}) == ("ledger",)
    assert running_of({"ledger": gone, "monitor": gone}) == ()
    assert running_of({"ledger": gone, "monitor": hidden}) is None


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (2e5, "2 d")])
def test_an_age_is_told_in_one_unit(seconds: float, said: str) -> None:
    assert age(seconds) == said
