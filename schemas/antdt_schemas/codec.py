"""The one codec: Avro single-object encoding of the typed records.

Owns the header (C3 01 and the 8 bytes of the CRC-64-AVRO fingerprint), the registry of every schema that was ever
released, and the conversion between records and what fastavro takes. A reader of any age resolves a writer of any age
that it knows; an unknown fingerprint is an error with the fingerprint in it, never a guess.
"""

from __future__ import annotations

import io
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar, cast

import fastavro
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

from antdt_schemas import records
from antdt_schemas.errors import Undecodable, UnknownSchema

NAMESPACE = "dev.antdt"
MARKER = b"\xc3\x01"
HEADER_SIZE = 10
MAX_BYTES = 8 << 20  # far above max.message.bytes: what is longer is not a record of ours

TOP_LEVEL = (
    records.Entry,
    records.Request,
    records.Reply,
    records.StepBatch,
    records.Measurement,
    records.Decision,
    records.DeadLetter,
    records.Snapshot,
    records.Steering,
    records.Stack,
)

R = TypeVar("R")
Convert = Callable[[Any], Any]


def schema_text(name: str) -> str:
    return (resources.files("antdt_schemas") / "avsc" / f"{name}.avsc").read_text(encoding="utf-8")


def schema_fingerprint(schema: Any) -> bytes:
    """CRC-64-AVRO of the parsing canonical form, 8 bytes in header order."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


class Current(NamedTuple):
    """What a record is written with: schema, and header."""

    schema: Any
    header: bytes


@cache
def current(name: str) -> Current:
    """Of one record alone: nobody waits for schemas that it never meets."""
    raw = json.loads(schema_text(name))
    schema = _light(_with_bytes_defaults(parse_schema(raw, named_schemas={})))
    return Current(schema, MARKER + schema_fingerprint(raw))


class Registry:
    """Every schema that a record was ever written with, by fingerprint.

    Current schemas come from `avsc/`, older ones from `history/NAME/*.avsc`. Nothing is ever removed from there.
    It is made when a header is not that of the record which is expected, as it is written now.
    """

    def __init__(self) -> None:
        self.current: dict[str, Any] = {}
        self.header: dict[str, bytes] = {}
        self.writers: dict[bytes, tuple[str, Any]] = {}
        for record in TOP_LEVEL:
            name = record.__name__
            self.current[name], self.header[name] = current(name)
            self.writers[self.header[name][len(MARKER) :]] = (name, self.current[name])
            for raw in _history(name):
                self.writers.setdefault(schema_fingerprint(raw), (name, _light(parse_schema(raw, named_schemas={}))))


def _light(schema: Any) -> Any:
    """Without those named types that the schema never refers to by their names: fastavro copies the table of all of
    them for each record that it writes or reads, which took up to a third of the time.
    """
    known = schema["__named_schemas"]
    return {**schema, "__named_schemas": {name: known[name] for name in sorted(_referred(schema) & known.keys())}}


def _referred(schema: Any) -> set[str]:
    """Types that stand in a schema by their names alone."""
    if isinstance(schema, str):
        return {schema}
    if isinstance(schema, dict):
        inside = [schema[key] for key in ("type", "items", "values") if key in schema]
        schema = [*inside, *schema.get("fields", ())]
    return set[str]().union(*map(_referred, schema))


def _with_bytes_defaults(schema: Any) -> Any:
    """fastavro hands a default of type bytes out as the text that JSON has for it (measured, 1.13.1): mend it here."""
    if isinstance(schema, dict):
        if schema.get("type") == "bytes" and isinstance(schema.get("default"), str):
            return {**schema, "default": schema["default"].encode("latin-1")}
        return {key: _with_bytes_defaults(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_with_bytes_defaults(part) for part in schema]
    return schema


@cache
def registry() -> Registry:
    return Registry()


@cache
def writer_schemas(name: str) -> dict[str, Any]:
    """Every schema that a record was ever written with, by its fingerprint in hexadecimal. Not to be changed: fastavro
    takes 12 ms for the fingerprints of an Entry, and every file of a log has them.
    """
    return {schema_fingerprint(schema).hex(): schema for schema in (json.loads(schema_text(name)), *_history(name))}


def _history(name: str) -> list[Any]:
    folder = resources.files("antdt_schemas") / "history" / name
    return [json.loads(old.read_text(encoding="utf-8")) for old in folder.iterdir()] if folder.is_dir() else []


def encode(record: Any) -> bytes:
    """A record as bytes: header, then its Avro body."""
    write, out = _writer(type(record)), io.BytesIO()  # type: ignore[arg-type]
    if write.last_of(record) == write.defaults:
        schema, plain = write.first
        fastavro.schemaless_writer(out, schema, plain(record))
        return write.header + out.getvalue() + write.last
    schema, plain = write.whole
    fastavro.schemaless_writer(out, schema, plain(record))
    return write.header + out.getvalue()


class _Writer(NamedTuple):
    """How records of a class are written: schema, and what makes of one what fastavro takes. Most have nothing but
    defaults in their last fields, whose bytes are known: so an answer of the ledger takes two thirds of the time.
    """

    header: bytes
    whole: tuple[Any, Convert]
    first: tuple[Any, Convert]
    last_of: Convert
    defaults: Any
    last: bytes


@cache
def _writer(kind: Any) -> _Writer:
    (schema, header), hints, known = current(kind.__name__), typing.get_type_hints(kind), fields(kind)
    names, count = [f.name for f in known], len(known)
    assert names == [f["name"] for f in schema["fields"]], kind
    while count > 1 and known[count - 1].default is not MISSING and hints[names[count - 1]] is not float:
        count -= 1  # 0.0 equals -0.0, which has other bytes
    usual, out = SimpleNamespace(**{f.name: f.default for f in known[count:]}), io.BytesIO()
    parts = [
        ({**schema, "fields": schema["fields"][part]}, _plain_of(kind, names[part]))
        for part in (slice(count), slice(count, None))
    ]
    fastavro.schemaless_writer(out, parts[1][0], parts[1][1](usual))
    last_of = attrgetter(*names[count:]) if names[count:] else lambda _: ()
    return _Writer(header, (schema, _plain(kind)), parts[0], last_of, last_of(usual), out.getvalue())


def decode(data: bytes | None, expected: type[R]) -> R:
    """The record in `data`.

    Raises:
        UnknownSchema: the writer's schema is not known here.
        Undecodable: these bytes are no such record; the message says why.
    """
    read = _reader(expected)  # type: ignore[arg-type]
    schemas = read.schemas.get(data[:HEADER_SIZE]) if data else None
    if data is None or schemas is None or len(data) > MAX_BYTES:
        schemas = _other_schemas(expected.__name__, data)
        assert data is not None and schemas[1] is not None
        read.schemas[data[:HEADER_SIZE]] = schemas
    # Over bytes in memory no length in the data can claim more than there is: a read of 2^62 bytes returns the rest,
    # and arrays grow item by item, each of which takes at least a byte.
    # But text that claims to be longer than the rest is cut short in silence: the byte behind the end shows it.
    body = io.BytesIO(data + b"\0")
    body.seek(HEADER_SIZE)
    try:
        record: R = read.typed(fastavro.schemaless_reader(body, *schemas, return_record_name=True))
    except Exception as error:
        what = f"{type(error).__name__} {error} in {_peek(data)}"
        raise Undecodable(f"Not a {expected.__name__}: {what}.") from error
    end = body.tell()
    if end != len(data):
        wrong = f"it ends too early, in {_peek(data)}" if end > len(data) else f"{len(data) - end} bytes follow its end"
        raise Undecodable(f"Not a {expected.__name__}: {wrong}.")
    return record


class _Reader(NamedTuple):
    """How records of a class are read: the schemas of writer and reader by the header that they are told by, where the
    two are one without the second; and what makes a record of what fastavro gives.
    """

    schemas: dict[bytes, tuple[Any, Any]]
    typed: Convert


@cache
def _reader(kind: Any) -> _Reader:
    schema, header = current(kind.__name__)
    return _Reader({header: (schema, None)}, _typed(kind))


def _other_schemas(name: str, data: bytes | None) -> tuple[Any, Any]:
    """Of writer and reader, for a record that is not written as it is now. Errors: as `decode`."""
    if not data or data[:2] != MARKER or len(data) < HEADER_SIZE:
        framed = " It may be framed for a schema registry: see wire.framing." if data and data[0] == 0 else ""
        what = f"{_peek(data)} does not begin with the Avro single-object marker c301"
        raise Undecodable(f"Not a {name}: {what}.{framed}")
    if len(data) > MAX_BYTES:
        raise Undecodable(f"Not a {name}: {len(data)} bytes, more than the {MAX_BYTES} that a record may have.")
    found = registry().writers.get(data[2:HEADER_SIZE])
    if found is None:
        raise UnknownSchema(
            f"A {name} was written with schema fingerprint {data[2:HEADER_SIZE].hex()}, unknown to this version.",
            "Upgrade antdt to the writer's version or newer.",
        )
    if found[0] != name:
        raise Undecodable(f"Expected a {name}, found a {found[0]}.")
    return found[1], current(name).schema


def decode_one_of(data: bytes | None, expected: Sequence[type[Any]]) -> Any:
    """The record in `data`, of one of these types; of the first where the header says none. Errors: as `decode`."""
    kind = expected[0]
    if data and len(expected) > 1 and data[:HEADER_SIZE] != current(kind.__name__).header:
        kind = next((one for one in expected if begins_as(data, one)), kind)
    return decode(data, kind)


def begins_as(data: bytes, expected: type[Any]) -> bool:
    """Whether these bytes begin with the header of such a record, of any age."""
    return name_of(data) == expected.__name__


def name_of(data: bytes) -> str | None:
    """What record these bytes say that they are, of any age; None if of none that is known."""
    found = registry().writers.get(data[2:HEADER_SIZE]) if data[:2] == MARKER else None
    return found[0] if found is not None else None


def _peek(data: bytes | None) -> str:
    return "an empty value" if not data else f"{len(data)} bytes ({data[:12].hex()}…)"


# -- records to what fastavro takes, and back: converters are built once for each class


def _parts(kind: Any, convert: Callable[[Any], Convert]) -> tuple[list[str], list[tuple[str, Convert]]]:
    """The fields of a record, and how those among them are converted that are not taken as they are."""
    hints = typing.get_type_hints(kind)
    parts = [(f.name, convert(hints[f.name])) for f in fields(kind)]
    return [name for name, _ in parts], [(name, one) for name, one in parts if one is not _same]


def _members(kind: Any) -> list[Any]:
    """The classes of a union, but for None; none where it is no union."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return [one for one in typing.get_args(kind) if one is not types.NoneType] if is_union else []


