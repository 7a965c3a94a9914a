"""`torchrun train.py` without our launcher: it starts workers again, and every sample is in the model exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_streams.local.services import environment_of

from tests.helpers.job_processes import RECORDED, JobProcesses, job_processes
from tests.helpers.loading import children

pytestmark = pytest.mark.kafka

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@contextmanager
def torchrun(one: JobProcesses, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Two workers that write down what they train on, started by torchrun."""
    environ = dict(os.environ) | environment_of(one.connection, one.place)
    environ |= {"ANTDT_JOB": one.job, "OMP_NUM_THREADS": "1"}
    script = ["--record", str(one.record), "--batch-size", "24", "--epochs", "2", "--samples", "480", *options]
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "3", *RECORDED, *script]
    with one.output.open("ab") as out, subprocess.Popen(command, env=environ, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.kill()


@pytest.mark.dear
def test_a_worker_of_torchrun_that_is_killed_is_started_again_with_all_others(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as one, torchrun(one, "--delay-ms", "6") as run:
        one.until_committed(5)
        os.kill(children(run.pid)[1], signal.SIGKILL)
        one.until(lambda: run.poll() is not None, "torchrun does not end")
        assert run.returncode == 0, one.output.read_text()
        assert one.judged()["exactly_once"]
        joined = [event for event in one.events() if isinstance(event, records.Joined)]
        assert {(who.worker, who.restarts) for who in joined} == {("w0", 0), ("w1", 0), ("w0", 1), ("w1", 1)}
        assert len({who.launch for who in joined}) == 1, "one run of torchrun is one launch"
