"""The codec: what goes in comes out, and bytes that lie about lengths cost neither memory nor an error of ours."""

from __future__ import annotations

import dataclasses
import inspect
import io
import subprocess
import sys
import tracemalloc
import types
import typing
from enum import StrEnum
from typing import Any

import fastavro
import pytest
from antdt_schemas import codec, records
from antdt_schemas.errors import Undecodable
from hypothesis import given, settings
from hypothesis import strategies as st

CLAIMS = {
    "longer than the record": 1 << 12,
    "2^31": 1 << 31,
    "2^62": 1 << 62,
    "the least long": -(1 << 63),
}
PEAK_BYTES_MAX = 1 << 20


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field, by its type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{f.name: values(hints[f.name]) for f in dataclasses.fields(kind)})
    if origin is tuple:
        return st.lists(values(args[0]), max_size=4).map(tuple)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values, args))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return st.sampled_from(kind)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(-(2**31), 2**31 - 1)
    if kind is float:
        return st.floats(allow_nan=False, width=32)  # what telemetry has
    return {str: st.text(max_size=8), bytes: st.binary(max_size=20), types.NoneType: st.none()}[kind]


@given(st.one_of(*map(values, codec.TOP_LEVEL)))
@settings(max_examples=400, deadline=None)
def test_every_record_comes_back_as_it_was(record: Any) -> None:
    data = codec.encode(record)
    assert codec.decode(data, type(record)) == record
    with pytest.raises(Undecodable, match="1 bytes follow"):
        codec.decode(data + b"\0", type(record))


@given(st.one_of(*map(values, codec.TOP_LEVEL)))
@settings(max_examples=200, deadline=None)
def test_last_fields_that_have_their_defaults_are_written_as_any_others(record: Any) -> None:
    name, known = type(record).__name__, codec.registry()
    defaults = {f.name: f.default for f in dataclasses.fields(record) if f.default is not dataclasses.MISSING}
    for one in (record, dataclasses.replace(record, **defaults)):
        out = io.BytesIO(known.header[name])
        out.seek(codec.HEADER_SIZE)
        fastavro.schemaless_writer(out, known.current[name], codec._plain(type(one))(one))
        assert codec.encode(one) == out.getvalue()


def zigzag(value: int) -> bytes:
    """A long as Avro has it."""
    number, out = (value << 1) ^ (value >> 63), bytearray()
    number &= (1 << 64) - 1
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def commit() -> bytes:
    """A request with strings, arrays in arrays and bytes; its counts are those below."""
    ranges = tuple(tuple(range(5)) for _ in range(9))
    body = records.Commit(1, 1, ranges, (0,) * 9, b"l" * 16, -1)
    return codec.encode(records.Request("w" * 33, "w0-1", 1, body, b"a" * 21))


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("place", ["string", "bytes", "array", "array in an array", "array of a known size in bytes"])
def test_a_claimed_length_allocates_nothing(place: str, claim: str) -> None:
    data, length = commit(), zigzag(CLAIMS[claim])
    honest = {
        "string": zigzag(33) + b"www",
        "bytes": zigzag(21) + b"aaa",
        "array": zigzag(9) + zigzag(5) + zigzag(0),
        "array in an array": zigzag(5) + zigzag(0) + zigzag(1),
        "array of a known size in bytes": zigzag(9) + zigzag(5) + zigzag(0),
    }[place]
    assert data.count(honest) >= 1
    lie = length + honest[1:]
    if place == "array of a known size in bytes":
        lie = zigzag(-9) + length + honest[1:]
    forged = data.replace(honest, lie, 1)
    codec.decode(data, records.Request)  # builds what is built once
    tracemalloc.start()
    try:
        if place == "array of a known size in bytes":
            # Whoever does not skip the block has no use for its size: it is a legal way to write the same.
            assert codec.decode(forged, records.Request) == codec.decode(data, records.Request)
        else:
            with pytest.raises(Undecodable):
                codec.decode(forged, records.Request)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_a_record_that_is_cut_anywhere_is_undecodable() -> None:
    data = commit()
    for end in range(len(data)):
        with pytest.raises(Undecodable):
            codec.decode(data[:end], records.Request)


def test_bytes_at_the_very_end_that_are_shorter_than_they_claim_are_undecodable() -> None:
    """The reader of Avro hands out what is left, and says nothing."""
    whole = codec.encode(records.Request("w0", "w0.0", 1, records.Leave(1), b"sixteen bytes!!!"))
    assert whole.endswith(b"sixteen bytes!!!"), "the last field"
    with pytest.raises(Undecodable, match="ends too early"):
        codec.decode(whole[:-1], records.Request)


RECORDS = [kind for kind in vars(records).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_constructor_is_what_a_dataclass_has_and_looks_up_no_field(kind: Any) -> None:
    twin = type(kind.__name__, (), {"__annotations__": {}})
    for field in dataclasses.fields(kind):
        twin.__annotations__[field.name] = field.type
        if field.default is not dataclasses.MISSING:
            setattr(twin, field.name, field.default)
    usual = dataclasses.dataclass(frozen=True, slots=True)(twin)
    numbers = range(len(dataclasses.fields(kind)))
    for _ in range(2):  # before it was ever used, and then
        assert inspect.signature(kind) == inspect.signature(usual)
        assert dataclasses.astuple(kind(*numbers)) == tuple(numbers)
    assert "__setattr__" not in kind.__init__.__code__.co_names


def test_fastavro_is_given_no_table_of_types_but_of_those_that_a_schema_refers_to() -> None:
    schemas = [schema for _, schema in codec.registry().writers.values()]
    for schema in (*schemas, *codec.registry().current.values()):
        text = {key: value for key, value in schema.items() if key != "__named_schemas"}
        assert all(repr(text).count(f"'{name}'") > 1 for name in schema["__named_schemas"])
    assert "dev.antdt.Cause" in codec.registry().current["Decision"]["__named_schemas"]


def test_who_meets_one_record_alone_makes_no_schema_of_others() -> None:
    code = (
        "from antdt_schemas import codec, records\n"
        "letter = records.DeadLetter('monitor', 'topic', 0, 1, 'reason', b'', 0)\n"
        "assert codec.decode(codec.encode(letter), records.DeadLetter) == letter\n"
        "print(codec.current.cache_info().currsize, codec.registry.cache_info().currsize)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout.split() == ["1", "0"]
