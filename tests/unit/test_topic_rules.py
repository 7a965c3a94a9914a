"""Which deviations of a topic stop a job, which are said, and which are none."""

from __future__ import annotations

import pytest
from antdt_schemas.errors import Mismatch
from antdt_schemas.topics import (
    BY_SUFFIX,
    DECISIONS,
    MESSAGE_BYTES_MIN,
    RECORD_BYTES_MAX,
    REPLIES,
    REQUESTS,
    SHARD_LOG,
    SNAPSHOTS,
    STEPS,
    TOPICS,
    Topic,
    record_bytes,
)
from antdt_streams.kafka.topic_rules import absent, compare, few_copies
from antdt_streams.kafka.topics_admin import refuse_fatal

FATAL, SAID, FINE = "fatal", "said", "fine"


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.suffix)
@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_what_is_created_is_as_it_must_be(topic: Topic, copies: int) -> None:
    made = topic.settings(copies)
    assert compare(topic, "j", topic.partitions, copies, made) == []
    assert made["min.insync.replicas"] == ("2" if copies >= 3 else "1")
    assert made["unclean.leader.election.enable"] == "false"
    assert record_bytes(int(made["max.message.bytes"])) == RECORD_BYTES_MAX


@pytest.mark.parametrize(
    ("suffix", "copies", "key", "value", "expected"),
    [
        ("shard-log", 1, "retention.ms", "604800000", FATAL),
        ("shard-log", 1, "retention.bytes", "1000000", FATAL),
        ("decisions", 1, "retention.ms", "604800000", FATAL),
        ("requests", 1, "retention.ms", "3000", SAID),
        ("requests", 1, "retention.bytes", "1000", SAID),
        ("shard-log", 1, "cleanup.policy", "compact", FATAL),
        ("shard-log", 1, "cleanup.policy", "compact,delete", FATAL),
        ("shard-log", 1, "cleanup.policy", "", FINE),
        ("requests", 1, "cleanup.policy", "compact", FATAL),
        ("snapshots", 1, "cleanup.policy", "delete", SAID),
        ("steps", 1, "message.timestamp.type", "CreateTime", FATAL),
        ("shard-log", 3, "unclean.leader.election.enable", "true", FATAL),
        ("replies", 3, "unclean.leader.election.enable", "true", SAID),
        ("shard-log", 1, "max.message.bytes", "65536", SAID),
        ("replies", 1, "max.message.bytes", "1024", FATAL),
        ("replies", 1, "max.message.bytes", "20971520", FINE),
        ("shard-log", 3, "min.insync.replicas", "1", SAID),
        ("shard-log", 3, "min.insync.replicas", "3", SAID),
        ("shard-log", 5, "min.insync.replicas", "3", FINE),
        ("shard-log", 1, "min.insync.replicas", "2", FATAL),
        ("snapshots", 1, "segment.bytes", "1073741824", SAID),
    ],
)
def test_what_differs_is_judged(suffix: str, copies: int, key: str, value: str, expected: str) -> None:
    topic = BY_SUFFIX[suffix]
    found = compare(topic, "j", topic.partitions, copies, {**topic.settings(copies), key: value})
    assert [FATAL if d.fatal else SAID for d in found] == ([] if expected is FINE else [expected])
    for d in found:
        assert (d.what, d.found) == (key, value)
        assert d.why
        assert d.mend("j") == "`antdt topics check j --repair` sets it."


def test_a_broker_that_lacks_a_setting_does_not_differ() -> None:
    assert compare(SHARD_LOG, "j", 1, 1, {"retention.ms": "-1", "min.insync.replicas": None}) == []


def test_what_cannot_be_set_says_what_else_to_do() -> None:
    (log,) = compare(SHARD_LOG, "j", 2, 1, SHARD_LOG.settings())
    (replies,) = compare(REPLIES, "j", 2, 1, REPLIES.settings())
    assert log.fatal
    assert "another name" in log.mend("j")
    assert "Delete that topic" in replies.mend("j")
    assert absent(STEPS, "j").mend("j") == "`antdt topics create j --resume` creates it."


def test_few_copies_on_many_brokers_are_said_once_for_each_log() -> None:
    few = [d for topic in TOPICS for d in few_copies(topic, "j", 1, brokers=3)]
    assert [d.topic for d in few] == [DECISIONS.name("j"), SHARD_LOG.name("j")]
    assert not any(d.fatal for d in few)
    assert not few_copies(SHARD_LOG, "j", 3, brokers=5)
    assert not few_copies(SHARD_LOG, "j", 1, brokers=1)


def test_a_refusal_says_what_comes_of_it_and_what_mends_it() -> None:
    found = compare(SHARD_LOG, "j", 1, 1, {**SHARD_LOG.settings(), "retention.ms": "3000"})
    with pytest.raises(Mismatch) as caught:
        refuse_fatal(found, "j")
    assert str(caught.value) == (
        "retention.ms of antdt.j.shard-log differs: expected -1, found 3000. So what is older is removed. "
        "`antdt topics check j --repair` sets it."
    )
    assert caught.value.exit_code == 42
    refuse_fatal(compare(REQUESTS, "j", 1, 1, {**REQUESTS.settings(), "retention.ms": "3000"}), "j")


def test_small_topics_still_have_room() -> None:
    assert 8_192 < record_bytes(MESSAGE_BYTES_MIN) < MESSAGE_BYTES_MIN
    assert SNAPSHOTS.settings()["cleanup.policy"] == "compact"
