"""Framing for a schema registry: what is written, what is read, and a registry that is away or says no."""

from __future__ import annotations

import io
import json
import urllib.error
from typing import Any

import pytest
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.framing import KINDS, REGISTRY, SINGLE_OBJECT, TRIES, Framer, Wire, wire_of
from antdt_schemas.topics import TOPICS

CAUSE = records.Cause(0, 7, 0)
DECISION = records.Decision(CAUSE, 3, records.Action.ADJUST_BS, (), 1.0, 0, "", "nd", 1, "why", 0.1, 7, 7)
VALUE = codec.encode(DECISION)
TOPIC = "antdt.j.decisions"
WIRE = Wire(REGISTRY, "http://registry", "ann:secret")


class Registry:
    """A registry in memory: ids from 1 on, by the text of the schema. code: it answers with this status instead."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.asked: list[str] = []
        self.code = 0

    def __call__(self, request: Any, timeout_s: float) -> bytes:
        self.asked.append(f"{request.get_method()} {request.selector}")
        assert request.headers["Authorization"].startswith("Basic ")
        assert timeout_s <= 5
        if self.code == -1:
            raise urllib.error.URLError("nobody is there")
        if self.code:
            raise urllib.error.HTTPError(request.full_url, self.code, "no", {}, io.BytesIO(b"not you"))  # type: ignore[arg-type]
        if request.data is not None:
            text = json.loads(request.data)["schema"]
            if text not in self.texts:
                self.texts.append(text)
            return json.dumps({"id": self.texts.index(text) + 1}).encode()
        number = int(request.selector.rsplit("/", 1)[1])
        if not 0 < number <= len(self.texts):
            raise urllib.error.HTTPError(request.full_url, 404, "no", {}, io.BytesIO(b""))  # type: ignore[arg-type]
        return json.dumps({"schema": self.texts[number - 1]}).encode()


def test_a_record_is_framed_and_comes_back() -> None:
    registry = Registry()
    writer, reader = Framer(WIRE, registry), Framer(Wire(SINGLE_OBJECT, WIRE.url, WIRE.user_info), registry)
    framed = writer.framed(TOPIC, VALUE)
    number = int.from_bytes(framed[1:5], "big")
    assert framed[:1] == b"\0" and json.loads(registry.texts[number - 1])["name"] == "Decision"
    assert framed[5:] == VALUE[10:] and len(framed) < len(VALUE)
    assert writer.unframed(TOPIC, framed) == VALUE == reader.unframed(TOPIC, framed)
    assert reader.framed(TOPIC, VALUE) == VALUE, "a reader that is not told to frames nothing"


def test_both_may_be_in_one_topic() -> None:
    framer = Framer(WIRE, Registry())
    mixed = [VALUE, framer.framed(TOPIC, VALUE), VALUE]
    assert [codec.decode(framer.unframed(TOPIC, one), records.Decision) for one in mixed] == [DECISION] * 3


def test_the_registry_is_asked_once_for_each_schema_and_each_id() -> None:
    registry = Registry()
    writer = Framer(WIRE, registry)
    framed, *_ = (writer.framed(TOPIC, VALUE) for _ in range(10))
    assert registry.asked == [f"POST /subjects/dev.antdt.{kind.__name__}/versions" for kind in KINDS]
    del registry.asked[:]
    reader = Framer(WIRE, registry)
    for _ in range(10):
        reader.unframed(TOPIC, framed)
        assert reader.unframed(TOPIC, b"\0\0\0\1\0junk") == b"\0\0\0\1\0junk"
    assert len(registry.asked) == 2


@pytest.mark.parametrize("suffix", ["shard-log", "snapshots"])
def test_what_proves_itself_is_never_framed(suffix: str) -> None:
    registry = Registry()
    framer = Framer(WIRE, registry)
    entry = codec.encode(records.Entry(records.Leader("run", "leader", "me", 1)))
    assert framer.framed(f"antdt.j.{suffix}", entry) == entry
    assert framer.unframed(f"antdt.j.{suffix}", b"\0\0\0\0\1x") == b"\0\0\0\0\1x"
    assert not registry.asked
    assert records.Entry not in KINDS and records.Snapshot not in KINDS


def test_what_every_other_topic_holds_is_framed() -> None:
    held = {kind for topic in TOPICS if topic.suffix not in ("shard-log", "snapshots") for kind in topic.kinds}
    assert set(KINDS) == held


@pytest.mark.parametrize("code", [-1, 500, 503])
def test_a_registry_that_is_away_is_named_and_asked_a_few_times_only(code: int) -> None:
    registry = Registry()
    writer, reader = Framer(WIRE, registry), Framer(WIRE, registry)
    framed = writer.framed(TOPIC, VALUE)
    registry.code, registry.asked = code, []
    with pytest.raises(Unavailable, match=r"http://registry does not answer.*wire.framing"):
        Framer(WIRE, registry).begin()
    with pytest.raises(Unavailable, match="does not answer"):
        reader.unframed(TOPIC, framed)  # and it is not taken for junk
    assert len(registry.asked) == 2 * TRIES
    assert writer.framed(TOPIC, VALUE) == framed, "whoever has begun does not need it"


def test_a_registry_that_refuses_is_named() -> None:
    registry = Registry()
    registry.code = 403
    with pytest.raises(UsageError, match=r"refuses /subjects/dev.antdt.*403 not you"):
        Framer(WIRE, registry).begin()


def test_the_schema_of_somebody_else_is_none_of_ours() -> None:
    registry = Registry()
    registry.texts.append(json.dumps({"type": "record", "name": "Other", "fields": []}))
    value = b"\0\0\0\0\1x"
    framer = Framer(WIRE, registry)
    found = framer.unframed(TOPIC, value)
    with pytest.raises(Exception, match="schema fingerprint"):
        codec.decode(found, records.Decision)


def test_properties_say_how() -> None:
    found = {"wire.framing": ("registry", "f"), "schema.registry.url": ("http://r/", "f")}
    assert wire_of(found) == Wire(REGISTRY, "http://r")
    with pytest.raises(UsageError, match=r"needs schema\.registry\.url"):
        wire_of({"wire.framing": ("registry", "f")})
    with pytest.raises(UsageError, match="say single-object or registry"):
        wire_of({"wire.framing": ("avro", "f")})


def test_a_connection_takes_it_from_where_everything_else_is() -> None:
    environ = {
        "ANTDT_KAFKA_WIRE_FRAMING": "registry",
        "ANTDT_KAFKA_SCHEMA_REGISTRY_URL": "http://r",
        "ANTDT_KAFKA_SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO": "ann:secret",
    }
    connection = Connection.of("h:1", None, environ)
    assert connection.wire == Wire(REGISTRY, "http://r", "ann:secret")
    assert "secret" not in repr(connection) + repr(connection.wire) and not connection.properties
    del environ["ANTDT_KAFKA_WIRE_FRAMING"]
    assert Connection.of("h:1", None, environ).wire == Wire(), "what other tools say of theirs is left alone"
