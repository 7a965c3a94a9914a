"""One loop reads every topic: what it does when a client falls deaf, in virtual time, with clients in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.hearing import Hearing, OutOfRange, Place, Recreated, Told, TopicGone
from antdt_schemas.polling import Reader
from confluent_kafka import KafkaError

REQUESTS, REPLIES = Place("requests"), Place("replies", 3)
MARKER = None  # of a transaction, or a hole that compaction has left: an offset without a record


@dataclass
class Message:
    """What a client returns."""

    place: Place
    at: int
    code: int = 0

    def error(self) -> KafkaError | None:
        return KafkaError(self.code, "so it is") if self.code else None

    def topic(self) -> str:
        return self.place.topic

    def partition(self) -> int:
        return self.place.partition

    def offset(self) -> int:
        return self.at


@dataclass
class Cluster:
    """Topics as lists; answers who asks, and is what clients read. `deaf`: numbers of clients that get nothing."""

    logs: dict[Place, list[bytes | None]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    now_s: float = 100.0
    deaf: set[int] = field(default_factory=set)
    answers: bool = True
    asked: int = 0
    clients: list[Client] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    _told: Told | None = None

    def ask(self, places: Iterable[Place], beside: Iterable[str] = ()) -> None:
        self.asked += 1
        topics = {*(place.topic for place in places), *beside}
        ends = {place: len(self.logs[place]) for place in places if place.topic in self.ids}
        ids = {topic: self.ids[topic] for topic in topics if topic in self.ids}
        self._told = Told(ends, ids, frozenset(topics - set(ids)))

    def answer(self) -> Told | None:
        if not self.answers:
            return Told()
        told, self._told = self._told, None
        return told

    def make(self, settings: Mapping[str, Any]) -> Client:
        assert settings["auto.offset.reset"] == "error"
        assert settings["enable.partition.eof"]
        self.clients.append(Client(self, len(self.clients)))
        return self.clients[-1]


class Client:
    """A consumer of a Cluster; waiting is what makes the time go by."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number, self.closed = cluster, number, False
        self.at: dict[Place, int] = {}
        self.eof: dict[Place, int] = {}

    def assign(self, places: Iterable[Any]) -> None:
        self.at = {Place(p.topic, p.partition): p.offset for p in places}
        self.eof = {}

    def poll(self, wait_s: float) -> Message | None:
        assert not self.closed
        if self.cluster.said:
            return self.cluster.said.pop(0)
        message = None if self.number in self.cluster.deaf else self._next()
        if message is None:
            self.cluster.now_s += wait_s
        return message

    def consume(self, limit: int, wait_s: float) -> list[Message]:
        assert wait_s == 0
        out = []
        while len(out) < limit and (message := self.poll(0)) is not None:
            out.append(message)
        return out

    def _next(self) -> Message | None:
        for place, at in self.at.items():
            log = self.cluster.logs[place]
            while at < len(log) and log[at] is MARKER:
                at += 1
            self.at[place] = at
            if at < len(log):
                self.at[place] += 1
                return Message(place, at)
            if self.eof.get(place) != at:
                self.eof[place] = at
                return Message(place, at, KafkaError._PARTITION_EOF)
        return None

    def get_watermark_offsets(self, at: Any, **_: Any) -> tuple[int, int]:
        return 2, len(self.cluster.logs[Place(at.topic, at.partition)])

    def close(self) -> None:
        self.closed = True


def reader(cluster: Cluster, hearing: Hearing | None = None) -> Reader:
    return Reader(
        Connection("nowhere:1"), hearing=hearing, broker=cluster, make=cluster.make, clock=lambda: cluster.now_s
    )


def a_cluster(records: int = 3) -> Cluster:
    return Cluster({REQUESTS: [b"x"] * records, REPLIES: [b"y"] * records}, {"requests": "id-1", "replies": "id-2"})


def until(cluster: Cluster, holds: Callable[[], bool], poll: Callable[[], object], within_s: float) -> float:
    """Poll until it holds; how long that took."""
    began_s = cluster.now_s
    while not holds():
        assert cluster.now_s - began_s < within_s, "not in time"
        poll()
    return cluster.now_s - began_s


def test_a_client_that_fell_deaf_is_replaced_at_its_position_within_seconds(caplog: pytest.LogCaptureFixture) -> None:
    cluster = a_cluster()
    one, got = reader(cluster), list[int]()
    one.assign({REQUESTS: 0})
    until(cluster, lambda: one.position(REQUESTS) == 3, lambda: one.poll(0.1), 1.0)
    cluster.deaf.add(0)
    cluster.logs[REQUESTS] += [b"x"] * 2

    def poll() -> None:
        got.extend(message.offset() for message in one.poll(0.1))

    took_s = until(cluster, lambda: bool(got), poll, 6.0)
    assert took_s > Hearing().deaf_s
    assert got == [3, 4]
    assert "event=deaf topic=requests partition=0 position=3 end=5" in caplog.text
    assert len(cluster.clients) == 2


def test_an_idle_topic_replaces_nobody_and_is_asked_about_ever_less_often() -> None:
    cluster = a_cluster()
    one = reader(cluster)
    one.assign({REQUESTS: 0, REPLIES: 3})
    began_s = cluster.now_s
    while cluster.now_s - began_s < 600:
        one.poll(0.05)
    assert len(cluster.clients) == 1
    assert cluster.asked <= 600 / Hearing().ask_every_max_s + 2


