"""Headers for tools of others: what they say, where they are, and that they are small enough to change nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from antdt_schemas import cloud_events, codec, records
from antdt_schemas.connection import KEY_BYTES
from antdt_schemas.errors import UsageError
from antdt_schemas.topics import TOPICS

CAUSE = records.Cause(0, 7, 0)
DECISION = records.Decision(CAUSE, 3, records.Action.ADJUST_BS, (), 1.0, 0, "", "nd", 1, "why", 0.1, 7, 7)
VALUE = codec.encode(DECISION)
LONGEST = "j" * 41
# What librdkafka counts of a record beside its key, its value and its headers.
OVERHEAD_BYTES = 64


def test_they_are_those_of_the_binary_mode() -> None:
    found = dict(cloud_events.headers("antdt.my-job.decisions", 0, VALUE, "controller", now_s=1_800_000_000.25))
    assert re.fullmatch(rb"decisions/0/[0-9a-f]{16}", found.pop("ce_id"))
    assert found == {
        "ce_specversion": b"1.0",
        "ce_source": b"/antdt/my-job/controller",
        "ce_type": b"dev.antdt.decision.v1",
        "ce_time": b"2027-01-15T08:00:00.250Z",
        "content-type": b"application/avro",
    }


def test_the_same_content_has_the_same_id_and_another_one_another() -> None:
    def id_of(value: bytes, once: bytes = b"") -> bytes:
        return dict(cloud_events.headers("antdt.j.decisions", 0, value, "controller", once))["ce_id"]

    assert id_of(VALUE) == id_of(VALUE)
    assert len({id_of(VALUE), id_of(VALUE + b"x"), id_of(VALUE, b"1"), id_of(VALUE, b"2")}) == 4


@pytest.fixture(params=["", "off", "all"])
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(cloud_events.ENV, request.param)
    cloud_events.chosen.cache_clear()
    yield request.param
    cloud_events.chosen.cache_clear()


def test_topics_with_many_records_have_none_and_the_log_on_request(said: str) -> None:
    found = {topic.suffix for topic in TOPICS if cloud_events.headers(topic.name("j"), 0, VALUE, "controller")}
    few = {"decisions", "measurements", "dead-letters"}
    assert found == {"": few, "off": set(), "all": few | {"shard-log"}}[said]


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cloud_events.ENV, "yes")
    cloud_events.chosen.cache_clear()
    with pytest.raises(UsageError, match="say off or all"):
        cloud_events.headers("antdt.j.decisions", 0, VALUE, "controller")
    cloud_events.chosen.cache_clear()


def test_the_largest_record_still_fits_with_them(said: str) -> None:
    for topic in TOPICS:
        found = cloud_events.headers(topic.name(LONGEST), 0, VALUE, "controller")
        size = sum(len(name) + len(value) + 4 for name, value in found)
        assert size + OVERHEAD_BYTES < KEY_BYTES, topic.suffix
