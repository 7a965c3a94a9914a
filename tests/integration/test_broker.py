"""The embedded broker and the topics of a job, against the real thing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import running
from antdt_schemas.errors import JobTaken, Mismatch, Unavailable, UnknownJob, UsageError
from antdt_schemas.topics import REPLIES, REQUESTS, SHARD_LOG, STEPS, TOPICS, record_bytes
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.grants import grant
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.ledger.service import Ledger
from antdt_streams.storage.snapshots import newest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from tests.helpers.ledger_thread import SPEC, LedgerThread, asker, replayed
from tests.helpers.running import until
from tests.helpers.shared import SharedBroker

pytestmark = pytest.mark.kafka


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def produce(connection: Connection, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer(connection.producer(linger_ms=0))
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(20) == 0


def consume(connection: Connection, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(connection.consumer())
    consumer.assign([TopicPartition(topic, 0, 0)])
    out: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(out) < count and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and not message.error():
            out.append(message.value() or b"")
    consumer.close()
    return out


@pytest.mark.dear
def test_what_was_written_survives_a_restart_and_a_kill_at_the_same_address(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "a folder") as broker:
        address = broker.bootstrap
        assert running(broker.folder) == address
        topics_admin.create(broker.connection, "survivor")
        ids = topics_admin.topic_ids(broker.connection, "survivor")
        produce(broker.connection, SHARD_LOG.name("survivor"), [b"one"])
        broker.stop()
        broker.start()
        assert broker.bootstrap == address
        produce(broker.connection, SHARD_LOG.name("survivor"), [b"two"])
        broker.kill()
        assert running(broker.folder) is None
        broker.start()
        assert broker.bootstrap == address
        assert consume(broker.connection, SHARD_LOG.name("survivor"), 2) == [b"one", b"two"]
        assert topics_admin.topic_ids(broker.connection, "survivor") == ids
        pid = broker.pid
        assert pid is not None
    assert not alive(pid)
    assert broker.pid is None
    assert "Apache Kafka 4.4.0 starts on 127.0.0.1" in broker.log.read_text()


def test_a_second_broker_on_a_folder_is_refused(broker: SharedBroker) -> None:
    with pytest.raises(UsageError, match=rf"already runs on .* \(process {broker.pid}\): use it at {broker.bootstrap}"):
        EmbeddedBroker(broker.folder).start()
    broker.connection.check_reachable(5)


def test_a_broker_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    broken = EmbeddedBroker(tmp_path, BrokerOptions(properties={"num.network.threads": "none"}))
    with pytest.raises(Unavailable, match=r"(?s)The last lines of .*broker\.log:.*num\.network\.threads"):
        broken.start()
    assert broken.pid is None
    assert running(tmp_path) is None


def test_a_broker_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    slow = EmbeddedBroker(tmp_path, BrokerOptions(start_timeout_s=0.05))
    with pytest.raises(Unavailable):
        slow.start()
    assert running(tmp_path) is None


@pytest.mark.parametrize("damage", ["none", "all of it", "a page"])
def test_java_starts_without_a_damaged_archive_of_classes(broker: SharedBroker, tmp_path: Path, damage: str) -> None:
    command = EmbeddedBroker(tmp_path)._java()
    places = [index for index, part in enumerate(command) if part.startswith("-XX:SharedArchiveFile=")]
    if not places:
        pytest.skip("the Java of this machine makes no archive")
    content = bytearray(Path(command[places[0]].partition("=")[2]).read_bytes())
    first, length = {"none": (0, 0), "all of it": (0, len(content)), "a page": (len(content) // 2, 4096)}[damage]
    content[first : first + length] = b"\x01" * length
    (tmp_path / "classes.jsa").write_bytes(content)
    command[places[0]] = f"-XX:SharedArchiveFile={tmp_path / 'classes.jsa'}"
    said = subprocess.run([*command, "-Xlog:class+load", "-version"], check=True, capture_output=True, text=True).stdout
    assert ("source: shared objects file" in said) == (damage == "none")


PARENT = """
import sys, threading, time
from pathlib import Path
from antdt_streams.broker import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]))
starter = threading.Thread(target=broker.start)  # the thread that started it ends at once
starter.start()
starter.join()
time.sleep(0.3)
print(broker.pid, flush=True)
sys.stdin.read()
"""


def test_the_broker_dies_with_its_parent_and_not_with_the_thread_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        deadline = time.monotonic() + 10
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(pid)


# -- topics


def test_topics_are_created_once_and_as_the_registry_says(connection: Connection, job: str) -> None:
    made = topics_admin.create(connection, job)
    assert sorted(made) == sorted(topic.name(job) for topic in TOPICS)
    assert topics_admin.check(connection, job) == []
    ids = topics_admin.fit(connection, job).ids
    assert set(ids) == {topic.suffix for topic in TOPICS}
    assert len(set(ids.values())) == len(TOPICS)
    assert job in topics_admin.list_jobs(connection)
    with pytest.raises(JobTaken, match=f"Job '{job}' is already on this broker"):
        topics_admin.create(connection, job)
    assert topics_admin.create(connection, job, resume=True) == []
    assert topics_admin.topic_ids(connection, job) == ids


def test_the_brokers_clock_stamps_records(connection: Connection, job: str) -> None:
    topics_admin.create(connection, job)
    producer = Producer(connection.producer())
    producer.produce(STEPS.name(job), b"x", timestamp=1000)
    assert producer.flush(20) == 0
    consumer = Consumer(connection.consumer())
    consumer.assign([TopicPartition(STEPS.name(job), 0, 0)])
    message = consumer.poll(20)
    consumer.close()
    assert message is not None
    kind, at_ms = message.timestamp()
    assert kind == 2  # LogAppendTime
    assert at_ms > 1_600_000_000_000


def test_an_unknown_job_is_named(connection: Connection, job: str) -> None:
    for ask in (topics_admin.topic_ids, topics_admin.check, topics_admin.fit, topics_admin.delete):
        with pytest.raises(UnknownJob) as caught:
            ask(connection, job)
        assert str(caught.value) == (
            f"Job '{job}' is not on this broker. Start it with `antdt up {job}`, or see `antdt topics list`."
        )


def test_resume_completes_what_a_crash_left_half(connection: Connection, job: str) -> None:
    admin = AdminClient(connection.admin())
    admin.create_topics([NewTopic(SHARD_LOG.name(job), 1, config=SHARD_LOG.settings())])[SHARD_LOG.name(job)].result(20)
    with pytest.raises(JobTaken):
        topics_admin.create(connection, job)
    missing = topics_admin.check(connection, job)
    assert {d.topic for d in missing} == {t.name(job) for t in TOPICS if t is not SHARD_LOG}
    with pytest.raises(Mismatch, match="found no such topic"):
        topics_admin.fit(connection, job)
    assert len(topics_admin.create(connection, job, resume=True)) == len(TOPICS) - 1
    assert topics_admin.check(connection, job) == []


def alter(admin: AdminClient, topic: str, key: str, value: str) -> None:
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for future in admin.incremental_alter_configs([change]).values():
        future.result(20)


def test_settings_that_were_changed_are_found(connection: Connection, job: str) -> None:
    topics_admin.create(connection, job)
    admin = AdminClient(connection.admin())

    # The controller has a change a moment before the broker shows it.
    alter(admin, STEPS.name(job), "retention.ms", "1000")
    until(lambda: topics_admin.check(connection, job) != [], "another retention")
    found = topics_admin.check(connection, job)
    assert [(d.what, d.found, d.fatal) for d in found] == [("retention.ms", "1000", False)]
    topics_admin.fit(connection, job)
    alter(admin, SHARD_LOG.name(job), "message.timestamp.type", "CreateTime")
    until(lambda: len(topics_admin.check(connection, job)) == 2, "another kind of time stamp")
    with pytest.raises(Mismatch, match=r"message.timestamp.type of .*shard-log differs: expected LogAppendTime"):
        topics_admin.fit(connection, job)


def partitions(admin: AdminClient, topic: str) -> int:
    found = admin.list_topics(timeout=20).topics
    return len(found[topic].partitions) if topic in found else 0


def test_wrong_partitions_are_found(connection: Connection, job: str) -> None:
    admin = AdminClient(connection.admin())
    topics_admin.create(connection, job)
    admin.delete_topics([REPLIES.name(job)])[REPLIES.name(job)].result(20)
    until(lambda: partitions(admin, REPLIES.name(job)) == 0, "no such topic")
    admin.create_topics([NewTopic(REPLIES.name(job), 2, config=REPLIES.settings())])[REPLIES.name(job)].result(20)
    until(lambda: partitions(admin, REPLIES.name(job)) == 2, "two partitions")
    with pytest.raises(Mismatch, match=r"partitions of .*replies differs: expected 4, found 2"):
        topics_admin.fit(connection, job)


def test_a_deleted_job_is_gone_and_its_name_free_with_new_ids(connection: Connection, job: str) -> None:
    topics_admin.create(connection, job)
    before = topics_admin.topic_ids(connection, job)
    assert len(topics_admin.delete(connection, job)) == len(TOPICS)
    assert job not in topics_admin.list_jobs(connection)
    topics_admin.create(connection, job)
    after = topics_admin.topic_ids(connection, job)
    assert not set(before.values()) & set(after.values())


def test_replication_beyond_the_brokers_is_a_users_mistake(connection: Connection, job: str) -> None:
    with pytest.raises(UsageError, match="refuses to create the topics"):
        topics_admin.create(connection, job, replication=3)


def test_no_broker_is_unavailable(job: str) -> None:
    with pytest.raises(Unavailable, match=r"No Kafka broker answers at 127\.0\.0\.1:1 within"):
        topics_admin.list_jobs(Connection("127.0.0.1:1"))


def small(connection: Connection, job: str, room: int) -> None:
    """Topics as a company's broker makes them that takes small messages only."""
    topics_admin.create(connection, job)
    admin = AdminClient(connection.admin())
    for topic in TOPICS:
        alter(admin, topic.name(job), "max.message.bytes", str(room))
    until(lambda: len(topics_admin.check(connection, job)) == len(TOPICS), "smaller messages")


