"""Listeners of every kind, and settings that are not for them: each is named, in time, and never retried."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest
from antdt_schemas import reaching
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable, UsageError
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.broker.embedded import _free_ports
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

pytestmark = pytest.mark.kafka
HERE, MODULE = "127.0.0.1", "org.apache.kafka.common.security.plain.PlainLoginModule"
TIMEOUT_S = 10.0  # beside everything else that runs here
SASL = {"sasl.mechanism": "PLAIN", "sasl.username": "ann"}
GOOD, WRONG = {**SASL, "sasl.password": "hush"}, {**SASL, "sasl.password": "wrong"}
SCRAM = {**GOOD, "sasl.mechanism": "SCRAM-SHA-256"}
# Listener, security.protocol, other settings, what is said.
CASES = {
    "a wrong password": ("SASL", "SASL_PLAINTEXT", WRONG, r"refuses these credentials \(set by mine\).*Invalid"),
    "a wrong mechanism": ("SASL", "SASL_PLAINTEXT", SCRAM, "refuses these credentials.*supported mechanisms: PLAIN"),
    "no credentials": ("SASL", "PLAINTEXT", {}, "speaks SASL_PLAINTEXT with sasl.mechanism PLAIN, .* is PLAINTEXT"),
    "no credentials, TLS": ("BOTH", "SSL", {"ssl.ca.location": "CA"}, "speaks SASL_SSL with sasl.mechanism PLAIN"),
    "a password over TLS": ("BOTH", "SASL_SSL", {**WRONG, "ssl.ca.location": "CA"}, "refuses these credentials"),
    "plain to TLS": ("TLS", "PLAINTEXT", {}, "speaks SSL, and security.protocol is PLAINTEXT"),
    "TLS to plain": ("PLAINTEXT", "SSL", {}, r"speaks PLAINTEXT, and security.protocol is SSL \(set by mine\)"),
    "TLS to SASL": ("SASL", "SASL_SSL", GOOD, "speaks SASL_PLAINTEXT"),
    "credentials nobody wants": (
        "PLAINTEXT",
        "SASL_PLAINTEXT",
        GOOD,
        "speaks PLAINTEXT, and security.protocol is SASL",
    ),
    "an unknown authority": ("TLS", "SSL", {}, "No TLS connection.*certificate verify failed.*ssl.ca.location"),
    "no such file": ("TLS", "SSL", {"ssl.ca.location": "/no-such.pem"}, r"ssl\.ca\.location failed.*came from mine\."),
    "advertised, no name": ("LOST", "PLAINTEXT", {}, r"answers, but advertises no-such-host\.invalid:9092 \(name"),
    "advertised, nobody": ("DEAD", "PLAINTEXT", {}, r"answers, but advertises 127\.0\.0\.1:1 \(connection refused\)"),
}


@dataclass(frozen=True)
class Listeners:
    """Ports by the name of the listener, and the certificate of them all."""

    ports: dict[str, int]
    certificate: Path


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    folder = tmp_path_factory.mktemp("listeners")
    key, certificate = folder / "key.pem", folder / "ca.pem"
    subject = ["-subj", "/CN=test", "-addext", f"subjectAltName=IP:{HERE}", "-days", "2"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make, *subject], check=True, capture_output=True)
    (folder / "both.pem").write_text(key.read_text() + certificate.read_text())
    names = ("PLAINTEXT", "CONTROLLER", "SASL", "TLS", "BOTH", "LOST", "DEAD")
    ports = dict(zip(names, _free_ports(*(0 for _ in names)), strict=True))
    (folder / "ports.json").write_text(json.dumps({"broker": ports["PLAINTEXT"], "controller": ports["CONTROLLER"]}))
    addresses = {name: f"{name}://{HERE}:{port}" for name, port in ports.items()}
    told = addresses | {"LOST": "LOST://no-such-host.invalid:9092", "DEAD": f"DEAD://{HERE}:1"}
    kinds = {"SASL": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "SASL_SSL"}
    properties = {
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(told[name] for name in names if name != "CONTROLLER"),
        "listener.security.protocol.map": ",".join(f"{name}:{kinds.get(name, 'PLAINTEXT')}" for name in names),
        "sasl.enabled.mechanisms": "PLAIN",
    }
    for name in ("sasl", "both"):
        properties[f"listener.name.{name}.plain.sasl.jaas.config"] = f'{MODULE} required user_ann="hush";'
    for name in ("tls", "both"):
        properties[f"listener.name.{name}.ssl.keystore.type"] = "PEM"
        properties[f"listener.name.{name}.ssl.keystore.location"] = str(folder / "both.pem")
    with EmbeddedBroker(folder, BrokerOptions(properties=properties)):
        yield Listeners(ports, certificate)


@pytest.mark.dear
def test_settings_that_are_not_for_a_listener_are_named(listeners: Listeners) -> None:
    def said(case: str) -> tuple[str, float]:
        listener, protocol, more, _ = CASES[case]
        settings = {"security.protocol": protocol, **more}
        if settings.get("ssl.ca.location") == "CA":
            settings["ssl.ca.location"] = str(listeners.certificate)
        connection = Connection(f"{HERE}:{listeners.ports[listener]}", settings, dict.fromkeys(settings, "mine"))
        began_s = monotonic()
        with pytest.raises((UsageError, Unavailable)) as caught:
            connection.check_reachable(TIMEOUT_S)
        return f"{type(caught.value).__name__}: {caught.value}", monotonic() - began_s

    with ThreadPoolExecutor(len(CASES)) as pool:  # they wait for time to pass, not for each other
        for case, (text, took_s) in zip(CASES, pool.map(said, CASES), strict=True):
            assert text.startswith("UsageError") and re.search(CASES[case][3], text), (case, text)
            assert "hush" not in text, case
            assert took_s < 2 * TIMEOUT_S, (case, took_s)


@pytest.mark.parametrize(
    ("listener", "advertised"), [("LOST", r"no-such-host\.invalid:9092"), ("DEAD", r"127\.0\.0\.1:1")]
)
def test_an_advertised_address_is_named_although_every_answer_came_too_late(
    listeners: Listeners, listener: str, advertised: str
) -> None:
    """librdkafka takes the late answer, leaves the bootstrap address, and has nobody to ask any more."""

    class Late:
        def list_topics(self, timeout: float) -> None:
            with suppress(KafkaException):
                client.list_topics(timeout=timeout)
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

        def poll(self, timeout: float) -> None:
            client.poll(timeout)

    connection = Connection(f"{HERE}:{listeners.ports[listener]}")
    asked = reaching.Reaching(connection.bootstrap, {}, 3.0)
    client = AdminClient(connection.admin(error_cb=asked.said.append))
    with pytest.raises(UsageError, match=f"answers, but advertises {advertised} "):
        asked.check(Late(), "PLAINTEXT")


@pytest.mark.parametrize("listener", ["SASL", "TLS", "BOTH"])
def test_the_right_ones_are_taken(listeners: Listeners, listener: str) -> None:
    protocol = {"SASL": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "sasl_ssl"}[listener]
    settings = {"security.protocol": protocol, "ssl.ca.location": str(listeners.certificate), **GOOD}
    Connection(f"{HERE}:{listeners.ports[listener]}", settings).check_reachable(TIMEOUT_S)
