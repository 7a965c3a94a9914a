"""A broker that asks who is there and lets each write its own topics only, behind a wire that goes dead twice."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from antdt.connect.sender import Sender
from antdt_schemas import codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import UsageError
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.broker.embedded import _free_ports
from antdt_streams.kafka import ask as operator_request
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.grants import grant
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.kafka.steer import steer
from antdt_streams.ledger.core.fold import Verdict
from antdt_streams.ledger.requests import Requests
from antdt_streams.views.job import audit_of, status_of
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tests.helpers.job_processes import JobProcesses, job_processes
from tests.helpers.wire import TO_BROKER, TO_CLIENT, Wire

pytestmark = pytest.mark.kafka
PRINCIPALS = ("ledger", "services", "worker", "auditor", "operator")


@contextmanager
def guarded(folder: Path, wire: Wire) -> Iterator[EmbeddedBroker]:
    """A broker with a listener for this test, which may do everything, and one behind the wire, which asks."""
    port, controller, asking = _free_ports(0, 0, 0)
    folder.mkdir()
    (folder / "ports.json").write_text(json.dumps({"broker": port, "controller": controller}))
    users = " ".join(f'user_{name}="secret-of-{name}"' for name in PRINCIPALS)
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    here = "127.0.0.1"
    properties = {
        "listeners": f"PLAINTEXT://{here}:{port},CONTROLLER://{here}:{controller},SASL_PLAINTEXT://{here}:{asking}",
        "advertised.listeners": f"PLAINTEXT://{here}:{port},SASL_PLAINTEXT://{wire.address}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": f"{module} required {users};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    wire.target = here, asking
    with EmbeddedBroker(folder, BrokerOptions(properties=properties)) as broker:
        assert broker.bootstrap == f"{here}:{port}", "somebody took the port"
        yield broker


def credentials(folder: Path, name: str) -> Path:
    """The client.properties of a principal, as Java people write it."""
    file = folder / f"{name}.properties"
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    file.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsocket.timeout.ms=2000\n"
        f'sasl.jaas.config={module} required username="{name}" password="secret-of-{name}";\n'
    )
    return file


@pytest.mark.dear
def test_least_privilege_is_enough_and_dead_connections_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = "guarded"
    with Wire() as wire, guarded(tmp_path / "broker", wire) as broker:
        assert grant(broker.connection, job) == grant(broker.connection, job)

        def connection(name: str) -> Connection:
            return Connection.of(wire.address, credentials(tmp_path, name), {})

        what_is_not_granted_is_named(broker.connection, connection)

        def environ(kind: str) -> dict[str, str]:
            name = "services" if kind in ("monitor", "controller") else kind
            return {"ANTDT_KAFKA_CONFIG": str(credentials(tmp_path, name))}

        services = ("ledger", "monitor", "controller")
        options = ("--samples", "700", "--epochs", "4", "--delay-ms", "10", "--checkpoint-every", "20")
        with job_processes(
            broker.connection, job, tmp_path, services=services, bootstrap=wire.address, environ=environ
        ) as run:
            # Kafka's client waits for its group for longer than a session, as others may be slow to join: what is
            # shown here is a connection that dies later.
            logs = [tmp_path / "logs" / job / f"{name}.log" for name in ("monitor", "controller")]
            run.until(lambda: all("event=assigned" in log.read_text() for log in logs), "the services have no work")
            launcher = run.launch(2, *options)
            run.until_committed(10)
            pids = run.workers_of(launcher)
            for ways in ((TO_BROKER, TO_CLIENT), (TO_CLIENT,)):
                before = run.now().line.committed
                assert wire.go_dead(*ways) >= 8, "two clients of each process at least"
                run.until_committed(min(before + 15, 120))  # all of them: training goes on without the ledger
            assert run.workers_of(launcher) == pids, "a worker did not live through it"
            run.ended(launcher)
            assert run.judged()["committed"] == 2800

            admin = AdminClient(broker.connection.admin())
            groups = admin.describe_consumer_groups([f"antdt.{job}.monitor"])
            members = groups[f"antdt.{job}.monitor"].result(20).members
            assert [member.client_id for member in members] == [f"antdt.{job}.monitor.main"]
            auditor = connection("auditor")
            nobody_writes_what_is_not_theirs(run, connection)
            with TopicReader(auditor, job, topics.MEASUREMENTS) as reader:
                run.until(lambda: sum(reader.ends()) > 0, "the Monitor may not work")
            assert [s.children[n].restarts for s, n in zip(run.supervisors, services, strict=True)] == [0, 0, 0]
            assert audit_of(auditor, job)["exactly_once"]
            status = status_of(auditor, job)
            assert status["committed"] == 2800
            assert all(service["answers"] for service in status["services"].values()), status["services"]
            a_missing_right_is_named(auditor, job)
            a_copy_for_lag_tools_that_is_not_allowed_is_told(auditor, job, caplog)
            an_operator_is_heard(connection("operator"), auditor, job)


def a_missing_right_is_named(auditor: Connection, job: str) -> None:
    """And ends with the status of a user's mistake; timings that must not be written end nothing."""
    with pytest.raises(UsageError, match=rf"ACL Write on the topic antdt\.{job}\.requests"):
        operator_request.ask(auditor, job, lambda author: records.Rollback(0, author, "no right to"), None)
    sender, arrived = Sender(auditor), list[bool]()
    until = time.monotonic() + 10
    while not sender.tell(topics.STEPS.name(job), b"", "w0", arrived.append) or not arrived:
        sender.poll()
        if time.monotonic() > until or sender._fatal is not None:
            break
    assert not any(arrived)


