"""The checker that an auditor runs without antdt: it agrees with the audit, and shares nothing with it."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from antdt_schemas.errors import UsageError
from antdt_streams.proof import checker
from antdt_streams.proof.audit import audit

from tests.helpers.logs import export, served, simulated
from tools import verify_standalone

SHARED = (
    "exactly_once", "job", "run_id", "entries", "void_entries", "head_hash", "steps", "rolled_back_steps",
    "skipped_steps", "lineage", "file", "committed", "missing", "repeated", "quarantined",
)  # fmt: skip
SCRIPT = Path(verify_standalone.__file__)


@pytest.mark.parametrize("steps", [False, True])
def test_it_agrees_with_the_audit_on_simulated_jobs(tmp_path: Path, steps: bool) -> None:
    """Also on what a job looks like in its middle: missing samples, live leases, models not yet committed."""
    seen: set[str] = set()
    for seed in range(60):
        log = simulated(seed, steps=steps)
        for end in (len(log), len(log) // 2, len(log) // 3):
            mine, theirs = both(tmp_path, log[:end])
            assert {k: mine.get(k) for k in SHARED} == {k: theirs.get(k) for k in SHARED}, (seed, end)
            seen |= {k for k in SHARED if theirs.get(k)}
    assert seen >= {"exactly_once", "void_entries", "rolled_back_steps", "skipped_steps", "missing", "quarantined"}, (
        seen
    )


@pytest.mark.parametrize("steps", [False, True])
def test_it_agrees_with_the_audit_on_where_a_log_breaks(tmp_path: Path, steps: bool) -> None:
    rng = random.Random(5)
    for seed in range(60):
        log = list(simulated(seed, steps=steps))
        at = rng.randrange(len(log) - 1)
        bad = bytearray(log[at])
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        log[at] = bytes(bad)
        mine, theirs = both(tmp_path, log, anchored=False)
        if theirs["broken"] is None:
            # Nobody has named it: an entry at the end that no other follows.
            assert mine["broken"] is None and theirs["last_proven"] < at, (seed, at)
            continue
        assert mine["broken"] is not None, (seed, at, theirs["broken"])
        assert mine["last_proven"] < at <= mine["broken"]["offset"], (seed, at, mine["broken"])
        # The rules of the state find some things where they stand that the chain finds one entry later.
        assert theirs["broken"]["offset"] <= mine["broken"]["offset"], (seed, at)
        assert not mine["exactly_once"] and not theirs["exactly_once"]


def test_it_agrees_with_the_audit_where_the_model_lies_on_servers(tmp_path: Path) -> None:
    seen: set[str] = set()
    for seed in range(30):
        log = served(seed)
        for end in (len(log), len(log) // 2):
            mine, theirs = both(tmp_path, log[:end])
            assert {k: mine.get(k) for k in SHARED} == {k: theirs.get(k) for k in SHARED}, (seed, end)
            seen |= {k for k in SHARED if theirs.get(k)}
    assert seen >= {"exactly_once", "void_entries", "rolled_back_steps", "missing", "quarantined"}, seen


def both(tmp_path: Path, log: list[bytes] | tuple[bytes, ...], anchored: bool = True) -> tuple[dict, dict]:  # type: ignore[type-arg]
    path = tmp_path / "log.avro"
    header = export(path, log)
    anchors = {header.entries - 1: header.head_hash} if anchored else {}
    return verify_standalone.verify(str(path)), audit(enumerate(log), anchors)


def test_the_script_needs_python_alone(tmp_path: Path) -> None:
    """Run as an auditor would: isolated from every installed package."""
    path = tmp_path / "log.avro"
    header = export(path, simulated(3))
    for arguments, status in (
        ([path], 0),
        ([path, "--anchor", f"{header.entries - 1}:{header.head_hash.hex()}"], 0),
        ([path, "--anchor", f"3:{header.head_hash.hex()}"], 42),
        ([path, "--anchor", f"{header.entries}:{header.head_hash.hex()}"], 42),
        ([SCRIPT], 2),
        ([], 2),
    ):
        command = [sys.executable, "-I", "-S", str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, (arguments, done.stderr, done.stdout)
        assert "Traceback" not in done.stderr
        if status == 0:
            assert json.loads(done.stdout)["exactly_once"] is True
    data = path.read_bytes()
    path.write_bytes(data[:-50])
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 42 and json.loads(done.stdout)["broken"]["offset"] == 0


def test_an_export_lays_it_beside_the_log_and_never_over_another_file(tmp_path: Path) -> None:
    log, beside = tmp_path / "log.avro", tmp_path / SCRIPT.name
    for _ in range(2):
        assert checker.lay_beside(log) == beside
        assert beside.read_bytes() == SCRIPT.read_bytes()
    beside.write_text("print('all is well')")
    with pytest.raises(UsageError, match="is not the checker of this version: move it, or --no-checker"):
        checker.check_place(log)
    assert beside.read_text() == "print('all is well')"


def test_it_shares_no_code() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("change", ["twice", "never"])
def test_it_finds_a_sample_that_is_in_the_model_twice_or_never(tmp_path: Path, change: str) -> None:
    """A forger who owns the broker and chains everything anew cannot make the numbers add up."""
    books = verify_standalone.Log({})
    books.genesis = {"spec": {"epochs": 2, "samples": 10}}
    ranges = [(0, 0, 6), (0, 6, 10), (1, 0, 10)]
    ranges[1] = (0, 5, 10) if change == "twice" else (0, 7, 10)
    for triple in ranges:
        books.ranges.extend(triple)
    found: dict[str, list[list[int]] | int] = {"committed": 0, "missing": [], "repeated": [], "quarantined": []}
    books.balance(found)
    assert found["repeated"] == ([[0, 5, 6]] if change == "twice" else [])
    assert found["missing"] == ([] if change == "twice" else [[0, 6, 7]])
