"""The wire contract: typed records equal their schemas, and every reader reads every writer that ever was."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from typing import Any

import avro.schema
import pytest
from antdt_schemas import codec, records
from antdt_schemas.codec import TOP_LEVEL, schema_fingerprint, schema_text
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

NAMES = [record.__name__ for record in TOP_LEVEL]


def history(name: str) -> list[str]:
    """Every schema that a record was written with before the current one, by name of the file."""
    folder = resources.files("antdt_schemas") / "history" / name
    return [f.read_text(encoding="utf-8") for f in folder.iterdir()] if folder.is_dir() else []


def records_in(schema: Any) -> dict[str, list[str]]:
    """Names of the fields of every record in a schema."""
    out: dict[str, list[str]] = {}
    if isinstance(schema, list):
        for part in schema:
            out |= records_in(part)
    elif isinstance(schema, dict):
        if schema.get("type") == "record":
            out[schema["name"]] = [f["name"] for f in schema["fields"]]
        for part in schema.values():
            out |= records_in(part)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_classes_have_the_fields_of_the_schemas(name: str) -> None:
    for record, names in records_in(json.loads(schema_text(name))).items():
        assert [f.name for f in dataclasses.fields(getattr(records, record))] == names, record


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_implementation_agrees_on_fingerprints(name: str) -> None:
    text = schema_text(name)
    mine = schema_fingerprint(json.loads(text))
    assert avro.schema.parse(text).fingerprint("CRC-64-AVRO") == mine


@pytest.mark.parametrize("name", NAMES)
def test_this_reader_reads_every_writer_that_ever_was(name: str) -> None:
    """A field without a default, a renamed or removed branch: none of it passes."""
    reader = avro.schema.parse(schema_text(name))
    for text in history(name):
        found = ReaderWriterCompatibilityChecker().get_compatibility(reader, avro.schema.parse(text))
        assert found.compatibility is SchemaCompatibilityType.compatible, (name, found.messages)


def test_an_older_record_is_read_with_defaults() -> None:
    import fastavro

    old = json.loads(next(text for text in history("Entry") if "Regressed" not in text))
    import io

    out = io.BytesIO()
    out.write(codec.MARKER + schema_fingerprint(old))
    event = ("dev.antdt.Checkpointed", {"step": 3, "lineage": bytes(16), "file": "f"})
    body = {
        "epoch_offset": 1, "epoch_hash": bytes(16), "sequence": 1, "previous_offset": 1, "previous_hash": bytes(16),
        "requests_next": 1, "now_ms": 1, "events": [event],
    }  # fmt: skip
    fastavro.schemaless_writer(out, fastavro.parse_schema(old, named_schemas={}), {"body": ("dev.antdt.Cycle", body)})
    cycle = codec.decode(out.getvalue(), records.Entry).body
    assert isinstance(cycle, records.Cycle)
    assert cycle.events == (records.Checkpointed(3, bytes(16), "f"),)


def test_the_gate_would_notice() -> None:
    """The same check on a schema that was broken on purpose."""
    broken = json.loads(schema_text("DeadLetter"))
    broken["fields"].append({"name": "new", "type": "long"})
    reader, writer = avro.schema.parse(json.dumps(broken)), avro.schema.parse(schema_text("DeadLetter"))
    found = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
    assert found.compatibility is SchemaCompatibilityType.incompatible
