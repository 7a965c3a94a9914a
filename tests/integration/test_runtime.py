"""The runtime against a real broker, in processes that are really killed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.offsets import watermarks
from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, STEPS, Topic
from antdt_streams import topics_admin
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.runtime.memory import MemoryDriver, without_repeats
from antdt_streams.runtime.runner import Identity, Runner
from antdt_streams.runtime.service import Raw
from antdt_streams.runtime.store import RowStore
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.helpers.counting import COUNTING, steps
from tests.helpers.service_process import ServiceProcess

pytestmark = pytest.mark.kafka

PATIENCE_S = 40.0


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)


def write(connection: Connection, job: str, values: list[Any]) -> None:
    producer = Producer(connection.producer(linger_ms=20))
    for value in values:
        producer.produce(STEPS.name(job), value if isinstance(value, bytes) else codec.encode(value), partition=0)
    assert producer.flush(20) == 0


def raws(connection: Connection, topic: str) -> list[Raw]:
    """Everything that a topic holds now."""
    consumer = Consumer(connection.consumer())
    _, high = watermarks(consumer, topic, 0, 20)
    consumer.assign([TopicPartition(topic, 0, 0)])
    out: list[Raw] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(out) < high and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and not message.error():
            assert message.offset() == len(out)
            out.append(Raw(message.value(), message.timestamp()[1]))
    consumer.close()
    return out


def read(connection: Connection, job: str, topic: Topic) -> list[Any]:
    return without_repeats([codec.decode(raw.value, topic.record) for raw in raws(connection, topic.name(job))])


def committed(connection: Connection, job: str) -> int:
    """The copy of the offset that lag tools see."""
    admin = AdminClient(connection.admin())
    asked = ConsumerGroupTopicPartitions(f"antdt.{job}.counting", [TopicPartition(STEPS.name(job), 0)])
    (future,) = admin.list_consumer_group_offsets([asked]).values()
    try:
        return int(future.result(20).topic_partitions[0].offset)
    except KafkaException:  # a broker that has just started is still loading its groups
        return -1


def stored(connection: Connection, job: str, folder: Path) -> Runner:
    """What a stopped service left in its folder."""
    ids = topics_admin.topic_ids(connection, job)
    store = RowStore(folder / "rows")
    try:
        return Runner(COUNTING, Identity(job, ids["steps"]), store, MemoryDriver(COUNTING, job))
    finally:
        store.close()


def undisturbed(connection: Connection, job: str) -> MemoryDriver:
    """The same records, with the broker's time stamps, through the driver in memory."""
    driver = MemoryDriver(COUNTING, job)
    driver.topics.logs[STEPS.name(job)] = raws(connection, STEPS.name(job))
    driver.run()
    return driver


def assert_exact(connection: Connection, job: str, folder: Path, records: int) -> None:
    runner, reference = stored(connection, job, folder), undisturbed(connection, job)
    assert runner.next_offset == records
    assert runner.digest() == reference.runner.digest()
    for topic in (MEASUREMENTS, DEAD_LETTERS):
        assert read(connection, job, topic) == reference.outputs(topic)


def mixed(count: int, seed: int) -> list[Any]:
    """Mostly good records with few outputs, some that are none."""
    draw = random.Random(seed)
    kinds = ["w0", "w1", "w2", "leaver", "refused", "poison"]
    weights = [30, 30, 30, 1, 1, 0.2]
    out: list[Any] = []
    for _ in range(count):
        (worker,) = draw.choices(kinds, weights)
        out.append(b"junk" if draw.random() < 0.005 else steps(worker, 1 if draw.random() < 0.1 else 0))
    return out


