"""The ledger beside a real broker: head starts, contradictions, standbys, zombies, a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from antdt.connect.client import Client, ClientOptions
from antdt.worker.plans import Plans
from antdt.worker.session import Session, Where
from antdt.worker.telemetry import Telemetry
from antdt_schemas import codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import (
    ExitCode,
    ForeignState,
    LogTampered,
    LogTruncated,
    Mismatch,
    Unavailable,
    UnknownJob,
    UsageError,
)
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.ask import ask
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.service import Ledger
from antdt_streams.ledger.stored import Identity
from antdt_streams.local.place import Place
from antdt_streams.local.services import environment_of, service_command
from antdt_streams.views.job import audit_of, status_of
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.helpers.ledger_thread import SPEC, WITHIN_S, LedgerThread, asker, digest_of, eventually, replayed

FLOOD = 30_000
pytestmark = pytest.mark.kafka


def stored(folder: Path, job: str, topic_id: str) -> Fold:
    """What a folder holds."""
    cache = Cache(folder, Identity(job, topic_id))
    try:
        return cache.load()
    finally:
        cache.close()


def test_folder_snapshot_and_log_lead_to_the_same_state(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    topic_id = topics_admin.topic_ids(connection, job)[topics.SHARD_LOG.suffix]
    with asker(connection, job) as worker:
        with LedgerThread(connection, job, tmp_path / "a", snapshot_every=10) as first:
            worker.join()
            worker.train(8)
        assert first.ledger.snapshots.newest() is not None
        # Another folder: a snapshot brings it close to the end, and it goes on from there.
        with LedgerThread(connection, job, tmp_path / "b", snapshot_every=10):
            worker.train(3)
        with LedgerThread(connection, job, tmp_path / "a", snapshot_every=10):  # behind by now, caught up
            worker.train(1)
    whole = replayed(connection, job)
    for folder in ("a", "b"):
        fold = stored(tmp_path / folder, job, topic_id)
        if folder == "a":
            assert fold.position == whole.position
            assert digest_of(fold) == digest_of(whole)
        else:
            assert fold.position.next_offset < whole.position.next_offset
    assert audit_of(connection, job)["steps"] == 12


def test_a_damaged_folder_is_set_aside_and_rebuilt(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    with asker(connection, job) as worker:
        with LedgerThread(connection, job, tmp_path / "l"):
            worker.join()
            worker.train(3)
        for file in (tmp_path / "l").glob("*.log"):
            os.truncate(file, file.stat().st_size // 2)  # an older state, which the log brings up to date
        with LedgerThread(connection, job, tmp_path / "l"):
            worker.train(1)
        for file in (tmp_path / "l").glob("MANIFEST-*"):
            file.write_bytes(os.urandom(file.stat().st_size))
        with LedgerThread(connection, job, tmp_path / "l"):
            worker.train(1)
        assert (tmp_path / "l.broken-1").is_dir()
        shutil.rmtree(tmp_path / "l")
        with LedgerThread(connection, job, tmp_path / "l"):
            worker.train(1)
    assert audit_of(connection, job)["steps"] == 6


def test_a_second_ledger_on_the_same_folder_is_refused(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    with LedgerThread(connection, job, tmp_path), pytest.raises(Unavailable, match="in use by another process"):
        Ledger(connection, job, tmp_path)


def test_the_folder_of_another_job_is_refused(connection: Connection, job: str, tmp_path: Path) -> None:
    other = f"x{job}"[:41].rstrip("-")
    for name in (job, other):
        topics_admin.create(connection, name)
    with asker(connection, other) as worker, LedgerThread(connection, other, tmp_path):
        worker.join()
    ledger = Ledger(connection, job, tmp_path)
    with pytest.raises(ForeignState, match=f"expected {job}.*found {other}|{job}.*{other}"):
        ledger.run()


def test_a_forged_entry_stops_every_reader_at_its_offset(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path):
        worker.join()
        worker.train(2)
    fold = replayed(connection, job)
    assert fold.office is not None
    assert fold.state is not None
    forged = records.Cycle(
        fold.office.offset, fold.office.hash, fold.state.sequence + 1, fold.position.next_offset - 1, bytes(16),
        fold.state.requests_next, fold.state.now_ms, (),
    )  # fmt: skip
    producer = Producer(connection.producer())
    producer.produce(topics.SHARD_LOG.name(job), codec.encode(records.Entry(forged)), partition=0)
    assert producer.flush(10) == 0
    with pytest.raises(LogTampered, match=f"chain breaks at offset {fold.position.next_offset}"):
        Ledger(connection, job, tmp_path).run()
    report = audit_of(connection, job)
    assert not report["exactly_once"]
    assert report["broken"]["offset"] == fold.position.next_offset


def test_an_operators_rollback_is_answered_recorded_and_done_once(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    topics_admin.create(connection, job)
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path):
        worker.join()
        worker.train(2)
        worker.checkpoint("f2")
        worker.train(2)
        refused = ask(connection, job, lambda author: records.Rollback(3, author, "why"), None)
        assert refused.status is records.Status.REFUSED
        assert "0, 2" in refused.reason
        done = ask(connection, job, lambda author: records.Rollback(-1, author, "why"), None)
        assert done.status is records.Status.OK
        worker.ask(records.Regroup(worker.generation, 4, worker.lineage, "h", 1))
        assert worker.join().restore_file == "f2"
    report = audit_of(connection, job)
    assert (report["steps"], report["rolled_back_steps"], report["committed"]) == (2, 2, 16)


def cut_log(broker: EmbeddedBroker, job: str, size_bytes: int) -> None:
    """What a machine that lost its power does to the end of a partition: the broker is gone, and so are its pages."""
    broker.kill()
    folder = next(p for p in broker.folder.rglob(f"{topics.SHARD_LOG.name(job)}-0") if p.is_dir())
    segment = max(folder.glob("*.log"))
    os.truncate(segment, segment.stat().st_size - size_bytes)
    broker.start()


@pytest.mark.dear
def test_a_lost_tail_is_refused_until_an_operator_accepts_it(tmp_path: Path) -> None:
    job = "tail"
    with EmbeddedBroker(tmp_path / "broker") as broker:
        connection = broker.connection
        topics_admin.create(connection, job)
        with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path / "l"):
            worker.join()
            worker.train(2)
            worker.checkpoint("f2")
            worker.train(3)
        before = replayed(connection, job).position.next_offset
        cut_log(broker, job, 600)
        after = replayed(connection, job).position.next_offset
        assert 4 < after < before
        for _ in range(2):  # it stays refused, and nothing is written
            with pytest.raises(LogTruncated, match=f"{before}.*{after}.*antdt recover {job}"):
                Ledger(connection, job, tmp_path / "l").run()
        assert replayed(connection, job).position.next_offset == after
        assert status_of(connection, job)["entries"] == after, "a snapshot of what is lost hides nothing"
        fact = Ledger(connection, job, tmp_path / "l").recover("the machine lost its power")
        assert (fact.first_lost, fact.next_offset) == (after, before)
        assert (tmp_path / "l.broken-1").is_dir()
        with pytest.raises(UsageError, match="Nothing is lost"):
            Ledger(connection, job, tmp_path / "l").recover("again")
        with asker(connection, job, "w0.1") as worker, LedgerThread(connection, job, tmp_path / "l"):
            assert worker.join().restore_file == "f2", "models may hold what the log lost"
            worker.step, worker.lineage = 2, replayed(connection, job).state.line.lineage  # type: ignore[union-attr]
            worker.train(2)
        # A folder that reflects the lost entries, too, learns from the log itself that their loss was accepted.
        with LedgerThread(connection, job, tmp_path / "l.broken-1"):
            eventually((tmp_path / "l.broken-1.broken-1").is_dir, "set aside")
        report = audit_of(connection, job)
        assert report["steps"] == 4
        assert report["accepted_losses"][0]["reason"] == "the machine lost its power"
        assert report["committed"] == 32


def recreate(connection: Connection, job: str) -> None:
    """Somebody deletes the shard log and creates it again."""
    admin, name = AdminClient(connection.admin()), topics.SHARD_LOG.name(job)
    admin.delete_topics([name])[name].result(WITHIN_S)
    eventually(lambda: name not in admin.list_topics(timeout=10).topics, "deleted")
    topics_admin.create(connection, job, resume=True)


def test_a_recreated_log_is_refused_until_an_operator_accepts_it(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    topics_admin.create(connection, job)
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path / "l", identity_every_s=0.2) as led:
        worker.join()
        worker.train(3)
        recreate(connection, job)
        led.join()  # it notices by itself, also while nobody asks for anything
        # What it says depends on what it does first: it asks for the topic's id, or looks at the log and finds none.
        assert isinstance(led.error, ForeignState | LogTruncated | UnknownJob | Unavailable)
        led.error = None
    with pytest.raises(ForeignState, match="topic_id"):
        Ledger(connection, job, tmp_path / "l").run()
    fact = Ledger(connection, job, tmp_path / "l").recover("created again by mistake")
    assert fact.first_lost == 0
    with asker(connection, job, "w0.1") as worker, LedgerThread(connection, job, tmp_path / "l"):
        assert worker.join().restore_file == "init"
        worker.train(1)
    report = audit_of(connection, job)
    assert report["accepted_losses"][0]["first_lost"] == 0
    assert report["run_id"] != fact.run_id


class Process:
    """A ledger process."""

    def __init__(self, job: str, place: Place, *extra: str, limit_bytes: int = 0) -> None:
        def limit() -> None:
            if limit_bytes:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        self.popen = subprocess.Popen(
            service_command("ledger", job, place, extra),
            env=dict(os.environ) | environment_of(place.connection, place),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=limit,
        )

    def end(self) -> str:
        self.popen.kill()
        return self.popen.communicate(timeout=WITHIN_S)[0]


def offices(connection: Connection, job: str) -> list[str]:
    """Process ids in the order in which they took office."""
    with TopicReader(connection, job, topics.SHARD_LOG) as reader:
        bodies = [codec.decode(raw.value, records.Entry).body for raw in reader.to_end()]
    return [body.owner.rpartition(":")[2] for body in bodies if isinstance(body, records.Leader)]


def test_a_standby_takes_over_and_a_zombie_stands_by(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    place = Place(connection, True, tmp_path, None)
    processes = [Process(job, place)]
    try:
        with asker(connection, job) as worker:
            worker.join()
            processes += [Process(job, place, "--standby", "--instance", name) for name in ("b", "c")]
            worker.train(2)
            pids = [str(p.popen.pid) for p in processes]
            assert offices(connection, job) == pids[:1], "a standby took office beside a living leader"
            processes[0].popen.send_signal(signal.SIGSTOP)  # to its standbys, that looks like death once somebody asks
            worker.train(3)
            eventually(lambda: offices(connection, job)[-1] in pids[1:], "a standby takes office")
            processes[0].popen.send_signal(signal.SIGCONT)
            worker.train(3)
            leader = offices(connection, job)[-1]
            assert leader in pids[1:], "a zombie took its office back"
            processes[pids.index(leader)].popen.kill()
            worker.train(2)
            eventually(lambda: offices(connection, job)[-1] != leader, "the next one takes office")
    finally:
        said = [process.end() for process in processes]
    report = audit_of(connection, job)
    assert report["steps"] == 10, said
    assert not report["broken"]
    assert "Standing by" in said[0], said[0]


def test_a_worker_says_that_the_ledger_does_not_answer_and_when_it_does_again(
    connection: Connection, job: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topics_admin.create(connection, job)
    session = Session("w0", "w0.0", SPEC, Where("h", 1))
    client = Client(ClientOptions(connection, job), session, Plans(8), Telemetry("w0", "w0.0", "n", ""))
    client.reach._waiting.first_s = 0.5
    word, held = client.reach.word, set[bool]()

    def noted(session: Session, now_s: float) -> str | None:
        held.add(client.changed._is_owned())  # type: ignore[attr-defined]
        return word(session, now_s)

    client.reach.word = noted  # type: ignore[method-assign]
    client.start()
    try:
        eventually(lambda: f"w0: the ledger of job {job} has not answered for" in caplog.text, "it says so")
        assert "(the broker does)" in caplog.text
        with LedgerThread(connection, job, tmp_path):
            eventually(
                lambda: f"w0: the ledger of job {job} answers again, after" in caplog.text, "and that it is back"
            )
    finally:
        client.stop(leave=False)
    assert held == {True}, "what the training thread changes was read while it may change it"


def test_while_nobody_asks_nothing_is_written_and_nobody_takes_office(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    """A job that is idle, or done, costs nothing, whether or not there is a standby."""
    topics_admin.create(connection, job)
    patience = {"standby": True, "standby_patience_s": 0.4}
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path / "a") as one:
        worker.join()
        worker.train(1)
        with LedgerThread(connection, job, tmp_path / "b", **patience) as two:
            eventually(lambda: two.ledger.life.looked >= 1, "the standby stands by")
            before = replayed(connection, job).position.next_offset
            looked = two.ledger.life.looked
            eventually(
                lambda: two.ledger.life.looked > looked + 12, "the log is silent three times as long as its patience"
            )
            assert replayed(connection, job).position.next_offset == before, "an idle ledger writes"
            one.ledger.stopping.set()
            one.join()
            worker.train(1)  # the first question that nobody answers is what the standby needs
            assert len(offices(connection, job)) == 2


def test_a_full_disk_ends_the_ledger_and_costs_nothing(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    place = Place(connection, True, tmp_path, None)
    full = Process(job, place, limit_bytes=24 << 10)
    with asker(connection, job) as worker:
        worker.join()
        ended: list[int] = []

        def train_until_it_ends() -> bool:
            code = full.popen.poll()
            if code is not None:
                ended.append(code)
                return True
            worker.producer.produce(topics.REQUESTS.name(job), b"\xc3\x01 no request", "w0", 0)
            worker.producer.poll(0)
            return False

        eventually(train_until_it_ends, "the disk is full")
        said = full.end()
        assert ended == [ExitCode.RESTART_HERE], said
        assert str(tmp_path) in said
        assert "bytes free" in said
        with LedgerThread(connection, job, place.service_folder(job, "ledger")):
            worker.train(2)
    assert audit_of(connection, job)["steps"] == 2
    whole = replayed(connection, job)
    topic_id = topics_admin.topic_ids(connection, job)[topics.SHARD_LOG.suffix]
    assert digest_of(stored(place.service_folder(job, "ledger"), job, topic_id)) == digest_of(whole)


@pytest.mark.dear
def test_a_broker_that_is_silent_makes_nobody_leader_and_nobody_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that stay open and carry nothing: what a cut cable looks like."""
    job = "silent"
    with EmbeddedBroker(tmp_path / "broker") as broker:
        connection = broker.connection
        topics_admin.create(connection, job)
        caplog.set_level("INFO")
        assert broker.pid is not None
        with (
            asker(connection, job) as worker,
            LedgerThread(connection, job, tmp_path / "a"),
            LedgerThread(connection, job, tmp_path / "b", standby=True, standby_patience_s=2.0) as standby,
        ):
            worker.join()
            worker.train(1)
            eventually(lambda: "standing by at offset" in caplog.text, "the standby has read the log")
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                looked = standby.ledger.life.looked
                eventually(lambda: standby.ledger.life.looked > looked + 1, "the standby finds the log silent, twice")
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            worker.train(2)
            assert len(offices(connection, job)) == 1
    assert standby.ledger.life.looked >= 2


