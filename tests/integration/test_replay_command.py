"""antdt replay, export and audit against a real broker: from zero, from a snapshot, from a file, all the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from antdt_schemas import codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode, LogTampered
from antdt_streams.kafka import topics_admin
from antdt_streams.views.job import status_of
from confluent_kafka import Producer

from tests.helpers.ledger_thread import LedgerThread, asker, digest_of, replayed
from tests.helpers.shared import SharedBroker
from tests.helpers.warm import module

pytestmark = pytest.mark.kafka


@pytest.mark.dear
def test_the_state_from_zero_from_a_snapshot_and_from_a_file(
    broker: SharedBroker, connection: Connection, job: str, tmp_path: Path
) -> None:
    def antdt(*arguments: object) -> tuple[int, str]:
        command = ["antdt_streams", *map(str, arguments), "--bootstrap-servers", broker.connection.bootstrap]
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        return module(command, os.environ, said).wait(60), said.read_text()

    def replay(*arguments: object) -> dict:  # type: ignore[type-arg]
        code, said = antdt("replay", *arguments, "--json")
        assert code == 0, said
        return json.loads(said)

    topics_admin.create(connection, job)
    code, said = antdt("replay", job, "--snapshot")
    assert code == ExitCode.USAGE and "no snapshot" in said
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
    status = json.loads(antdt("status", job, "--json")[1])
    assert (status["read_from"], status["entries"]) == (newest["start"], whole["offset"] + 1), (
        "and no entry but the last"
    )
    assert (status["digest"], status["step"]) == (whole["digest"], 8)
    at = whole["offset"] - 2
    long, short = replay(job, "--at", at), replay(job, "--at", at, "--snapshot")
    assert 0 < short["start"] < at, "the one before it"
    assert short | {"start": 0} == long and long["digest"] != whole["digest"]

    path = tmp_path / "log.avro"
    code, said = antdt("export", job, path)
    assert code == 0, said
    assert f"anchor {whole['offset']}:{whole['head_hash']}" in said
    beside = tmp_path / "verify_standalone.py"
    assert f"{beside}: verifies it with Python alone" in said
    beside.write_text("another")
    code, said = antdt("export", job, tmp_path / "second.avro")
    assert (code, beside.read_text()) == (2, "another") and not (tmp_path / "second.avro").exists(), said
    assert antdt("export", job, tmp_path / "second.avro", "--no-checker")[0] == 0
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
        code, said = antdt(*arguments)
        assert code == ExitCode.NEVER_RETRY, (arguments, said)
        assert f"The log breaks at offset {whole['offset'] + 1}." in said
    with pytest.raises(LogTampered):
        status_of(connection, job)
