"""antdt top: the words, the numbers, and what a small terminal leaves out."""

from __future__ import annotations

import io
from collections import deque
from typing import Any

import pytest
from antdt_streams.cli.top import frame
from antdt_streams.views.control import Step, WorkerView
from antdt_streams.views.glance import row, verdict
from rich.console import Console


def worker(name: str, ms: float, kind: str = "healthy") -> dict[str, Any]:
    return {"worker": name, "class": kind, "own_ms_a_sample": ms, "batch_size": 8, "samples_per_s": 1.0, "own_ms": 9.0,
            "wait_ms": 2.0, "plan": 0}  # fmt: skip


def found(workers: list[dict[str, Any]]) -> dict[str, Any]:
    count = {"total": 100, "committed": 60, "leased": 8, "returned": 5, "quarantined": 2, "left": 25}
    return {
        "job": "j", "watched": False, "offset": 41, "verdict": verdict(workers), "samples": count, "step": 7,
        "generation": 2, "members": len(workers), "done": None, "workers": workers,
        "leader": "me@here:1", "void_entries": 0,
        "decisions": [{"plan": n, "action": "ADJUST_BS", "reason": f"reason {n}"} for n in range(1, 7)],
        "last_entry_s": 2.0,
    }  # fmt: skip


def drawn(workers: list[dict[str, Any]], height: int, *, terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=100, height=height, force_terminal=terminal, color_system=None)
    console.print(frame(found(workers), [5, 8, 3], console))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ([], "No worker has said anything of a step yet."),
        ([worker("w1", 5), worker("w0", 4)], "All 2 workers are as fast as their kind."),
        ([worker("w1", 5, "unknown")] * 2, "How fast the 2 workers are for their kind is not known yet."),
        (
            [worker("w1", 12, "persistent"), worker("w2", 4), worker("w0", 4), worker("w3", 4)],
            "w1 is slow (persistent, 3.0 times the median).",
        ),
        (
            [worker("w1", 12, "persistent"), worker("w3", 9, "transient"), worker("w0", 4), worker("w2", 4)],
            "w1 is slow (persistent, 3.0 times the median); so is w3.",
        ),
        (
            [worker(f"w{n}", 8, "transient") for n in range(3)],
            "w0 is slow (transient, 1.0 times the median); so are 2 others.",
        ),
    ],
)
def test_the_verdict_names_the_slowest(workers: list[dict[str, Any]], said: str) -> None:
    assert verdict(workers) == said


def test_a_row_is_of_the_newest_steps_and_of_nothing_where_there_are_none() -> None:
    steps = [Step(4, 10, 0.01, 0.03, 0.001, 0.009), Step(5, 12, 0.02, 0.05, 0.001, 0.005, offset=7)]
    view = WorkerView(12, 3, "transient", deque(steps))
    told = row("w1", view)
    assert (told["own_ms"], told["own_ms_a_sample"], told["wait_ms"], told["samples_per_s"]) == (55.0, 5.0, 5.0, 200.0)
    assert (told["step"], told["steps_at"]) == (5, 7)
    assert row("w1", WorkerView())["own_ms_a_sample"] == 0.0
    assert row("w1", WorkerView(measured_s=0.004))["own_ms_a_sample"] == 4.0  # the Monitor's, where there is no step


def test_a_terminal_shows_the_slowest_that_it_has_lines_for_and_says_how_many_it_hides() -> None:
    workers = [worker(f"w{n}", 50 - n) for n in range(40)]
    lines = drawn(workers, 24, terminal=True)
    assert len(lines) <= 24
    assert [line.split()[0] for line in lines if line.startswith("w")] == ["worker", *(f"w{n}" for n in range(11))]
    assert "and 29 more, faster ones" in "\n".join(lines)
    assert "60 of 100 samples committed (60.0 %); 8 leased, 5 returned, 2 quarantined, 25 left" in lines[2]
    assert lines[-1].startswith("log@41, 2 s ago; in office: me@here:1")
    assert [line.strip() for line in lines if line.startswith("plan")] == [f"plan {n}: reason {n}" for n in range(3, 7)]
    whole = drawn(workers, 24, terminal=False)
    assert sum(line.startswith("w") for line in whole) == 41
