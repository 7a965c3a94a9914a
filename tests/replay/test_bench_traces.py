"""The benchmark over traces, on small imagined ones: it reads, compares, and says what differs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.traces import Track, compare, load, main


def write(path: Path, rows: list[list[float]]) -> None:
    lines = [",worker,gpu,time,batch_time_norm"]
    lines += [
        f"{len(row) * i + w},{w},50,{10 * i + 1},{x}" for i, row in enumerate(rows) for w, x in enumerate(row) if x
    ]
    path.write_text("\n".join(lines) + "\n")


def trace(slow: float, steps: int = 80, workers: int = 10) -> list[list[float]]:
    seeded = random.Random(3)
    return [
        [100.0 * seeded.lognormvariate(0.0, 0.03) * (slow if w == 2 else 1.0) for w in range(workers)]
        for _ in range(steps)
    ]


def test_a_missing_value_repeats_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", [[1.0, 2.0], [3.0, 0.0], [5.0, 6.0]])
    assert load(tmp_path / "t.csv") == [[1.0, 2.0], [3.0, 2.0], [5.0, 6.0]]


def test_splits_come_in_their_order() -> None:
    law = compare(0, trace(3.0))
    assert 1.0 <= law.best_static < law.recommended < law.even
    assert 1 <= law.plans <= 5


def test_nothing_beats_the_clairvoyant() -> None:
    track = Track(trace(1.0))
    assert track.static(track.even) >= 1.0
    assert track.recommended()[0] >= 1.0


def test_other_traces_are_said_to_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for job in (1, 4):
        write(tmp_path / f"job_{job}_norm.csv", trace(1.0))
    out = tmp_path / "out.json"
    assert main(["--data", str(tmp_path), "--json", str(out)]) == 1
    found = json.loads(out.read_text())
    assert {law["job"] for law in found["adjust_batch_size"]} == {1, 4}
    assert any(not outcome["ok"] for outcome in found["detector"])
    assert "DIFFERS" in capsys.readouterr().out
