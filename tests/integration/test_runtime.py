"""The runtime against a real broker, in processes that are really killed: one instance."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, STEPS
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.kafka import topics_admin
from confluent_kafka.admin import AdminClient

from tests.helpers.counting import steps
from tests.helpers.running import PATIENCE_S, Running, mixed, until
from tests.helpers.service_process import ServiceProcess

pytestmark = pytest.mark.kafka


def test_nothing_is_lost_or_repeated_by_kills(running: Running, tmp_path: Path) -> None:
    """kill -9 at moments that the progress of the outputs chooses, one orderly stop among them."""
    folder = tmp_path / "counting"
    for round_number in range(4):
        with running.service(folder) as process:
            before = len(running.raws(MEASUREMENTS))
            running.write(mixed(3000, 7 + round_number))
            until(lambda: len(running.raws(MEASUREMENTS)) > before, "outputs")  # noqa: B023
            if round_number == 2:
                assert process.stop() == ExitCode.DRAINED
            else:
                process.kill()
    with running.service(folder) as process:
        until(running.caught_up, "the end of the input")
        assert process.stop() == ExitCode.DRAINED
        assert "event=released partition=0 next_offset=12000" in process.logged()
    running.assert_exact(folder)


def test_a_stop_without_any_input_is_quick_and_drained(running: Running, tmp_path: Path) -> None:
    with running.service(tmp_path / "counting") as process:
        until(lambda: "event=assigned" in process.logged(), "the start")
        assert process.stop() == ExitCode.DRAINED
        assert "error" not in process.logged()


def test_a_second_service_on_the_same_folder_is_refused(running: Running, tmp_path: Path) -> None:
    with running.service(tmp_path / "counting") as first:
        until(lambda: "event=assigned" in first.logged(), "the start")
        with running.service(tmp_path / "counting") as second:
            assert second.process.wait(PATIENCE_S) == ExitCode.RESTART_HERE
            assert "is in use by another process: a second service on the same folder" in second.logged()
        assert first.stop() == ExitCode.DRAINED


def test_a_folder_of_another_job_is_refused(running: Running, tmp_path: Path) -> None:
    running.write([steps("w0", 1)])
    with running.service(tmp_path / "counting") as process:
        until(running.caught_up, "the record")
        process.stop()
    other = f"{running.job[:35]}-other"
    with Running(running.connection, other) as foreign, foreign.service(tmp_path / "counting") as process:
        assert process.process.wait(PATIENCE_S) == ExitCode.NEVER_RETRY
        assert f"expected {other}, found {running.job}" in process.logged()


def test_a_topic_that_was_created_again_is_refused_by_folder_and_by_snapshot(running: Running, tmp_path: Path) -> None:
    running.write([steps("w0", 1)])
    with running.service(tmp_path / "counting") as process:
        until(running.caught_up, "the record")
        process.stop()
    admin = AdminClient(running.connection.admin())
    admin.delete_topics([STEPS.name(running.job)])[STEPS.name(running.job)].result(20)
    topics_admin.create(running.connection, running.job, resume=True)
    running.forget()
    running.write([steps("w1", 1)])
    with running.service(tmp_path / "counting") as process:
        assert process.process.wait(PATIENCE_S) == ExitCode.NEVER_RETRY
        assert "The topic_id of the stored state" in process.logged()
    with running.service(tmp_path / "another") as process:
        assert process.process.wait(PATIENCE_S) == ExitCode.NEVER_RETRY
        assert "The topic_id of the snapshot" in process.logged()


def test_a_topic_that_is_created_again_while_it_is_read_stops_the_service(running: Running, tmp_path: Path) -> None:
    """Suspended meanwhile, so that its client does not notice: the new topic has what the old one would have next."""
    running.write([steps("w0", 1)] * 5)
    with running.service(tmp_path / "counting") as process:
        until(running.caught_up, "the records")
        process.suspend()
        topics_admin.delete(running.connection, running.job)
        topics_admin.create(running.connection, running.job)
        running.forget()
        running.write([steps("w1", 1)] * 9)
        process.wake()
        assert process.process.wait(PATIENCE_S) in (ExitCode.USAGE, ExitCode.NEVER_RETRY)
    assert running.raws(MEASUREMENTS) == []


def test_records_that_retention_took_stop_it_unless_the_loss_is_accepted(running: Running, tmp_path: Path) -> None:
    running.write([steps("w0", 1)] * 10)
    running.delete_before(4)
    folder = tmp_path / "counting"
    with running.service(folder) as process:
        assert process.process.wait(PATIENCE_S) == ExitCode.NEVER_RETRY
        assert f"Records 0 to 3 of {STEPS.name(running.job)} were removed by retention" in process.logged()
    with running.service(folder, "--accept-loss") as process:
        until(running.caught_up, "the end of the input")
        process.stop()
    (letter,) = running.records(DEAD_LETTERS)
    assert "Records 0 to 3" in letter.reason
    assert [m.cause.offset for m in running.records(MEASUREMENTS)] == [4, 5, 6, 7, 8, 9]


def test_state_of_another_version_is_rebuilt_and_writes_nothing_again(running: Running, tmp_path: Path) -> None:
    """From the folder, and from a snapshot where the folder is new and the input's beginning is gone."""
    running.write(mixed(3000, 5))
    folder = tmp_path / "counting"
    with running.service(folder) as process:
        until(running.caught_up, "the end of the input")
        assert process.stop() == ExitCode.DRAINED
    count = len(running.raws(MEASUREMENTS)), len(running.raws(DEAD_LETTERS))
    with running.service(folder, "--version", "2") as process:
        running.write([steps("w0", 1)])
        until(lambda: len(running.raws(MEASUREMENTS)) > count[0], "the new record's output")
        assert process.stop() == ExitCode.DRAINED
        assert "was written by version 1 of the counting, this is version 2" in process.logged()
        assert "next_offset=3001 records=3001 outputs=1 dead_letters=0" in process.logged()
    running.assert_exact(folder, version=2)
    running.delete_before(100)
    with running.service(tmp_path / "another", "--version", "3") as process:
        running.write([steps("w0", 1)])
        until(lambda: len(running.raws(MEASUREMENTS)) > count[0] + 1, "the new record's output")
        assert process.stop() == ExitCode.DRAINED
        assert "Records 0 to 99" in process.logged() and "another version had processed them" in process.logged()
    assert (len(running.raws(MEASUREMENTS)), len(running.raws(DEAD_LETTERS))) == (count[0] + 2, count[1] + 1)


