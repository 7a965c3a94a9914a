"""Real clients on a real broker that hear nothing any more, though their connections live; and topics that go away."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import pytest
from antdt.connect.client import Client, ClientOptions
from antdt.worker.plans import Plans
from antdt.worker.session import Session, SessionOptions, Where
from antdt.worker.telemetry import Telemetry
from antdt_schemas import codec, hearing, topics
from antdt_schemas.connection import Connection
from antdt_schemas.deafness import deafened, strike
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.hearing import TopicGone
from antdt_schemas.offsets import watermarks
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.kafka import topics_admin
from antdt_streams.ledger.requests import unread
from antdt_streams.ledger.service import Ledger
from antdt_streams.runtime.service import Batch
from antdt_streams.runtime.source import Bounds, Membership, Source
from antdt_streams.views.job import audit_of
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.helpers.counting import steps
from tests.helpers.ledger_thread import SPEC, WITHIN_S, LedgerThread, asker, eventually, replayed

pytestmark = pytest.mark.kafka


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that makes the consumers of this process deaf."""
    file = tmp_path / "deaf"
    monkeypatch.setattr(confluent_kafka, "Consumer", deafened(confluent_kafka.Consumer, file))
    monkeypatch.setattr(hearing, "HEARING", hearing.Hearing(ask_after_s=0.2, deaf_s=0.8))
    return file


def test_a_ledger_and_a_worker_that_fall_deaf_hear_again(
    connection: Connection, job: str, tmp_path: Path, deaf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topics_admin.create(connection, job)
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path / "l"):
        worker.join()
        worker.train(1)
        strike(deaf)
        worker.train(2)
        fold = replayed(connection, job)
    assert fold.state is not None
    assert fold.state.line.committed == 3
    for topic in (topics.REQUESTS, topics.REPLIES):
        assert f"event=deaf topic={topic.name(job)}" in caplog.text


class Deaf(confluent_kafka.Consumer):
    """Hears nothing, ever."""

    def poll(self, timeout: float = -1) -> None:  # type: ignore[override]
        super().poll(timeout)


