"""Workers that have less memory than they are asked to use, as real processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.proof.audit import audit

from tests.helpers.job_processes import job_processes

pytestmark = pytest.mark.kafka
SCRIPT = ("-m", "tests.helpers.small_memory")


def test_whoever_runs_out_of_memory_goes_on_with_less_and_no_sample_is_blamed(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        run.ended(run.launch(4, "--batch-size", "64", script=SCRIPT, restarts=0), ExitCode.DONE)
        report, said, events = audit(run.entries()), run.output.read_text(), list(run.events())
    assert report["exactly_once"], report["verdict"]
    assert "w0: memory is out with 16 samples at a time: it goes on with 8" in said
    assert "memory is out with 16 samples at a time: started again, it takes 8" in said
    assert re.search(r"w1 was ended by SIGKILL soon after its micro-batches grew from 16 samples to 2\d", said), said
    again = re.findall(r"(w\d) [^\n]*: started again \((\d)\)", said)
    assert sorted(again) == [("w1", "1"), ("w3", "1")], "once each, of no restarts that are allowed for nothing"
    assert not [e for e in events if isinstance(e, records.Blamed)]