def test_an_unknown_job_and_a_missing_broker_are_said_in_one_line(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with ServiceProcess(connection, job, tmp_path / "a") as process:
        assert process.process.wait(PATIENCE_S) == ExitCode.USAGE
        assert f"Job '{job}' is not on this broker." in process.logged()
    with ServiceProcess(Connection("127.0.0.1:1"), job, tmp_path / "b") as process:
        assert process.process.wait(PATIENCE_S) == ExitCode.RESTART_HERE
        assert len(process.logged().splitlines()) == 1


def test_damaged_state_is_set_aside_and_rebuilt_to_the_same(running: Running, tmp_path: Path) -> None:
    running.write(mixed(300, 3))
    folder = tmp_path / "counting"
    with running.service(folder) as process:
        until(running.caught_up, "the end of the input")
        process.kill()
    (folder / "rows" / "CURRENT").write_text("rubbish")
    with running.service(folder) as process:
        until(
            lambda: "event=assigned partition=0 next_offset=0 from=zero" in process.logged()[-200:], "a new beginning"
        )
        letters = len(running.undisturbed().outputs(DEAD_LETTERS))
        until(lambda: len(running.raws(DEAD_LETTERS)) == 2 * letters, "the rebuild")
        running.write([steps("w0", 1)])
        until(running.caught_up, "the end of the input")
        process.stop()
        assert "set aside as" in process.logged()
    running.assert_exact(folder)


@pytest.mark.dear
def test_a_broker_that_goes_away_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    """With an instance that stands by: whether it takes over or not, nothing is lost."""
    # Who is stopped while the broker is silent cannot leave its group: what it has it keeps until its session is over.
    flags = ("--session-timeout-ms", "5000")
    with EmbeddedBroker(tmp_path / "broker") as broker, Running(broker.connection, "j") as running:
        running.write(mixed(1000, 1))
        with running.service(tmp_path / "a", *flags) as first, running.service(tmp_path / "b", *flags) as second:
            until(running.caught_up, "the first part")
            broker.kill()
            broker.start()
            running.write(mixed(1000, 2))
            until(running.caught_up, "the second part")
            running.write(mixed(3000, 3))
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)  # somewhere between a fetch and an acknowledgement
            assert [first.stop(), second.stop()] == [ExitCode.DRAINED] * 2
            os.kill(broker.pid, signal.SIGCONT)
        with running.service(tmp_path / "a", *flags) as process:
            until(running.caught_up, "the rest")
            process.stop()
        running.assert_exact(tmp_path / "a")


@pytest.mark.dear
def test_an_output_topic_that_is_gone_ends_the_service_with_its_batch_undone(running: Running, tmp_path: Path) -> None:
    folder, topic = tmp_path / "counting", MEASUREMENTS.name(running.job)
    with running.service(folder) as process:
        running.write([steps("w0", 0)])
        until(running.caught_up, "a record without outputs")
        admin = AdminClient(running.connection.admin())
        admin.delete_topics([topic])[topic].result(20)
        running.write([steps("w0", 1)])
        assert process.process.wait(PATIENCE_S) == ExitCode.RESTART_HERE
        assert "An output cannot be written" in process.logged()
    assert running.stored(folder).next_offset == 1
    topics_admin.create(running.connection, running.job, resume=True)
    with running.service(folder) as process:
        until(running.caught_up, "the same record again")
        process.stop()
    running.assert_exact(folder)
