"""Topics as training data on a real broker, with real workers: what is there is trained on exactly once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.demo.topic import kill
from antdt_streams.kafka.ask import ask
from antdt_streams.local.services import environment_of
from antdt_streams.proof.audit import audit
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from tests.helpers.job_processes import JobProcesses, job_processes
from tests.helpers.running import until
from tests.helpers.warm import launched

pytestmark = pytest.mark.kafka
SCRIPT = ("-m", "tests.helpers.topic_script")
HEADERS = [("unit", b"cm")]


class Clicks:
    """A topic of numbers."""

    def __init__(self, connection: Connection, name: str, partitions: int = 2, **settings: Any) -> None:
        self.connection, self.name, self.admin = connection, name, AdminClient(connection.admin())
        config = {key.replace("_", "."): str(value) for key, value in settings.items()}
        self.admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(20)
        self.partitions, self.written = partitions, 0
        until(lambda: len(self.admin.list_topics(name, 10).topics[name].partitions) == partitions, "it is there")

    def write(self, values: Iterable[bytes | None], key: str | None = None, producer: Producer | None = None) -> None:
        """To the partitions in turn."""
        one = producer or Producer(self.connection.producer(linger_ms=5))
        for value in values:
            one.produce(self.name, value, key, self.written % self.partitions, headers=HEADERS)
            self.written += 1
        assert one.flush(20) == 0

    def widen(self, partitions: int) -> None:
        """With so many partitions, all of which are written to from now on."""
        self.admin.create_partitions([NewPartitions(self.name, partitions)])[self.name].result(20)
        until(lambda: len(self.admin.list_topics(self.name, 10).topics[self.name].partitions) == partitions, "added")
        self.partitions = partitions

    def numbers(self, count: int, size: int = 0) -> None:
        """So many records, of so many bytes at least."""
        self.write(str(self.written + at).encode().ljust(size) for at in range(count))

    def in_transactions(self, *outcomes: bool, each: int) -> None:
        """One after the other: committed, or aborted."""
        one = Producer(self.connection.producer(transactional_id=f"{self.name}-writer"))
        one.init_transactions(20)
        for committed in outcomes:
            one.begin_transaction()
            self.write((str(at).encode() for at in range(each)), producer=one)
            if committed:
                one.commit_transaction(20)
            else:
                one.abort_transaction(20)

    def delete_before(self, offset: int, partition: int = 0) -> None:
        """What retention does."""
        for future in self.admin.delete_records([TopicPartition(self.name, partition, offset)]).values():
            future.result(20)


def trained(run: JobProcesses, clicks: Clicks, *options: str) -> dict[str, Any]:
    """The report of a job of two workers that is trained to its end."""
    run.ended(run.launch(2, "--topic", clicks.name, *options, script=SCRIPT))
    return run.judged()


@pytest.mark.dear
def test_a_topic_is_trained_on_exactly_once_although_a_worker_is_killed(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    clicks = Clicks(connection, f"{job}.clicks", partitions=3)
    clicks.numbers(900)
    with job_processes(connection, job, tmp_path) as run:
        launcher = run.launch(2, "--topic", clicks.name, "--step-s", "0.02", script=SCRIPT)
        run.until_committed(6)
        clicks.numbers(300)  # not of this job, nor is it for whoever comes again
        os.kill(run.workers_of(launcher)[1], signal.SIGKILL)
        run.ended(launcher)
        report = run.judged()
    assert report["exactly_once"], report["verdict"]
    assert (report["samples"], report["records"], report["vacant"]) == (900, 900, 0)
    assert report["blocks"] == [[p, 0, 300] for p in range(3)]


def test_of_transactions_what_was_committed_is_trained_on(connection: Connection, job: str, tmp_path: Path) -> None:
    clicks = Clicks(connection, f"{job}.clicks")
    clicks.in_transactions(True, False, True, False, False, True, each=40)
    with job_processes(connection, job, tmp_path) as run:
        report = trained(run, clicks, "--epochs", "2")
    assert report["exactly_once"], report["verdict"]
    assert (report["samples"], report["records"], report["vacant"]) == (252, 240, 264)


def test_what_cannot_be_decoded_is_in_quarantine_by_name_and_a_tombstone_is_no_sample(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    clicks = Clicks(connection, f"{job}.clicks", partitions=1)
    clicks.write([b"poison" if at in (17, 18, 90) else None if at == 40 else str(at).encode() for at in range(200)])
    with job_processes(connection, job, tmp_path) as run:
        run.ended(run.launch(2, "--topic", clicks.name, script=SCRIPT), ExitCode.INCOMPLETE)
        state = run.now()
        said = run.output.read_text()
        assert sorted(f.key for f in state.shards.faults.values()) == [f"{clicks.name}/0@{at}" for at in (17, 18, 90)]
        assert "3 samples are in quarantine" in said and "could not convert string to float: b'poison'" in said
        assert state.shards.committed_total == 197
        assert ask(connection, job, lambda _: records.Readmit(), None).status is records.Status.OK
        report = trained(run, clicks, "--mended")
    assert report["exactly_once"], report["verdict"]
    assert (report["records"], report["vacant"]) == (199, 1)


@pytest.mark.dear
def test_records_that_retention_has_removed_end_the_job_and_are_named(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    clicks = Clicks(connection, f"{job}.clicks", partitions=1)
    clicks.numbers(20_000, size=1000)  # more than a client takes ahead
    with job_processes(connection, job, tmp_path) as run:
        slowly = "--step-s", "0.02", "--batch-size", "96", "--cache-mb", "1"
        launcher = run.launch(1, "--topic", clicks.name, *slowly, script=SCRIPT)
        run.until_committed(3)
        clicks.delete_before(19_900)
        run.until(lambda: launcher.poll() is not None, "the run does not end")
        said = run.output.read_text()
        state = run.now()
    assert f"Retention has removed {clicks.name}/0@" in said and f"to {clicks.name}/0@19899 before" in said, said
    assert state.done is None and launcher.returncode != 0


def test_a_topic_that_grows_is_trained_on_until_somebody_ends_it(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    clicks = Clicks(connection, f"{job}.clicks", partitions=2)
    clicks.numbers(51)
    with job_processes(connection, job, tmp_path) as run:
        launcher = run.launch(2, "--topic", clicks.name, "--growing", script=SCRIPT)
        run.until(lambda: (run.state() or _NONE).shards.committed_total == 51, "what was there is trained on")
        clicks.widen(3)
        clicks.numbers(70)
        run.until(lambda: run.now().shards.committed_total == 121, "what has come is trained on")
        assert ask(connection, job, lambda author: records.End(author, "enough"), None).status is records.Status.OK
        clicks.numbers(30)
        run.ended(launcher)
        report = run.judged()
    assert report["exactly_once"], report["verdict"]
    assert (report["samples"], report["records"], report["ended"]) == (121, 121, True)


@pytest.mark.dear
@pytest.mark.parametrize("mode", ["", "asp"])
def test_the_example_learns_who_clicks(connection: Connection, job: str, tmp_path: Path, mode: str) -> None:
    """Under servers with its tables on them, a worker and a server of which are killed."""
    name, result, script = f"{job}.clicks", tmp_path / "result.json", "antdt.examples.clicks"
    with job_processes(connection, job, tmp_path) as run:
        environ = dict(os.environ) | environment_of(connection, run.place)
        written = [sys.executable, "-m", script, "--topic", name, "--write", "6000"]
        subprocess.run(written, env=environ, timeout=60, check=True)
        epochs = 6 if mode else 3
        command = ["--topic", name, "--epochs", str(epochs), "--result", str(result)]
        command += ["--mode", mode, "--delay-ms", "1"] if mode else []
        servers = ["--servers", "2"] if mode else []
        launch = ["--job", job, "-n", "2", *servers, "--logs", str(tmp_path / "logs"), "--", "-m", script, *command]
        launcher = launched(launch, environ, run.output)
        run.launchers.append(launcher)
        for worker in ("w1", "s1") if mode else ():
            run.until_committed(run.now().line.committed + 20 if run.state() else 20)
            kill(launcher, worker)
        run.ended(launcher)
        report, lost = audit(run.entries()), [e for e in run.events() if isinstance(e, records.Lost)]
    assert report["exactly_once"] and report["records"] == 6_000 * epochs, report["verdict"]
    assert {e.incarnation.partition(".")[0] for e in lost} == ({"w1", "s1"} if mode else set())
    assert json.loads(result.read_text())["loss"] < 0.6, "guessing has 0.693"


class _Shards:
    committed_total = -1


class _NONE:
    shards = _Shards


@pytest.mark.dear
def test_a_compacted_topic_is_trained_on_as_far_as_it_is_there(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    quick = {"segment_ms": 100, "min_cleanable_dirty_ratio": 0.01, "max_compaction_lag_ms": 200}
    clicks = Clicks(connection, f"{job}.clicks", partitions=1, cleanup_policy="compact", **quick)
    for _ in range(3):
        for key in ("a", "b", "c"):
            clicks.write([str(at).encode() for at in range(20)], key=key)
        time.sleep(0.3)
    clicks.write([b"1"], key="d")

    def is_compacted() -> bool:
        from antdt_schemas.polling import Place, whole

        return len(list(whole(connection, Place(clicks.name), 20.0))) < 120

    until(is_compacted, "the broker compacts")
    with job_processes(connection, job, tmp_path) as run:
        report = trained(run, clicks)
    assert report["exactly_once"], report["verdict"]
    assert report["samples"] == 181 and 0 < report["records"] < 181 and report["vacant"] == 181 - report["records"]