def test_nothing_is_lost_or_repeated_by_kills(connection: Connection, job: str, tmp_path: Path) -> None:
    """kill -9 at moments that the progress of the outputs chooses, one orderly stop among them."""
    topics_admin.create(connection, job)
    seed, folder, total = 7, tmp_path / "counting", 0
    for round_number in range(4):
        with ServiceProcess(connection, job, folder) as service:
            before = len(raws(connection, MEASUREMENTS.name(job)))
            write(connection, job, mixed(3000, seed + round_number))
            total += 3000
            until(lambda: len(raws(connection, MEASUREMENTS.name(job))) > before, "outputs")  # noqa: B023
            if round_number == 2:
                assert service.stop() == ExitCode.DRAINED
            else:
                service.kill()
    with ServiceProcess(connection, job, folder) as service:
        until(lambda: committed(connection, job) == total, "the end of the input")
        assert service.stop() == ExitCode.DRAINED
        assert "event=closed next_offset=12000" in service.logged()
    assert_exact(connection, job, folder, total)


def test_a_stop_without_any_input_is_quick_and_drained(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    with ServiceProcess(connection, job, tmp_path / "counting") as service:
        until(lambda: "event=started" in service.logged(), "the start")
        assert service.stop() == ExitCode.DRAINED
        assert "error" not in service.logged()


def test_a_second_service_on_the_same_folder_is_refused(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    with ServiceProcess(connection, job, tmp_path / "counting") as first:
        until(lambda: "event=started" in first.logged(), "the start")
        with ServiceProcess(connection, job, tmp_path / "counting") as second:
            assert second.process.wait(20) == ExitCode.RESTART_HERE
            assert "is in use by another process: a second service on the same folder" in second.logged()
        assert first.stop() == ExitCode.DRAINED


def test_a_folder_of_another_job_is_refused(connection: Connection, job: str, tmp_path: Path) -> None:
    other = f"{job[:35]}-other"
    for name in (job, other):
        topics_admin.create(connection, name)
        write(connection, name, [steps("w0", 1)])
    with ServiceProcess(connection, job, tmp_path / "counting") as service:
        until(lambda: committed(connection, job) == 1, "the record")
        service.stop()
    with ServiceProcess(connection, other, tmp_path / "counting") as service:
        assert service.process.wait(20) == ExitCode.NEVER_RETRY
        assert f"expected {other}, found {job}" in service.logged()


def test_a_topic_that_was_created_again_is_refused(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    write(connection, job, [steps("w0", 1)])
    folder = tmp_path / "counting"
    with ServiceProcess(connection, job, folder) as service:
        until(lambda: committed(connection, job) == 1, "the record")
        service.stop()
    topics_admin.delete(connection, job)
    topics_admin.create(connection, job)
    write(connection, job, [steps("w1", 1)])
    with ServiceProcess(connection, job, folder) as service:
        assert service.process.wait(20) == ExitCode.NEVER_RETRY
        assert "The topic_id of the stored state" in service.logged()


def test_a_topic_that_is_created_again_while_it_is_read_stops_the_service(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    """Suspended meanwhile, so that its client does not notice: the new topic has what the old one would have next."""
    topics_admin.create(connection, job)
    write(connection, job, [steps("w0", 1)] * 5)
    with ServiceProcess(connection, job, tmp_path / "counting") as service:
        until(lambda: committed(connection, job) == 5, "the records")
        service.process.send_signal(signal.SIGSTOP)
        topics_admin.delete(connection, job)
        topics_admin.create(connection, job)
        write(connection, job, [steps("w1", 1)] * 9)
        service.process.send_signal(signal.SIGCONT)
        assert service.process.wait(PATIENCE_S) in (ExitCode.USAGE, ExitCode.NEVER_RETRY)
    assert raws(connection, MEASUREMENTS.name(job)) == []


def delete_before(connection: Connection, job: str, offset: int) -> None:
    """What retention does."""
    admin = AdminClient(connection.admin())
    for future in admin.delete_records([TopicPartition(STEPS.name(job), 0, offset)]).values():
        future.result(20)


def test_records_that_retention_took_stop_it_unless_the_loss_is_accepted(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    topics_admin.create(connection, job)
    write(connection, job, [steps("w0", 1)] * 10)
    delete_before(connection, job, 4)
    folder = tmp_path / "counting"
    with ServiceProcess(connection, job, folder) as service:
        assert service.process.wait(20) == ExitCode.NEVER_RETRY
        assert f"Records 0 to 3 of {STEPS.name(job)} were removed by retention" in service.logged()
    with ServiceProcess(connection, job, folder, "--accept-loss") as service:
        until(lambda: committed(connection, job) == 10, "the end of the input")
        service.stop()
    (letter,) = read(connection, job, DEAD_LETTERS)
    assert "Records 0 to 3" in letter.reason
    assert [m.cause.offset for m in read(connection, job, MEASUREMENTS)] == [4, 5, 6, 7, 8, 9]


def test_an_unknown_job_and_a_missing_broker_are_said_in_one_line(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with ServiceProcess(connection, job, tmp_path / "a") as service:
        assert service.process.wait(20) == ExitCode.USAGE
        assert f"Job '{job}' is not on this broker." in service.logged()
    with ServiceProcess(Connection("127.0.0.1:1"), job, tmp_path / "b") as service:
        assert service.process.wait(30) == ExitCode.RESTART_HERE
        assert len(service.logged().splitlines()) == 1


def test_damaged_state_is_set_aside_and_rebuilt_to_the_same(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    write(connection, job, mixed(300, 3))
    folder = tmp_path / "counting"
    with ServiceProcess(connection, job, folder) as service:
        until(lambda: committed(connection, job) == 300, "the end of the input")
        service.kill()
    (folder / "rows" / "CURRENT").write_text("rubbish")
    with ServiceProcess(connection, job, folder) as service:
        until(lambda: "event=started next_offset=0" in service.logged(), "a new beginning")
        letters = len(undisturbed(connection, job).outputs(DEAD_LETTERS))
        until(lambda: len(raws(connection, DEAD_LETTERS.name(job))) == 2 * letters, "the rebuild")
        write(connection, job, [steps("w0", 1)])
        until(lambda: committed(connection, job) == 301, "the end of the input")
        service.stop()
        assert "set aside as" in service.logged()
    assert_exact(connection, job, folder, 301)


def test_a_broker_that_goes_away_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        topics_admin.create(broker.connection, "j")
        write(broker.connection, "j", mixed(1000, 1))
        with ServiceProcess(broker.connection, "j", tmp_path / "counting") as service:
            until(lambda: committed(broker.connection, "j") == 1000, "the first part")
            broker.kill()
            broker.start()
            write(broker.connection, "j", mixed(1000, 2))
            until(lambda: committed(broker.connection, "j") == 2000, "the second part")
            write(broker.connection, "j", mixed(3000, 3))
            broker.pause()  # somewhere between a fetch and an acknowledgement
            assert service.stop() == ExitCode.DRAINED
            broker.resume()
        with ServiceProcess(broker.connection, "j", tmp_path / "counting") as service:
            until(lambda: committed(broker.connection, "j") == 5000, "the rest")
            service.stop()
        assert_exact(broker.connection, "j", tmp_path / "counting", 5000)


def test_an_output_topic_that_is_gone_ends_the_service_with_its_batch_undone(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    topics_admin.create(connection, job)
    folder = tmp_path / "counting"
    with ServiceProcess(connection, job, folder) as service:
        write(connection, job, [steps("w0", 0)])
        until(lambda: committed(connection, job) == 1, "a record without outputs")
        admin = AdminClient(connection.admin())
        admin.delete_topics([MEASUREMENTS.name(job)])[MEASUREMENTS.name(job)].result(20)
        write(connection, job, [steps("w0", 1)])
        assert service.process.wait(PATIENCE_S) == ExitCode.RESTART_HERE
        assert "An output cannot be written" in service.logged()
    assert stored(connection, job, folder).next_offset == 1
    topics_admin.create(connection, job, resume=True)
    with ServiceProcess(connection, job, folder) as service:
        until(lambda: committed(connection, job) == 2, "the same record again")
        service.stop()
    assert_exact(connection, job, folder, 2)
