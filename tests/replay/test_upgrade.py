"""A rolling upgrade: this ledger goes on with a log that an older one began, with workers that are still older."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import fastavro
import pytest
from antdt_schemas import codec, records
from antdt_schemas.codec import registry, schema_fingerprint
from antdt_streams.ledger.core import rows
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import Bench
from tests.helpers.logs import entries, export
from tests.helpers.memory_ledger import MemoryLedger
from tools import verify_standalone

FOLDER = resources.files("antdt_schemas") / "history"
RELEASES = sorted(file.name for file in (FOLDER / "Entry").iterdir())


def schema_of(kind: str, release: str) -> Any:
    """The schema that a release wrote records of this kind with; None if it is the current one."""
    file = FOLDER / kind / release
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


@contextmanager
def writers_of(release: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is written meanwhile is written as that release did."""
    encode = codec.encode
    schemas = {kind: schema_of(kind, release) for kind in ("Entry", "Request")}

    def encode_as_then(record: Any) -> bytes:
        schema = schemas.get(type(record).__name__)
        if schema is None:
            return encode(record)
        out = io.BytesIO(codec.MARKER + schema_fingerprint(schema))
        out.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), plain(record))
        return out.getvalue()

    with monkeypatch.context() as patch:
        patch.setattr(codec, "encode", encode_as_then)
        yield


def plain(record: Any) -> Any:
    """What fastavro takes; it leaves out what a schema does not know."""
    return codec._plain(type(record))(record)


@pytest.mark.parametrize("release", RELEASES)
def test_a_log_that_an_older_ledger_began_is_continued(
    release: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = schema_fingerprint(schema_of("Entry", release))
    with writers_of(release, monkeypatch):
        bench = Bench()
        bench.join("w0.0", "w1.0")
        for who in ("w0.0", "w1.0"):
            number, token, epoch, start, _ = bench.lease(who, 10)
            bench.commit("w0.0", (number, token, epoch, start, 4))
        bench.say("w0.0", records.Checkpoint(1, bench.step, bench.lineage, "old", b"d" * 16))
        held = bench.lease("w1.0", 10)
        bench.say("w0.0", records.Regroup(7, None, b"", "h", 1))  # refused, and in the log
    begun = len(bench.broker.log)
    assert {payload[2:10] for payload in bench.broker.log} == {mark}

    before = rows.digest(bench.state)
    bench.ledger = MemoryLedger(bench.broker)
    assert rows.digest(bench.state) == before, "the same state by the new reader"
    with writers_of(release, monkeypatch):
        old_worker = codec.encode(bench.request("w1.0", records.Lease(1, 10)))
    bench.broker.send(old_worker)
    assert bench.ledger.run()[0].leases == held, "an old worker is answered, with what the old ledger gave it"
    assert bench.commit("w0.0", (*held[:4], 2)).status is records.Status.OK
    assert bench.commit("w0.0", (*held[:3], held[3] + 2, 2)).status is records.Status.OK
    rolled_back = bench.say("operator", records.Rollback(2, "me#1", "as no older ledger could"))
    assert rolled_back.status is records.Status.OK, rolled_back.reason
    assert (bench.state.line.committed, bench.state.line.checkpoints[-1].file) == (2, "old")

    log = bench.broker.log
    assert {payload[2:10] for payload in log[begun:]} == {registry().header["Entry"][2:]} != {mark}
    assert rows.digest(bench.broker.fold().state) == rows.digest(bench.state)  # type: ignore[arg-type]
    report = audit([(entry.offset, entry.payload) for entry in entries(log)])
    assert (report["steps"], report["rolled_back_steps"], report["broken"]) == (2, 2, None)
    export(tmp_path / "log.avro", log)
    alone = verify_standalone.verify(str(tmp_path / "log.avro"))
    assert alone["broken"] is None
    assert alone["lineage"] == report["lineage"]
