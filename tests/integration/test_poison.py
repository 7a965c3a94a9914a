"""Samples that no worker survives, and workers that live and get nowhere, as real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.kafka.ask import ask
from antdt_streams.views.job import status_of

from tests.helpers.job_processes import job_processes

pytestmark = pytest.mark.kafka
SCRIPT = ("-m", "tests.helpers.poisoned")


def poison(folder: Path, **samples: str) -> str:
    """A file of what which samples do."""
    file = folder / "poison.json"
    file.write_text(json.dumps({name.removeprefix("n"): what for name, what in samples.items()}))
    return str(file)


def test_only_what_no_worker_survives_is_missing_and_when_it_is_mended_nothing_is(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        options = ("--epochs", "3", "--poison", poison(tmp_path, n17="raise", n211="kill"))
        first = run.launch(2, *options, script=SCRIPT, restarts=3)
        run.ended(first, ExitCode.INCOMPLETE)
        said = run.output.read_text()
        state = run.now()
        assert state.shards.quarantined_total == 6, state.shards.faults
        assert sorted(fault.key for fault in state.shards.faults.values()) == ["img/17.png"] * 3 + ["img/211.png"] * 3
        assert {e.epoch for e in run.events() if isinstance(e, records.Blamed)} == {0}, "nobody fails at them again"
        assert "6 samples are in quarantine: " in said and f"`antdt readmit {job}`" in said
        assert "img/17.png is truncated" in said and "ended by SIGKILL" in said
        poison(tmp_path)
        assert ask(connection, job, lambda _: records.Readmit(), None).status is records.Status.OK
        run.ended(run.launch(2, *options, script=SCRIPT))
        report = run.judged()
        ends = [e for e in run.events() if isinstance(e, records.Done)]
    assert report["exactly_once"], report["verdict"]
    assert (report["committed"], len(ends)) == (1200, 2)


@pytest.mark.dear
def test_who_is_stuck_and_lets_no_thread_of_it_speak_is_found_ended_and_started_again(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    """It hangs in C code that holds the GIL: not taken for dead, and the one that waits is never the one to blame."""
    with job_processes(connection, job, tmp_path, patience_ms=4_000, stuck_ms=5_000) as run:
        launcher = run.launch(2, "--poison", poison(tmp_path, n211="gil once"), script=SCRIPT)
        phases = set[str]()

        def lost() -> bool:
            standings = status_of(connection, job)["standings"].values()
            phases.update(f"{said['phase']} {said['detail']}" for said in standings)
            return any(isinstance(e, records.Lost) for e in run.events())

        run.until(lost, "nobody was lost")
        run.ended(launcher)
        report = run.judged()
        reasons = [e.reason for e in run.events() if isinstance(e, records.Lost)]
        said = run.output.read_text()
    assert report["exactly_once"], report["verdict"]
    assert len(reasons) == 1 and "holds up 1 others: loading samples for" in reasons[0], reasons
    assert any("loading its process runs, but lets no thread of it speak: position" in phase for phase in phases)
    assert "was given up, and lets no thread of it speak: it is ended" in said