def _plain_of(kind: Any, names: Sequence[str]) -> Convert:
    """Of some fields of a record."""
    other = [(name, convert) for name, convert in _parts(kind, _plain)[1] if name in names]
    simple = [name for name in names if name not in dict(other)]

    def record(value: Any) -> Any:
        out = {name: getattr(value, name) for name in simple}
        for name, convert in other:
            out[name] = convert(getattr(value, name))
        return out

    return record


@cache
def _plain(kind: Any) -> Convert:
    if is_dataclass(kind):
        return _plain_of(kind, [f.name for f in fields(kind)])
    if typing.get_origin(kind) is tuple:
        of = typing.get_args(kind)[0]
        item = _plain(of)
        if item is _same:
            return list if of is int or of is float or of is str else _same
        return lambda value: [item(x) for x in value]
    members = _members(kind)
    if len(members) == 1:
        inner = _plain(members[0])
        return _same if inner is _same else lambda value: None if value is None else inner(value)
    table = {m: (f"{NAMESPACE}.{m.__name__}", _plain(m)) for m in members}

    def union(value: Any) -> Any:
        name, convert = table[type(value)]
        return name, convert(value)

    return union if members else _same


@cache
def _typed(kind: Any) -> Convert:
    if is_dataclass(kind):
        names, other = _parts(kind, _typed)
        # What the __init__ of a frozen class does through object.__setattr__, in half of its time.
        slots = [(name, getattr(kind, name).__set__) for name in names]
        make = object.__new__

        def record(value: Any) -> Any:
            for name, convert in other:  # in place: nobody else has these dicts
                value[name] = convert(value[name])
            out = make(cast(Any, kind))
            for name, put in slots:
                put(out, value[name])
            return out

        return record
    if typing.get_origin(kind) is tuple:
        item = _typed(typing.get_args(kind)[0])
        return tuple if item is _same else lambda value: tuple(item(x) for x in value)
    members = _members(kind)
    if len(members) == 1:
        inner = _typed(members[0])
        if is_dataclass(members[0]):  # fastavro names the branch
            return lambda value: None if value is None else inner(value[1])
        return _same if inner is _same else lambda value: None if value is None else inner(value)
    if members:
        table = {f"{NAMESPACE}.{m.__name__}": _typed(m) for m in members}
        return lambda value: table[value[0]](value[1])
    return kind if isinstance(kind, type) and issubclass(kind, StrEnum) else _same


def _same(value: Any) -> Any:
    return value


def to_json(record: Any) -> dict[str, Any]:
    """A record as JSON-ready values; bytes become hexadecimal, a union's branch becomes `type`."""
    out = {"type": type(record).__name__}
    for f in fields(record):
        out[f.name] = _json(getattr(record, f.name))
    return out


def _json(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [_json(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
