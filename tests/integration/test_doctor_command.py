"""antdt doctor on a real broker with listeners of every kind, an authorizer and quotas, and jobs that are spoilt."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from antdt_schemas import codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.listener import HEAD, host_port
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.broker.embedded import _free_ports
from antdt_streams.cli import doctor
from antdt_streams.cli.main import main
from antdt_streams.doctor.checks import Level, Setup, examine
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.grants import grant
from antdt_streams.ledger.core.versions import FOLD_VERSION
from click.testing import CliRunner
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.helpers.certificates import HERE, Certificates, certificates
from tests.unit.test_doctor import clear
from tests.unit.test_reach import SPEC

pytestmark = [pytest.mark.kafka, pytest.mark.dear]
MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
USERS = ("ann", "worker", "ledger")
TLS = {"security.protocol": "SSL", "ssl.ca.location": "CA"}
SASL = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "ann",
    "sasl.password": "hush",
}
# Listener, settings; the check that finds it, what is found, what mends it. `good` is the one that is right.
CASES: dict[str, tuple[str, dict[str, str], str, str, str]] = {
    "a wrong port": ("NOBODY", {}, "bootstrap", "connection refused", "correct the port"),
    "a name that is none": ("no-such-host.invalid:9092", {}, "bootstrap", r"no-such-host\.invalid", "Write HOST:PORT"),
    "the port of controllers": ("CONTROLLER", {}, "bootstrap|broker", ".", "port|Start"),
    "plain to TLS": ("GOOD", {}, "bootstrap", "speaks SSL, and security.protocol is PLAINTEXT", "protocol=SSL"),
    "TLS to plain": ("PLAINTEXT", TLS, "bootstrap", "speaks PLAINTEXT, and .* is SSL", "protocol=PLAINTEXT"),
    "no credentials": ("SASL", {}, "bootstrap", "speaks SASL_PLAINTEXT with sasl.mechanism PLAIN", "=SASL_PLAINTEXT"),
    "an unknown authority": ("GOOD", {"security.protocol": "SSL"}, "bootstrap", "is not signed by", "ssl.ca.location"),
    "an expired certificate": ("EXPIRED", TLS, "bootstrap", "has expired", "renew"),
    "a certificate of another host": ("ELSEWHERE", TLS, "bootstrap", f"is not for {HERE}", "reissued"),
    "no certificate of the client": ("MUTUAL", TLS, "bootstrap", "wants a certificate", "ssl.certificate.location"),
    "a wrong password": ("SASL", {**SASL, "sasl.password": "no"}, "broker", "refuses these cred", "sasl.password"),
    "a wrong mechanism": (
        "SASL", {**SASL, "sasl.mechanism": "SCRAM-SHA-256"}, "bootstrap", "offers PLAIN, and .* SCRAM", "=PLAIN",
    ),
    "a setting that is none": ("PLAINTEXT", {"linger.mss": "5"}, "broker", r"linger\.mss.*came from", "."),
    "advertised, no name": ("LOST", {}, "broker", r"advertises no-such-host\.invalid:9092", "advertised.listeners"),
    "advertised, nobody": ("DEAD", {}, "broker", r"advertises 127\.0\.0\.1:1 ", "advertised.listeners"),
}  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """Ports by the name of the listener."""

    ports: Mapping[str, int]
    certs: Certificates
    broker: EmbeddedBroker

    def address(self, listener: str) -> str:
        return f"{HERE}:{self.ports[listener]}" if listener in self.ports else listener


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    certs = certificates(folder)
    names = ("PLAINTEXT", "CONTROLLER", "SASL", "GOOD", "EXPIRED", "ELSEWHERE", "MUTUAL", "LOST", "DEAD")
    (nobody, *found) = _free_ports(*(0 for _ in ("NOBODY", *names)))
    ports = dict(zip(names, found, strict=True))
    (folder / "ports.json").write_text(json.dumps({"broker": ports["PLAINTEXT"], "controller": ports["CONTROLLER"]}))
    addresses = {name: f"{name}://{HERE}:{port}" for name, port in ports.items()}
    told = addresses | {"LOST": "LOST://no-such-host.invalid:9092", "DEAD": f"DEAD://{HERE}:1"}
    keys = {"GOOD": "good", "EXPIRED": "expired", "ELSEWHERE": "elsewhere", "MUTUAL": "good"}
    kinds = {"SASL": "SASL_PLAINTEXT", **dict.fromkeys(keys, "SSL")}
    properties = {
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(told[name] for name in names if name != "CONTROLLER"),
        "listener.security.protocol.map": ",".join(f"{name}:{kinds.get(name, 'PLAINTEXT')}" for name in names),
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": f"{MODULE} required "
        + " ".join(f'user_{user}="hush"' for user in USERS) + ";",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.mutual.ssl.truststore.type": "PEM",
        "listener.name.mutual.ssl.truststore.location": str(certs["ca.pem"]),
    }  # fmt: skip
    for name, key in keys.items():
        properties[f"listener.name.{name.lower()}.ssl.keystore.type"] = "PEM"
        properties[f"listener.name.{name.lower()}.ssl.keystore.location"] = str(certs[f"{key}.both"])
    with EmbeddedBroker(folder, BrokerOptions(properties=properties)) as broker:
        yield Cluster({**ports, "NOBODY": nobody}, certs, broker)


def looked(
    cluster: Cluster,
    listener: str,
    settings: Mapping[str, str] | None = None,
    job: str = "",
    roles: tuple[str, ...] = (),
) -> dict[str, list[dict[str, Any]]]:
    """What the doctor says of the broker, by check."""
    found = {k: str(cluster.certs["ca.pem"]) if v == "CA" else v for k, v in (settings or {}).items()}
    connection = Connection(cluster.address(listener), found, dict.fromkeys(found, "mine"))
    setup = Setup({}, Path(), connection, named=True, job=job, roles=roles)
    setup.absent |= {"broker": "no broker was reached", "topics": "not found"}
    if not job:
        setup.absent["job"] = "no job is named"
    out: dict[str, list[dict[str, Any]]] = {}
    for finding in doctor.document(setup, list(examine(doctor.CHECKS[7:], setup)), ())["findings"]:
        out.setdefault(finding["check"], []).append(finding)
    return out


def wrong(found: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [one for some in found.values() for one in some if one["level"] in (Level.WARNING, Level.FAULT)]


def test_listeners_certificates_and_credentials_each_with_what_mends_it(cluster: Cluster) -> None:
    def said(case: str) -> tuple[list[dict[str, Any]], float]:
        began_s = monotonic()
        found = wrong(looked(cluster, *CASES[case][:2]))
        return found, monotonic() - began_s

    with ThreadPoolExecutor(5) as pool:
        for case, (found, took_s) in zip(CASES, pool.map(said, CASES), strict=True):
            _, _, check, what, fix = CASES[case]
            faults = [one for one in found if one["level"] == Level.FAULT]
            assert len(faults) == 1, (case, found)
            assert re.fullmatch(check, faults[0]["check"]), (case, found)
            assert re.search(what, faults[0]["found"]) and re.search(fix, faults[0]["fix"]), (case, found)
            assert "hush" not in str(found), case
            assert took_s < 60, (case, took_s)


def test_the_right_settings_are_well_and_a_dead_server_beside_a_good_one_is_a_warning(cluster: Cluster) -> None:
    mutual = {
        "ssl.certificate.location": str(cluster.certs["client.pem"]),
        "ssl.key.location": str(cluster.certs["client.key"]),
    }
    for listener, settings in (("GOOD", TLS), ("MUTUAL", {**TLS, **mutual}), ("PLAINTEXT", {})):
        found = looked(cluster, listener, settings)
        assert not wrong(found), (listener, wrong(found))
        assert "4.0 or newer" in found["versions"][0]["found"] or listener == "MUTUAL"
    both = f"{cluster.address('PLAINTEXT')},{cluster.address('NOBODY')}"
    (only,) = wrong(looked(cluster, both))
    assert (only["level"], only["check"]) == (Level.WARNING, "bootstrap") and "connection refused" in only["found"]


def test_rights_that_are_missing_for_this_client_and_for_others(cluster: Cluster) -> None:
    job, plain = "rights", cluster.broker.connection
    topics_admin.create(plain, job)
    (nothing,) = wrong(looked(cluster, "SASL", SASL, job))
    assert nothing["check"] == "rights" and f"can be no part of job {job}" in nothing["found"]
    assert f"antdt topics grant {job}" in nothing["fix"]
    grant(plain, job)
    worker = {**SASL, "sasl.username": "worker"}
    found = looked(cluster, "SASL", worker, job)
    assert not wrong(found), wrong(found)
    assert "may do all that worker does; not what ledger" in found["rights"][0]["found"]
    assert (
        found["principals"][0]["level"] == Level.UNKNOWN
        and "Describe on the cluster" in found["principals"][0]["found"]
    )
    (lacks,) = wrong(looked(cluster, "SASL", worker, job, ("ledger",)))
    assert lacks["level"] == Level.FAULT
    assert f"as ledger, this client lacks Describe on topic antdt.{job}.dead-letters" in lacks["found"]
    assert f"Write on topic antdt.{job}.shard-log" in lacks["found"]
    assert "have what the list says" in looked(cluster, "PLAINTEXT", {}, job)["principals"][0]["found"]
    # Somebody takes one away again.
    admin = AdminClient(plain.admin())
    from confluent_kafka.admin import AclBindingFilter, AclOperation, AclPermissionType, ResourcePatternType

    one = AclBindingFilter(
        ResourceType.TOPIC, f"antdt.{job}.requests", ResourcePatternType.LITERAL, "User:worker", None,
        AclOperation.WRITE, AclPermissionType.ALLOW,
    )  # fmt: skip
    for future in admin.delete_acls([one]).values():
        future.result(20)
    (theirs,) = wrong(looked(cluster, "PLAINTEXT", {}, job))
    assert theirs["found"] == f"principal worker lacks topic antdt.{job}.requests Write"
    (own,) = wrong(looked(cluster, "SASL", worker, job, ("worker",)))
    assert own["found"] == f"as worker, this client lacks Write on topic antdt.{job}.requests"


def altered(connection: Connection, topic: str, **settings: str) -> None:
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in settings.items()
    ]
    admin = AdminClient(connection.admin())
    asked = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for future in admin.incremental_alter_configs([asked]).values():
        future.result(20)


def test_topics_that_are_spoilt_and_records_of_a_newer_version(cluster: Cluster) -> None:
    job, plain = "spoilt", cluster.broker.connection
    topics_admin.create(plain, job)
    assert not wrong(looked(cluster, "PLAINTEXT", {}, job))
    log, steps = topics.SHARD_LOG.name(job), topics.STEPS.name(job)
    altered(plain, log, message_timestamp_type="CreateTime", min_insync_replicas="2", retention_ms="3600000")
    altered(plain, topics.DECISIONS.name(job), cleanup_policy="compact")
    altered(plain, steps, max_message_bytes="2000")
    producer = Producer(plain.producer())
    genesis = records.Genesis("run", job, "ann", SPEC, FOLD_VERSION + 1, "", 1000, 5000)
    producer.produce(log, codec.encode(records.Entry(genesis)), partition=0)
    producer.produce(steps, codec.MARKER + b"\1\2\3\4\5\6\7\x08", partition=0)
    producer.flush(10)
    found = wrong(looked(cluster, "PLAINTEXT", {}, job))
    said = {(one["check"], one["level"], one["found"].partition(":")[0], one["fix"]) for one in found}
    repair = f"`antdt topics check {job} --repair` sets it."
    for what, topic in (
        ("message.timestamp.type", log), ("min.insync.replicas", log), ("retention.ms", log),
        ("cleanup.policy", topics.DECISIONS.name(job)),
    ):  # fmt: skip
        assert ("topics", Level.FAULT, f"{what} of {topic}", repair) in said, found
    assert ("message size", Level.FAULT, f"max.message.bytes of {steps}", repair) in said, found
    (rules,) = [one for one in found if one["check"] == "rules"]
    assert "The version of the log's rules differs" in rules["found"] and "Upgrade antdt" in rules["fix"]
    (schemas,) = [one for one in found if one["check"] == "schemas"]
    assert schemas["level"] == Level.WARNING and schemas["found"].startswith("steps 0@0 was written by another version")


def limited(connection: Connection, client_id: str, bytes_a_second: float) -> None:
    """AlterClientQuotas, which no client of Python has."""

    def text(word: str) -> bytes:
        return struct.pack(">h", len(word)) + word.encode()

    one = struct.pack(">i", 1)
    entity = one + text("client-id") + text(client_id)
    change = one + text("consumer_byte_rate") + struct.pack(">d?", bytes_a_second, False)
    body = HEAD.pack(49, 0, 1, -1) + one + entity + change + struct.pack(">?", False)
    with socket.create_connection(host_port(connection.bootstrap), timeout=10) as wire:
        wire.sendall(struct.pack(">i", len(body)) + body)
        answer = wire.recv(1 << 16)
    assert struct.unpack_from(">h", answer, 16) == (0,), answer


def test_a_log_whose_beginning_is_gone(cluster: Cluster) -> None:
    job, plain = "cut", cluster.broker.connection
    topics_admin.create(plain, job)
    log, producer, admin = topics.SHARD_LOG.name(job), Producer(plain.producer()), AdminClient(plain.admin())
    for _ in range(3):
        producer.produce(log, b"an entry", partition=0)
    producer.flush(10)
    for future in admin.delete_records([TopicPartition(log, 0, 2)]).values():
        future.result(20)
    (found,) = wrong(looked(cluster, "PLAINTEXT", {}, job))
    assert (found["check"], found["level"]) == ("rules", Level.FAULT)
    assert "the first 2 entries of the log are gone" in found["found"] and "never to be cut" in found["fix"]


def test_a_quota_that_holds_up_who_reads(cluster: Cluster) -> None:
    job, plain = "quota", cluster.broker.connection
    topics_admin.create(plain, job)
    producer = Producer(plain.producer())
    for _ in range(100):
        producer.produce(topics.SHARD_LOG.name(job), os.urandom(10_000), partition=0)
    producer.flush(10)
    limited(plain, "slowed", 2000.0)
    connection = replace(plain, client_id="slowed")
    setup = Setup({}, Path(), connection, named=True, job=job)
    (result,) = examine([check for check in doctor.CHECKS if check.name == "quotas"], setup)
    (found,) = result.findings
    assert (
        found.level is Level.FAULT and "makes this client (slowed) wait" in found.found and "kafka-configs" in found.fix
    )


def test_the_command_as_people_call_it_leaves_nothing_behind(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear(monkeypatch)
    job, plain = "called", cluster.broker.connection
    place = ["--bootstrap-servers", plain.bootstrap, "--data-dir", str(tmp_path / "data")]
    done = CliRunner().invoke(main, ["doctor", job, *place])
    assert done.exit_code == 0, done.output
    assert f"job {job} is not on this broker yet: `antdt up {job}` creates it." in done.output
    topics_admin.create(plain, job)
    before = _left(plain)
    done = CliRunner().invoke(main, ["doctor", job, *place])
    assert done.exit_code == 0, done.output
    assert "Nothing was found that keeps a job from running: 0 faults, " in done.output
    assert f"bootstrap.servers={plain.bootstrap}" in done.output and "(flag)" in done.output
    assert _left(plain) == before and not (tmp_path / "data").exists()
    altered(plain, topics.SHARD_LOG.name(job), retention_ms="3600000")
    done = CliRunner().invoke(main, ["doctor", job, *place])
    assert done.exit_code == 1
    assert f"-> `antdt topics check {job} --repair` sets it." in done.output
    assert "A job would not run: 1 fault, " in done.output


def _left(connection: Connection) -> tuple[list[str], list[str]]:
    """Topics and groups."""
    admin = AdminClient(connection.admin())
    groups = admin.list_consumer_groups(request_timeout=10).result(10).valid
    return sorted(admin.list_topics(timeout=10).topics), sorted(one.group_id for one in groups)