def test_a_job_works_on_topics_that_take_little(connection: Connection, job: str, tmp_path: Path) -> None:
    """More workers come at once than one entry holds, and the state is more than one record of a snapshot."""
    room, crowd, node = 18_000, 120, 600
    refused = list[object]()
    small(connection, job, room)
    with asker(connection, job) as worker:
        producer = Producer(connection.producer(record_bytes(room), linger_ms=5))
        for i in range(crowd):
            body = records.Join("worker", "h", 1, random.Random(i).randbytes(node // 2).hex(), "", 0, SPEC)
            request = records.Request(f"c{i}", f"c{i}.0", 1, body, b"")
            producer.produce(
                REQUESTS.name(job),
                codec.encode(request),
                partition=0,
                on_delivery=lambda e, _: refused.append(e) if e else None,
            )
        assert producer.flush(20) == 0
        assert not refused
        with LedgerThread(connection, job, tmp_path, patience_ms=600_000):
            worker.ask(records.Join("worker", "h", 1, "n", "", 0, SPEC))
    fold = replayed(connection, job)
    assert fold.state is not None
    assert len(fold.state.members.incarnations) == crowd + 1
    assert fold.state.refused == 0
    with TopicReader(connection, job, SHARD_LOG) as reader:
        assert max(len(raw.value) for raw in reader.to_end()) < room
    snapshot = newest(connection, job, "ledger")
    assert snapshot is not None
    assert snapshot.next_offset == fold.position.next_offset


def test_a_log_that_would_lose_entries_is_refused_before_anything_is_up(
    broker: SharedBroker, job: str, tmp_path: Path
) -> None:
    connection, name = broker.connection, SHARD_LOG.name(job)
    hasty = {**SHARD_LOG.settings(), "retention.ms": "3000", "unclean.leader.election.enable": "true"}
    admin = AdminClient(connection.admin())
    admin.create_topics([NewTopic(name, 1, config=hasty)])[name].result(20)
    command = [sys.executable, "-m", "antdt_streams", "up", job, "--resume"]
    command += ["--bootstrap-servers", broker.bootstrap, "--data-dir", str(tmp_path)]
    up = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert up.returncode == 42
    assert "is up" not in up.stderr
    assert f"retention.ms of {name} differs: expected -1, found 3000" in up.stderr
    assert f"`antdt topics check {job} --repair` sets it" in up.stderr
    assert "--resume" not in up.stderr, "it was just run"
    with pytest.raises(Mismatch, match=r"retention\.ms"):
        Ledger(connection, job, tmp_path / "ledger")
    repaired = topics_admin.repair(connection, job)
    assert [d.what for d in repaired] == ["retention.ms", "unclean.leader.election.enable"]
    assert topics_admin.check(connection, job) == []
    with (
        LedgerThread(connection, job, tmp_path / "ledger", identity_every_s=0.05) as led,
        asker(connection, job) as one,
    ):
        one.join()
        alter(admin, name, "retention.ms", "3000")
        led.join()
        assert isinstance(led.error, Mismatch)
        assert led.error.what == f"retention.ms of {name}"
        led.error = None


def test_rights_are_granted_only_where_somebody_asks_for_them(connection: Connection, job: str) -> None:
    with pytest.raises(UsageError, match=r"refuses to grant rights .*No Authorizer"):
        grant(connection, job)
