"""Data processes beside real workers: every sample once, and nobody left, however their worker ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection

from tests.helpers.job_processes import job_processes
from tests.helpers.loading import children, gone, sockets

pytestmark = pytest.mark.kafka


@pytest.mark.dear
def test_a_worker_dies_one_drains_and_the_rest_take_every_sample_once(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        launcher = run.launch(
            3, "--samples", "600", "--epochs", "3", "--delay-ms", "5", "--checkpoint-every", "10", "--num-workers", "2"
        )
        run.until_committed(10)
        workers = run.workers_of(launcher)
        of_worker = {pid: children(pid) for pid in workers}
        assert [len(c) for c in of_worker.values()] == [2, 2, 2]
        for pid, processes in of_worker.items():
            assert len(sockets(pid)) > 4, "broker, peers, data processes"
            assert all(len(sockets(c)) == 1 and not sockets(c) & sockets(pid) for c in processes), "a link, no more"
        os.kill(workers[2], signal.SIGKILL)
        assert gone(of_worker[workers[2]]), "those of a worker that was killed"
        run.until_committed(20)
        of_data = of_worker[workers[1]][0]
        os.kill(of_data, signal.SIGKILL)
        run.until(lambda: "started again (1)" in run.output.read_text().partition("w1 ")[2], "w1 was not started again")
        assert gone(of_worker[workers[1]])
        run.until_committed(30)
        (other,) = set(run.workers_of(launcher)) & {workers[0]}
        os.kill(other, signal.SIGTERM)
        assert gone([other, *of_worker[other]], 30), "those of a worker that drains"
        everybody = [c for pid in run.workers_of(launcher) for c in children(pid)]
        run.ended(launcher)
        assert gone(everybody), "those of workers that have finished"
        report = run.judged()
    assert report["exactly_once"], report["verdict"]
    assert report["committed"] == 1800
    said = run.output.read_text()
    assert f"(pid {of_data}) was ended by SIGKILL" in said
    assert "w0 ended with status 143: it was told to, and has left" in said
