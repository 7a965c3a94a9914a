"""Somebody else writes into every topic of a job: junk, copies, and transactions that leave holes in the offsets."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import codec, container, records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, SHARD_LOG, STEPS, TOPICS
from antdt_streams.cli.topics import tail
from antdt_streams.kafka import ask as operator_request
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader, read_genesis
from antdt_streams.ledger.stored import Identity
from antdt_streams.proof import waypoints
from antdt_streams.proof.source import open_topic
from antdt_streams.storage.snapshots import newest
from antdt_streams.views.job import audit_of, status_of
from click.testing import CliRunner
from confluent_kafka import Producer

from tests.helpers.counting import steps
from tests.helpers.ledger_thread import SPEC, LedgerThread, asker, replayed
from tests.helpers.running import Running, until
from tools import verify_standalone

pytestmark = pytest.mark.kafka
UNKNOWN = b"\xc3\x01\0\0\0\0\0\0\0\0 of some day"
VOID_A_ROUND = 8  # in the shard log: three and a copy, and two transactions of two


def write_everywhere(connection: Connection, job: str) -> None:
    """A round of it: three records and a copy of the newest, a transaction that counts and one that is aborted."""
    newest_entry = b""
    with TopicReader(connection, job, SHARD_LOG) as reader:
        for raw in reader.to_end():
            newest_entry = raw.value if codec.begins_as(raw.value, records.Entry) else newest_entry
    producer = Producer(connection.producer(transactional_id=f"somebody-{job}"))
    producer.init_transactions(30)
    plain = Producer(connection.producer())
    for topic in TOPICS:
        for value in (b"{}", None, UNKNOWN, newest_entry):
            plain.produce(topic.name(job), value, b"somebody/0/0/0", 0)
    assert plain.flush(30) == 0
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for topic in TOPICS:
            for value in (b"{}", newest_entry):
                producer.produce(topic.name(job), value, b"somebody/0/0/0", 0)
        assert producer.flush(30) == 0  # so that what is aborted lies there, too
        end(30)


@pytest.mark.dear
def test_a_job_is_exactly_once_whoever_else_writes_running_and_finished(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    topics_admin.create(connection, job)
    write_everywhere(connection, job)  # also before there is a job
    with asker(connection, job) as worker:
        with LedgerThread(connection, job, tmp_path / "l", snapshot_every=10):
            worker.join(replace(SPEC, samples=40))
            worker.train(2)
            write_everywhere(connection, job)
            worker.train(3)
            worker.checkpoint("final.pt")
            assert worker.ask(records.Lease(worker.generation, 8)).status is records.Status.END
        before = audit_of(connection, job)
        assert before["exactly_once"], before["verdict"]
        assert before["void_entries"] == 2 * VOID_A_ROUND, before["void_offsets"]
        write_everywhere(connection, job)
    report = audit_of(connection, job)
    assert report["exactly_once"], report["verdict"]
    assert report["void_entries"] == 3 * VOID_A_ROUND and report["file"] == "final.pt"
    same = ("committed", "steps", "lineage", "digest", "last_proven")
    assert {key: report[key] for key in same} == {key: before[key] for key in same}
    status = status_of(connection, job)
    assert (status["digest"], status["void_entries"], status["decisions"]) == (report["digest"], 3 * VOID_A_ROUND, [])
    genesis = read_genesis(connection, job)
    assert genesis is not None and genesis.run_id == report["run_id"]
    assert newest(connection, job, "ledger") is not None
    for topic in TOPICS:
        shown = CliRunner().invoke(tail, [job, topic.suffix, "--bootstrap-servers", connection.bootstrap])
        assert shown.exit_code == 0 and "c301" in shown.output, (topic.suffix, shown.output)

    path = tmp_path / "log.avro"
    with open_topic(connection, job) as log, waypoints.writing(path) as keep:
        marked = waypoints.marked(log.entries, Identity(job, log.topic_id), keep)
        header = container.write(path, job, log.topic_id, marked)
    assert header.holes == 5 and header.entries == report["entries"], "the sixth mark is the end"
    checked = verify_standalone.verify(str(path))
    for key in ("exactly_once", "void_entries", "entries", "head_hash", "lineage", "steps", "file"):
        assert checked[key] == report[key], key
    line = [sys.executable, "-m", "antdt_streams", "audit", "--file", str(path), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    filed = json.loads(done.stdout)
    assert done.returncode == 0 and filed | {"last_proven": report["last_proven"]} == report, done.stderr
    assert filed["last_proven"] == header.next_offset - 1

    # A ledger without a folder begins behind it, also one that waits for silence, and answers.
    with LedgerThread(connection, job, tmp_path / "m", standby=True):
        assert operator_request.ask(connection, job, lambda _: records.Readmit(), None).finished
        write_everywhere(connection, job)
        assert operator_request.ask(connection, job, lambda _: records.Readmit(), None).finished
    report = audit_of(connection, job)
    assert report["exactly_once"] and report["void_entries"] == 4 * VOID_A_ROUND, report["verdict"]


def test_a_service_passes_the_marks_of_transactions_and_buries_what_it_cannot_read(
    running: Running, tmp_path: Path
) -> None:
    good = [steps("w0", 1)] * 3
    running.write(good)
    with running.service(tmp_path):
        write_everywhere(running.connection, running.job)
        running.write(good)
        with TopicReader(running.connection, running.job, STEPS) as reader:
            lying = list(reader.to_end())
        until(lambda: running.committed() > lying[-1].offset, "it has passed everything")
    assert lying[-1].offset + 1 > len(lying), "the mark of a transaction lies before them"
    assert running.stored(tmp_path).next_offset == lying[-1].offset + 1
    written: dict[str, list[Any]] = {}
    for topic in (MEASUREMENTS, DEAD_LETTERS):
        with TopicReader(running.connection, running.job, topic) as reader:
            values = [raw.value for raw in reader.to_end() if codec.begins_as(raw.value, topic.record)]
        written[topic.suffix] = [codec.decode(value, topic.record) for value in values]
    ours = [raw.offset for raw in lying if codec.begins_as(raw.value, records.StepBatch)]
    assert [m.cause.offset for m in written[MEASUREMENTS.suffix]] == ours
    assert [letter.offset for letter in written[DEAD_LETTERS.suffix]] == [
        raw.offset for raw in lying if raw.offset not in ours
    ]


def test_what_was_written_in_the_leaders_name_is_ended_by_its_last_word(
    connection: Connection, job: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would break the log otherwise, and nobody would take office over it."""
    topics_admin.create(connection, job)
    producer = Producer(connection.producer())
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path):
        worker.join()
        fold = replayed(connection, job)
        assert fold.office is not None
        forged = records.Cycle(fold.office.offset, fold.office.hash, 99, 0, bytes(16), 0, 1, ())
        for value in (codec.encode(records.Entry(forged)), codec.encode(records.Entry(forged))[:-1]):
            producer.produce(SHARD_LOG.name(job), value, partition=0)
        assert producer.flush(30) == 0
        until(lambda: "event=void-entries count=2" in caplog.text, "the leader has read it")
        assert len(audit_of(connection, job)["void_offsets"]) == 2
        assert audit_of(connection, job)["broken"]["offset"] == fold.position.next_offset
    report = audit_of(connection, job)
    assert report["broken"] is None and report["void_entries"] == 2
    with asker(connection, job, "w0.1") as worker, LedgerThread(connection, job, tmp_path):
        worker.join()
