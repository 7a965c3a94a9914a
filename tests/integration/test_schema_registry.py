"""Records framed for a schema registry, tried against a real one: Confluent's, Karapace, or Apicurio's ccompat API."""

from __future__ import annotations

import io
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from antdt_schemas import codec, framing, records
from antdt_schemas.connection import Connection
from antdt_schemas.framing import REGISTRY, SINGLE_OBJECT, Wire
from antdt_schemas.polling import Place, whole
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, REPLIES, REQUESTS, SHARD_LOG, STEPS, Topic
from antdt_streams.kafka.reader import TopicReader, decoded

from tests.helpers.job_processes import job_processes

URL = os.environ.get("SCHEMA_REGISTRY_URL", "")
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.dear,
    pytest.mark.skipif(not URL, reason="SCHEMA_REGISTRY_URL names no registry (Apicurio: .../apis/ccompat/v7)"),
]
FRAMED = {"ANTDT_KAFKA_WIRE_FRAMING": REGISTRY, "ANTDT_KAFKA_SCHEMA_REGISTRY_URL": URL}


@pytest.fixture
def reads() -> Iterator[None]:
    """This process reads what others have framed, and frames nothing."""
    framing.use(Wire(SINGLE_OBJECT, URL))
    yield
    framing.use(Wire())


def as_a_console(value: bytes) -> Any:
    """Decode as whoever knows the registry and nothing of antdt."""
    assert value[0] == 0
    with urllib.request.urlopen(f"{URL}/schemas/ids/{int.from_bytes(value[1:5], 'big')}", timeout=5) as answer:
        schema = json.loads(json.load(answer)["schema"])
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(schema, named_schemas={}), None)


def values(connection: Connection, job: str, topic: Topic) -> list[bytes]:
    return [
        message.value()
        for partition in range(topic.partitions)
        for message in whole(connection, Place(topic.name(job), partition), 20)
    ]


@pytest.mark.usefixtures("reads")
def test_a_job_is_framed_throughout_and_its_log_is_not(connection: Connection, job: str, tmp_path: Path) -> None:
    services = ("ledger", "monitor", "controller")
    with job_processes(connection, job, tmp_path, services=services, environ=lambda kind: FRAMED) as run:
        launcher = run.launch(2, "--samples", "600", "--epochs", "3", "--delay-ms", "15")
        run.ended(launcher)
        assert run.judged()["committed"] == 1800
    for topic in (STEPS, MEASUREMENTS, REQUESTS, REPLIES):
        found = values(connection, job, topic)
        assert found and {value[:1] for value in found} == {b"\0"}, topic.suffix
    assert {value[:2] for value in values(connection, job, SHARD_LOG)} == {codec.MARKER}
    step = as_a_console(values(connection, job, STEPS)[0])
    assert step["worker"] in ("w0", "w1") and step["compute_s"]
    with TopicReader(connection, job, STEPS) as reader:
        mine = [record for _, record in decoded(reader.to_end(), records.StepBatch)]
    assert len(mine) == len(values(connection, job, STEPS)) and mine[0].worker == step["worker"]


@pytest.mark.usefixtures("reads")
def test_one_topic_may_hold_both(connection: Connection, job: str, tmp_path: Path) -> None:
    """Services that frame, and workers that do not but know the registry."""
    known = {"ANTDT_KAFKA_WIRE_FRAMING": SINGLE_OBJECT, "ANTDT_KAFKA_SCHEMA_REGISTRY_URL": URL}

    def environ(kind: str) -> dict[str, str]:
        return known if kind in ("worker", "monitor") else FRAMED

    with job_processes(connection, job, tmp_path, services=("ledger", "monitor"), environ=environ) as run:
        run.ended(run.launch(2, "--samples", "300", "--epochs", "2"))
        assert run.judged()["committed"] == 600
    assert {value[:1] for value in values(connection, job, REQUESTS)} == {b"\xc3"}
    assert {value[:1] for value in values(connection, job, REPLIES)} == {b"\0"}
    assert values(connection, job, DECISIONS) == []
