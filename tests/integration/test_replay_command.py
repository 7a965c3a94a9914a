"""antdt replay, export and audit against a real broker: from zero, from a snapshot, from a file, all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from antdt_schemas import codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode, LogTampered
from antdt_streams import topics_admin
from antdt_streams.cli.job import status_of
from confluent_kafka import Producer

from tests.helpers.ledger_thread import LedgerThread, asker, digest_of, replayed
from tests.helpers.shared import SharedBroker

pytestmark = pytest.mark.kafka


def test_the_state_from_zero_from_a_snapshot_and_from_a_file(
    broker: SharedBroker, connection: Connection, job: str, tmp_path: Path
) -> None:
    def antdt(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "antdt_streams", *map(str, arguments)]
        where = ["--bootstrap-servers", broker.connection.bootstrap]
        return subprocess.run([*command, *where], capture_output=True, text=True, timeout=60, check=False)

    def replay(*arguments: object) -> dict:  # type: ignore[type-arg]
        done = antdt("replay", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    topics_admin.create(connection, job)
    early = antdt("replay", job, "--snapshot")
    assert early.returncode == ExitCode.USAGE and "no snapshot" in early.stderr
    with asker(connection, job) as worker:
        with LedgerThread(connection, job, tmp_path / "a", snapshot_every=1_000_000):
            worker.join()
            worker.train(4)
        with LedgerThread(connection, job, tmp_path / "a", snapshot_every=1_000_000):
            worker.train(4)  # the end of each office leaves a snapshot

    whole, newest = replay(job), replay(job, "--snapshot")
    assert whole["digest"] == digest_of(replayed(connection, job)) and whole["state"]["steps"] == 8
    assert (whole["start"], newest["start"]) == (0, whole["offset"] + 1), "the newest one reflects all of the log"
    assert (newest["digest"], newest["state"]) == (whole["digest"], whole["state"])
    status = json.loads(antdt("status", job, "--json").stdout)
    assert (status["read_from"], status["entries"]) == (newest["start"], whole["offset"] + 1), (
        "and no entry but the last"
    )
    assert (status["digest"], status["step"]) == (whole["digest"], 8)
    at = whole["offset"] - 2
    long, short = replay(job, "--at", at), replay(job, "--at", at, "--snapshot")
    assert 0 < short["start"] < at, "the one before it"
    assert short | {"start": 0} == long and long["digest"] != whole["digest"]

    path = tmp_path / "log.avro"
    exported = antdt("export", job, path)
    assert exported.returncode == 0, exported.stderr
    assert f"anchor {whole['offset']}:{whole['head_hash']}" in exported.stdout
    filed = replay("--file", path, "--full")
    assert (filed["digest"], filed["state"]) == (whole["digest"], whole["state"])
    assert replay("--file", path, "--at", at)["digest"] == long["digest"]

    # Somebody writes into the log in the leader's name: refused at its offset, by every way to read it.
    fold = replayed(connection, job)
    assert fold.office is not None
    forged = records.Cycle(
        fold.office.offset, fold.office.hash, whole["state"]["sequence"] + 1, at, bytes(16), 99, 1, ()
    )
    producer = Producer(connection.producer())
    producer.produce(topics.SHARD_LOG.name(job), codec.encode(records.Entry(forged)), partition=0)
    assert producer.flush(30) == 0
    for arguments in (["replay", job], ["replay", job, "--snapshot"], ["audit", job]):
        broken = antdt(*arguments)
        assert broken.returncode == ExitCode.NEVER_RETRY, (arguments, broken.stderr)
        assert f"The log breaks at offset {whole['offset'] + 1}." in broken.stderr + broken.stdout
    with pytest.raises(LogTampered):
        status_of(connection, job)