def a_copy_for_lag_tools_that_is_not_allowed_is_told(
    auditor: Connection, job: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and nothing ends."""
    requests = Requests(auditor, job)
    for _ in range(3):
        requests.publish(1)
        until = time.monotonic() + 5
        while not caplog.records and time.monotonic() < until:
            assert requests.take(0.1, 1) == []
    requests.close()
    (line,) = [one.getMessage() for one in caplog.records if "offsets-not-copied" in one.getMessage()]
    assert f"group=antdt.{job}.ledger" in line and "uthorization" in line


def an_operator_is_heard(operator: Connection, auditor: Connection, job: str) -> None:
    """By the ledger and the Controller; an auditor is told what the last decision says."""
    answer = operator_request.ask(operator, job, lambda author: records.Readmit(), None)
    assert answer.status is records.Status.OK
    assert steer(operator, job, records.Steering("ann")).cause.partition == 0
    with pytest.raises(UsageError, match=rf"ACL Write on the topic antdt\.{job}\.measurements"):
        steer(auditor, job, records.Steering("bob"))


def what_is_not_granted_is_named(ours: Connection, connection: Callable[[str], Connection]) -> None:
    """Of a job that nobody was granted anything of."""
    topics_admin.create(ours, "closed")
    for ask, name, right in (
        (topics_admin.check, "auditor", "Describe on topics antdt.closed.*"),
        (topics_admin.create, "ledger", "Create on topics antdt.closed.*"),
        (topics_admin.delete, "ledger", "Describe on topics antdt.closed.*"),
        (grant, "ledger", "Alter on the cluster"),
    ):
        with pytest.raises(UsageError, match=re.escape(f"must grant it {right};")):
            ask(connection(name), "closed")


def nobody_writes_what_is_not_theirs(run: JobProcesses, connection: Callable[[str], Connection]) -> None:
    """The entry would be the next one of the log, as good as the leader's own: only the broker stands before it."""
    state, fold = run.now(), run.fold
    assert fold.office is not None
    cycle = records.Cycle(
        fold.office.offset, fold.office.hash, state.sequence + 1, fold.position.next_offset - 1, fold.position.hash,
        state.requests_next, state.now_ms + 1, (),  # an hour that no idle entry of the leader has
    )  # fmt: skip
    entry = codec.encode(records.Entry(cycle))
    assert copy.deepcopy(fold).read(fold.position.next_offset, entry) is Verdict.COUNTED
    theirs = {
        "worker": (topics.REQUESTS, topics.STEPS),
        "ledger": (topics.SHARD_LOG, topics.REPLIES, topics.DEAD_LETTERS, topics.SNAPSHOTS),
        "services": (topics.MEASUREMENTS, topics.DECISIONS, topics.DEAD_LETTERS, topics.SNAPSHOTS),
        "auditor": (),
        "operator": (topics.REQUESTS, topics.MEASUREMENTS),
    }
    for name, own in theirs.items():
        producer = Producer(connection(name).producer(linger_ms=0, enable_idempotence=False))
        for topic in (topic for topic in topics.TOPICS if topic not in own):
            refused: list[Any] = []
            try:
                producer.produce(topic.name(run.job), entry, on_delivery=lambda e, _, out=refused: out.append(e))
                assert producer.flush(10) == 0
            except KafkaException as error:  # known since the last one
                refused.append(error.args[0])
            assert refused[0] is not None, f"{name} wrote to {topic.suffix}"
            assert refused[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED, refused[0]
    assert entry not in (payload for _, payload in run.entries())