def test_partitions_that_somebody_adds_stop_the_ledger(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path, identity_every_s=0.2) as led:
        worker.join()
        admin, name = AdminClient(connection.admin()), topics.REQUESTS.name(job)
        admin.create_partitions([NewPartitions(name, 2)])[name].result(WITHIN_S)
        led.join()
        assert isinstance(led.error, Mismatch)
        assert "partitions" in str(led.error)
        led.error = None
    with pytest.raises(Mismatch, match=f"partitions of {name}"):
        Ledger(connection, job, tmp_path)


def test_a_snapshot_is_due_after_many_events_as_well(connection: Connection, job: str, tmp_path: Path) -> None:
    topics_admin.create(connection, job)
    with asker(connection, job) as worker, LedgerThread(connection, job, tmp_path, snapshot_events=8) as one:
        worker.join()
        worker.train(4)  # a lease and a commit each
        eventually(lambda: one.ledger.snapshots.newest() is not None, "a snapshot, with few entries and in office")


def test_a_flood_of_requests_leaves_the_process_as_large_as_it_was(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    """Of strangers, each with a name of its own, of a member, and of who sends rubbish: all of it is recorded."""
    topics_admin.create(connection, job)
    ledger = Process(job, Place(connection, True, tmp_path, None))
    pages = Path(f"/proc/{ledger.popen.pid}/statm")
    try:
        with asker(connection, job) as worker:
            worker.join()
            sizes = []
            for part in range(3):
                for number in range(FLOOD // 3):
                    stranger = records.Request("w1", f"w1.{part}.{number}{'x' * 64}", 1, records.Heartbeat(1, 0), b"")
                    member = records.Request(worker.worker, worker.incarnation, 0, records.Lease(7, 1), b"")
                    value = (codec.encode(stranger), codec.encode(member), b"\xc3\x01 no request")[number % 3]
                    worker.producer.produce(topics.REQUESTS.name(job), value, "w1", 0)
                    worker.producer.poll(0)
                assert worker.ask(records.Heartbeat(worker.generation, 0)).status is records.Status.OK
                sizes.append(int(pages.read_text().split()[1]) * resource.getpagesize() >> 10)
            assert worker.ask(records.Lease(worker.generation, 8)).leases
    finally:
        ledger.end()
    assert sizes[2] - sizes[1] < FLOOD // 3 * 300 >> 10, f"{sizes} KiB: more than 300 bytes a request"
