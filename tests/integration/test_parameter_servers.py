"""Workers and parameter servers as real processes: log and model itself say that each sample is in it once an epoch."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.chaos.judge import judge_log

from tests.helpers.job_processes import JobProcesses, job_processes
from tests.helpers.tallied import expected

pytestmark = pytest.mark.kafka
SCRIPT = (str(Path(__file__).parents[1] / "helpers" / "tallied.py"),)
SERVERS = ("--servers", "2")


class Run:
    """A job of two servers."""

    def __init__(self, job: JobProcesses, folder: Path) -> None:
        self.job, self.result = job, folder / "tally.json"

    def launch(self, workers: int, *options: str, restarts: int = 50) -> Any:
        said = ("--result", str(self.result), *options)
        return self.job.launch(workers, *said, script=SCRIPT, launcher=SERVERS, restarts=restarts)

    def pid_of(self, launcher: Any, name: str) -> int:
        """Of a worker or server whose launcher has started nobody again."""
        names = [f"w{rank}" for rank in range(2)] + ["s0", "s1"]
        return self.job.workers_of(launcher)[names.index(name)]

    def judged(self) -> dict[str, Any]:
        """The audit, once the model itself agrees with it."""
        report, wrong = judge_log(self.job.entries())
        assert not wrong, wrong
        state = self.job.now()
        found = json.loads(self.result.read_text())
        assert (found["steps"], found["lineage"]) == (report["steps"], report["lineage"])
        assert found["tally"] == pytest.approx(expected(self.job.events(), state.spec), abs=1e-4)
        return report


@pytest.mark.parametrize("mode", ["bsp", "asp", "ssp"])
def test_a_job_on_servers_is_done_and_each_sample_is_in_the_model(
    connection: Connection, job: str, tmp_path: Path, mode: str
) -> None:
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        processes.ended(run.launch(2, "--mode", mode))
        report = run.judged()
    assert report["committed"] == 480