def test_one_deaf_partition_is_found_beside_one_that_is_busy() -> None:
    cluster = a_cluster()
    one, got = reader(cluster), list[int]()
    one.assign({REQUESTS: 3, REPLIES: 3})
    one.poll(0.1)
    client = cluster.clients[0]
    cluster.logs[REQUESTS].append(b"never delivered")
    del client.at[REQUESTS]

    def poll() -> None:
        cluster.logs[REPLIES].append(b"y")
        cluster.now_s += 0.05
        got.extend(m.offset() for m in one.poll(0.05) if m.topic() == "requests")

    until(cluster, lambda: got == [3], poll, 12.0)


def test_markers_and_holes_at_the_end_are_read_over() -> None:
    cluster = a_cluster()
    cluster.logs[REQUESTS] += [MARKER, MARKER]
    one = reader(cluster)
    one.assign({REQUESTS: 0})
    began_s = cluster.now_s
    assert [m.offset() for m in one.read_to(REQUESTS, 5, 30.0)] == [0, 1, 2]
    assert cluster.now_s - began_s < 1.0
    assert one.position(REQUESTS) == 5
    cluster.logs[REQUESTS].append(b"x")
    assert [m.offset() for m in one.read_to(REQUESTS, 6, 30.0)] == [5]


def test_what_no_client_gets_ends_the_reader_with_what_it_waits_for() -> None:
    cluster = a_cluster()
    cluster.deaf |= set(range(100))
    one = reader(cluster, Hearing(replacements_max=2))
    one.assign({REQUESTS: 1})
    cluster.said.append(Message(REQUESTS, 1, KafkaError._BAD_MSG))
    with pytest.raises(
        Unavailable, match=r"requests/0 has records up to offset 3, but from 1 on none.*3 clients.*so it"
    ):
        until(cluster, lambda: False, lambda: one.poll(0.1), 60.0)
    assert len(cluster.clients) == 3


def test_a_process_that_slept_is_not_deaf() -> None:
    cluster = a_cluster()
    one = reader(cluster)
    one.assign({REQUESTS: 3})
    until(cluster, lambda: cluster.asked > 1, lambda: one.poll(0.1), 10.0)
    cluster.logs[REQUESTS].append(b"x")
    cluster.deaf.add(0)
    one.poll(0.1)
    cluster.now_s += 3600  # between two polls
    one.poll(0.1)
    cluster.deaf.clear()
    assert [m.offset() for m in one.poll(0.1)] == [3]
    assert len(cluster.clients) == 1


def test_a_broker_that_does_not_answer_makes_nobody_deaf() -> None:
    cluster = a_cluster()
    cluster.deaf.add(0)
    cluster.answers = False
    one = reader(cluster)
    one.assign({REQUESTS: 0})
    began_s = cluster.now_s
    while cluster.now_s - began_s < 120:
        one.poll(0.1)
    assert len(cluster.clients) == 1


def test_records_that_are_known_of_need_not_be_asked_for() -> None:
    cluster = a_cluster()
    cluster.deaf.add(0)
    cluster.answers = False
    one = reader(cluster)
    one.assign({REQUESTS: 0})
    assert len(list(one.read_to(REQUESTS, 3, 30.0))) == 3
    assert len(cluster.clients) == 2


def test_a_topic_that_is_gone_or_another_one_is_named_once_the_broker_goes_on_saying_so() -> None:
    for change, error in (
        (lambda c: c.ids.pop("replies"), TopicGone),
        (lambda c: c.ids.update(replies="b"), Recreated),
    ):
        cluster = a_cluster()
        one = reader(cluster)
        one.assign({REQUESTS: 3, REPLIES: 3})
        until(cluster, lambda c=cluster: c.asked > 0, lambda r=one: r.poll(0.1), 5.0)
        one.poll(0.1)
        change(cluster)
        cluster.said.append(Message(REPLIES, 3, KafkaError.UNKNOWN_TOPIC_OR_PART))
        began_s = cluster.now_s
        with pytest.raises(error, match="replies"):
            until(cluster, lambda: False, lambda r=one: r.poll(0.1), 8.0)
        assert cluster.now_s - began_s > Hearing().gone_s


def test_a_topic_that_is_only_written_to_is_looked_at_as_well() -> None:
    cluster = a_cluster()
    cluster.ids["written"] = "id-3"
    one = Reader(
        Connection("nowhere:1"), beside=["written"], broker=cluster, make=cluster.make, clock=lambda: cluster.now_s
    )
    one.assign({REPLIES: 3})
    until(cluster, lambda: cluster.asked > 1, lambda: one.poll(0.1), 5.0)
    cluster.ids["written"] = "another"
    with pytest.raises(Recreated, match="written differs: expected id-3, found another"):
        until(cluster, lambda: False, lambda: one.poll(0.1), 8.0)


def test_a_broker_that_does_not_know_its_topics_yet_ends_nobody() -> None:
    cluster = a_cluster()
    one = reader(cluster)
    one.assign({REPLIES: 3})
    ids, cluster.ids = cluster.ids, {}
    until(cluster, lambda: cluster.asked > 0, lambda: one.poll(0.1), 5.0)
    one.poll(0.1)
    cluster.ids = ids
    for _ in range(200):
        one.poll(0.1)


def test_what_is_not_there_is_named_behind_the_records_that_were() -> None:
    cluster = a_cluster()
    one = reader(cluster)
    one.assign({REQUESTS: 2})
    cluster.deaf.add(0)
    cluster.said += [Message(REQUESTS, 2), Message(REQUESTS, 3, KafkaError._AUTO_OFFSET_RESET)]
    assert [m.offset() for m in one.poll(0.1)] == [2]
    with pytest.raises(OutOfRange, match="offset 3, found 2 to 3") as raised:
        one.poll(0.1)
    assert (raised.value.place, raised.value.low, raised.value.high) == (REQUESTS, 2, 3)
    cluster.said.append(Message(REQUESTS, 3, KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(UsageError, match="READ"):
        one.poll(0.1)