def deafen(led: LedgerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger in office gets no requests any more, by no client."""
    reader = led.ledger.requests._reader
    eventually(lambda: led.ledger.requests.topic_id != "", "in office")
    monkeypatch.setattr(reader, "_make", lambda settings: Deaf(dict(settings)))
    reader.consumer = Deaf(dict(reader._settings))


@contextmanager
def writing(connection: Connection, topic: str, value: bytes) -> Iterator[None]:
    """Somebody writes this, ten times a second."""
    producer, over = Producer(connection.producer()), threading.Event()

    def write() -> None:
        while not over.wait(0.1):
            producer.produce(topic, value, partition=0)
            producer.poll(0)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        producer.flush(5)


def test_a_standby_takes_office_from_a_leader_that_takes_no_requests(
    connection: Connection, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topics_admin.create(connection, job)
    with (
        asker(connection, job) as worker,
        LedgerThread(connection, job, tmp_path / "a") as leader,
        LedgerThread(connection, job, tmp_path / "b", standby=True, standby_patience_s=0.5),
        writing(connection, topics.SHARD_LOG.name(job), b"somebody else's"),  # it is no sign of life
    ):
        worker.join()
        deafen(leader, monkeypatch)
        worker.train(1)
    assert "requests were not answered" in caplog.text
    assert "took office" in caplog.text


def test_a_leader_that_cannot_read_its_requests_resigns(
    connection: Connection, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "HEARING", hearing.Hearing(ask_after_s=0.2, deaf_s=0.4, replacements_max=1))
    topics_admin.create(connection, job)
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path) as leader:
        worker.join()
        deafen(leader, monkeypatch)

        def asked_in_vain() -> bool:
            worker.producer.produce(topics.REQUESTS.name(job), b"\xc3\x01 no request", "w0", 0)
            worker.producer.poll(0.05)
            return leader.error is not None

        eventually(asked_in_vain, "it resigns")
        error, leader.error = leader.error, None
    assert isinstance(error, Unavailable)
    assert "cannot read its requests, and resigns" in str(error)


class Positions:
    """An owner of partitions that only remembers how far it is."""

    def __init__(self) -> None:
        self.next, self.begun = 0, 0

    def begin(self, partition: int, assignment: int, bounds: Bounds) -> int:
        self.begun += 1
        return self.next

    def end(self, partitions: Iterable[int], *, lost: bool) -> None: ...

    def positions(self) -> Mapping[int, int]:
        return {0: self.next}

    def put(self, batch: Batch) -> bool:
        assert batch.first_offset == self.next
        self.next += len(batch.records)
        return True


@pytest.mark.parametrize("instance", [None, "main"])
def test_a_member_of_a_group_that_falls_deaf_joins_anew(
    connection: Connection, job: str, deaf: Path, instance: str | None
) -> None:
    topics_admin.create(connection, job)
    topic, producer, owner = topics.STEPS.name(job), Producer(connection.producer()), Positions()
    halted, membership = threading.Event(), Membership(f"antdt.{job}.counting", instance)
    source = Source(connection, topic, topics_admin.topic_ids(connection, job)["steps"], membership, owner, halted)
    thread = threading.Thread(target=source.read, args=(owner.put,), daemon=True)
    thread.start()
    try:
        producer.produce(topic, codec.encode(steps("w0", 1)), partition=0)
        eventually(lambda: owner.next == 1, "the first record")
        strike(deaf)
        for number in range(2, 5):
            producer.produce(topic, codec.encode(steps("w0", number)), partition=0)
        assert producer.flush(10) == 0
        eventually(lambda: owner.next == 4, "what came since")
        assert owner.begun == 2
    finally:
        source.halt()
        thread.join(WITHIN_S)
    assert not thread.is_alive()


def recreate(connection: Connection, job: str, topic: topics.Topic) -> None:
    """Somebody deletes a topic and creates it again."""
    admin, name = AdminClient(connection.admin()), topic.name(job)
    admin.delete_topics([name])[name].result(WITHIN_S)
    eventually(lambda: name not in admin.list_topics(timeout=10).topics, "deleted")
    topics_admin.create(connection, job, resume=True)


def test_requests_that_are_gone_cost_nothing_and_the_log_says_so(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    topics_admin.create(connection, job)
    name, admin = topics.REQUESTS.name(job), AdminClient(connection.admin())
    foreign = Producer(connection.producer(transactional_id=f"{job}-foreign"))
    foreign.init_transactions()

    def write_and_commit() -> None:
        foreign.begin_transaction()
        foreign.produce(name, b"not ours", partition=0)
        foreign.commit_transaction()

    with asker(connection, job) as worker:
        with LedgerThread(connection, job, tmp_path / "l"):
            worker.join()
            write_and_commit()  # its marker is a hole
            worker.train(1)
        write_and_commit()  # nobody reads it before it is removed
        everything = TopicPartition(name, 0, -1)
        next(iter(admin.delete_records([everything]).values())).result(WITHIN_S)
        assert "removed before they were read" in unread(connection, job)
        with pytest.raises(UsageError, match="Nothing is lost"):
            Ledger(connection, job, tmp_path / "l").recover("is anything lost?")
        with LedgerThread(connection, job, tmp_path / "l", identity_every_s=0.2):
            worker.train(1)
            recreate(connection, job, topics.REQUESTS)
            worker.train(1)
    assert unread(connection, job) == ""
    report = audit_of(connection, job)
    assert (report["steps"], report["broken"]) == (3, None)
    moves = report["requests_moved"]
    assert ["removed before they were read" in moves[0]["reason"], "created again" in moves[-1]["reason"]] == [True] * 2
    assert (len(moves), moves[-1]["next"]) == (2, 0)


def test_a_worker_ends_when_its_requests_are_gone_and_does_not_bring_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "HEARING", hearing.Hearing(ask_after_s=0.2, gone_s=0.5))
    properties = {"auto.create.topics.enable": "true"}  # as brokers have it by default
    with EmbeddedBroker(tmp_path / "broker", BrokerOptions(properties=properties)) as broker:
        connection, job = broker.connection, "gone"
        topics_admin.create(connection, job)
        admin, producer = AdminClient(connection.admin()), Producer(connection.producer())
        decisions, requests = TopicPartition(topics.DECISIONS.name(job), 0, -1), topics.REQUESTS.name(job)
        producer.produce(decisions.topic, b"an old plan", partition=0)
        assert producer.flush(10) == 0
        next(iter(admin.delete_records([decisions]).values())).result(WITHIN_S)
        session = Session("w0", "w0.0", SPEC, Where("h", 1), SessionOptions())
        client = Client(ClientOptions(connection, job), session, Plans(8), Telemetry("w0", "w0.0", "n", ""))
        client.start()
        try:
            eventually(lambda: watermarks(client._reader.consumer, requests, 0)[1] > 1, "it asks, and asks again")
            assert client.failure is None, "plans that were removed are no matter"
            admin.delete_topics([requests])[requests].result(WITHIN_S)
            with pytest.raises(TopicGone, match=f"{requests} is gone"):
                client.wait(lambda: False, WITHIN_S)
        finally:
            client._sender._producer.purge()  # nobody takes what it asks
            client.stop(leave=False)
        assert requests not in admin.list_topics(timeout=10).topics
        broker.kill()  # nobody wants its data
