"""Real workers, a real ledger, a real broker: what users run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.topics import REQUESTS, SHARD_LOG
from antdt_streams import topics_admin
from antdt_streams.cli.common import Place
from antdt_streams.cli.job import audit_of, status_of
from antdt_streams.cli.services import start_services
from antdt_streams.demo.watch import Watch
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.reader import TopicReader
from antdt_streams.supervise import Supervisor

pytestmark = pytest.mark.kafka
WITHIN_S = 90


def train(job: str, place: Place, *script: str, workers: int = 3) -> subprocess.Popen[str]:
    """Workers of the digits example."""
    command = [sys.executable, "-m", "antdt.launch", "--job", job, "-n", str(workers), "--"]
    environ = {
        **os.environ,
        "ANTDT_KAFKA_BOOTSTRAP_SERVERS": place.connection.bootstrap,
        "ANTDT_DATA": str(place.data),
    }
    return subprocess.Popen(
        [*command, "-m", "antdt.examples.digits", *script],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_until(process: subprocess.Popen[str], supervisor: Supervisor, done: object = None) -> None:
    """Keep the services going until the workers end (or `done()` holds)."""
    until = time.monotonic() + WITHIN_S
    while process.poll() is None and not (callable(done) and done()):
        supervisor.poll()
        assert time.monotonic() < until, "the run does not end"
        time.sleep(0.02)  # between two looks, bounded above


@pytest.fixture
def place(connection: Connection, tmp_path: Path) -> Place:
    return Place(connection, True, tmp_path, None)


def test_a_run_goes_on_when_its_ledger_is_killed(connection: Connection, job: str, place: Place) -> None:
    topics_admin.create(connection, job)
    supervisor = start_services(job, place, connection, ("ledger",))
    watch = Watch(connection, job)
    watch.start()
    result = place.data / "result.json"
    options = ("--epochs", "2", "--samples", "600", "--delay-ms", "2", "--batch-size", "48", "--result", str(result))
    workers = train(job, place, *options)
    try:
        for step in (3, 9):

            def reached(step: int = step) -> bool:
                return watch.fold.state is not None and watch.fold.state.committed >= step

            run_until(workers, supervisor, reached)
            ledger = supervisor.children["ledger"].process
            assert ledger is not None
            os.kill(ledger.pid, signal.SIGKILL)
            ledger.wait(5)
        run_until(workers, supervisor)
        assert workers.returncode == 0, workers.communicate()[0]
        assert supervisor.children["ledger"].restarts == 2
        # Whoever comes when all is done has the final model, too: the script behind the loop must not find another one.
        late = place.data / "late.json"
        workers = train(job, place, *options[:-1], str(late))
        run_until(workers, supervisor)
        assert workers.returncode == 0, workers.communicate()[0]
    finally:
        workers.kill()
        watch.stop()
        supervisor.stop()
    report = audit_of(connection, job)
    assert report["exactly_once"], report["verdict"]
    assert report["committed"] == 1200
    fold = Fold()
    with TopicReader(connection, job, SHARD_LOG) as reader:
        for raw in reader.to_end():
            fold.read(raw.offset, raw.value)
    assert fold.state is not None
    assert rows.digest(fold.state).hex() == report["digest"] == status_of(connection, job)["digest"]
    assert json.loads(result.read_text())["steps"] == report["steps"]
    assert json.loads(late.read_text()) == json.loads(result.read_text())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (("--batch-size", "0"), "batch_size=0"),
        (("--samples", "2"), "2 samples for 3 workers"),
    ],
)
def test_what_cannot_work_is_said_by_the_worker(
    connection: Connection, job: str, place: Place, script: tuple[str, ...], said: str
) -> None:
    topics_admin.create(connection, job)
    workers = train(job, place, *script)
    out = workers.communicate(timeout=WITHIN_S)[0]
    assert workers.returncode == 2, out
    assert said in out
    assert "Traceback" not in out
    with TopicReader(connection, job, REQUESTS) as reader:
        exits = [codec.to_json(codec.decode(r.value, REQUESTS.record))["body"]["type"] for r in reader.to_end()]
    assert "Join" not in exits


def test_an_unknown_job_and_a_missing_broker_are_said(connection: Connection, place: Place) -> None:
    workers = train("no-such-job", place, "--epochs", "1", workers=2)
    out = workers.communicate(timeout=WITHIN_S)[0]
    assert workers.returncode == 2, out
    assert "Job 'no-such-job' is not on this broker" in out
    away = Place(Connection.of("127.0.0.1:1", None, {}), True, place.data, None)
    nobody = train("no-such-job", away, workers=1)
    out = nobody.communicate(timeout=WITHIN_S)[0]
    assert nobody.returncode == 75, out
    assert "No Kafka broker answers at 127.0.0.1:1" in out
