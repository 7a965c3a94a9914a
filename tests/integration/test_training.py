"""Real workers, a real ledger, a real broker: what users run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import REQUESTS
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.views.job import audit_of, status_of

from tests.helpers.job_processes import WITHIN_S, job_processes
from tests.helpers.ledger_thread import digest_of, replayed

pytestmark = pytest.mark.kafka


def test_a_run_goes_on_when_its_ledger_is_killed(connection: Connection, job: str, tmp_path: Path) -> None:
    result, late = tmp_path / "result.json", tmp_path / "late.json"
    options = ("--epochs", "2", "--samples", "400", "--delay-ms", "2", "--checkpoint-every", "0", "--result")
    with job_processes(connection, job, tmp_path) as run:
        workers = run.launch(3, *options, str(result))
        (supervisor,) = run.supervisors
        service = supervisor.children["ledger"]
        for step in (3, 9):
            run.until_committed(step)
            # The step may have been in the log before the last kill.
            run.until(lambda: service.process is not None, "the ledger is not started again")
            assert service.process is not None
            service.process.kill()
            service.process.wait(5)
            supervisor.poll()
        run.ended(workers)
        assert service.restarts == 2
        # Whoever comes when all is done has the final model, too: the script behind the loop must not find another one.
        run.ended(run.launch(3, *options, str(late)))
        assert run.judged()["committed"] == 800
    report = audit_of(connection, job)
    assert digest_of(replayed(connection, job)) == report["digest"] == status_of(connection, job)["digest"]
    assert json.loads(result.read_text())["steps"] == report["steps"]
    assert json.loads(late.read_text()) == json.loads(result.read_text())


def test_what_cannot_work_is_said_by_the_worker(connection: Connection, job: str, tmp_path: Path) -> None:
    with job_processes(connection, job, tmp_path, services=()) as run:
        run.ended(run.launch(3, "--samples", "2"), ExitCode.USAGE)
        said = run.output.read_text()
    assert "2 samples for 3 workers" in said
    assert "Traceback" not in said
    with TopicReader(connection, job, REQUESTS) as reader:
        exits = [codec.to_json(codec.decode(r.value, REQUESTS.record))["body"]["type"] for r in reader.to_end()]
    assert "Join" not in exits


@pytest.mark.parametrize(
    ("bootstrap", "code", "said"),
    [
        ("", ExitCode.USAGE, "Job 'no-such-job' is not on this broker"),
        ("127.0.0.1:1", ExitCode.RESTART_HERE, "No Kafka broker answers at 127.0.0.1:1 within 0.5 s"),
    ],
)
def test_an_unknown_job_and_a_missing_broker_are_said_before_anything_is_imported(
    connection: Connection, bootstrap: str, code: int, said: str, tmp_path: Path
) -> None:
    where = ["--bootstrap-servers", bootstrap or connection.bootstrap]
    if bootstrap:
        where += ["--broker-timeout", "0.5"]
    command = [sys.executable, "-m", "antdt.launch", "--job", "no-such-job", *where, "-n", "2", "no-such-script.py"]
    environ = {**os.environ, "ANTDT_DATA": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False, env=environ)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
