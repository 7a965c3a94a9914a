"""antdt doctor before listeners of every kind of fault, without a broker: sockets of this process."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.listener import API_VERSIONS, api_versions
from antdt_streams.doctor import broker
from antdt_streams.doctor.checks import Level, Setup, examine

from tests.helpers.certificates import HERE, Certificates, certificates

Serve = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def listening(serve: Serve) -> Iterator[str]:
    """Somebody takes connections at this address, and deals with each like that."""
    server = socket.create_server((HERE, 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                one, _ = server.accept()
                threading.Thread(target=answer, args=(one,), daemon=True).start()

    def answer(one: socket.socket) -> None:
        with one, suppress(OSError, struct.error):
            one.settimeout(5)
            serve(one)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"{HERE}:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def kafka(wire: socket.socket) -> None:
    """As a listener without SASL answers."""
    (size,) = struct.unpack(">i", wire.recv(4))
    (request,) = struct.unpack_from(">h", wire.recv(size))
    body = struct.pack(">hihhh", 0, 1, 3, 0, 13) if request == API_VERSIONS else struct.pack(">hi", 34, 0)
    wire.sendall(struct.pack(">ii", 4 + len(body), 1) + body)
    wire.recv(1)


def tls(certs: Certificates, name: str, *, wants: bool = False) -> Serve:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs[f"{name}.pem"], certs[f"{name}.key"])
    if wants:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certs["ca.pem"])

    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as wire:
            kafka(wire)

    return serve


def probed(server: str, **settings: object) -> tuple[str, str]:
    found = broker.probed(server, Connection(server, {key.replace("_", "."): str(v) for key, v in settings.items()}))
    return found or ("", "")


def test_listeners_that_are_as_the_settings_say(certs: Certificates) -> None:
    asking = tls(certs, "good", wants=True)
    with listening(kafka) as plain, listening(tls(certs, "good")) as secure, listening(asking) as m:
        assert probed(plain) == ("", "")
        assert probed(secure, security_protocol="SSL", ssl_ca_location=certs["ca.pem"]) == ("", "")
        both = {"ssl_certificate_location": certs["client.pem"], "ssl_key_location": certs["client.key"]}
        assert probed(m, security_protocol="ssl", ssl_ca_location=certs["ca.pem"], **both) == ("", "")
        assert api_versions(plain, tls=False, timeout_s=2) == {3: (0, 13)}
        assert api_versions(secure, tls=True, timeout_s=2) == {3: (0, 13)}
        anybody = {"enable_ssl_certificate_verification": "false"}
        assert probed(secure, security_protocol="SSL", **anybody) == ("", "")


def test_names_and_ports_that_are_none(certs: Certificates) -> None:
    what, fix = probed("no-such-host.invalid:9092")
    assert "no-such-host.invalid:9092 (" in what and "Write HOST:PORT" in fix
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
    what, fix = probed(f"{HERE}:{port}")
    assert what == f"Nobody takes connections at {HERE}:{port}: connection refused." and "correct the port" in fix


def test_another_service_at_that_port() -> None:
    with listening(lambda wire: wire.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as web:
        what, fix = probed(web)
    assert "does not answer as a listener of Kafka for clients does" in what and "Correct the port" in fix


def test_a_port_that_never_answers_takes_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "PROBE_S", 0.2)
    with listening(lambda wire: time.sleep(30)) as silent:
        began_s = time.monotonic()
        setup = Setup({}, Path(), Connection(silent), named=True, absent={"broker": "no broker was reached"})
        results = list(examine(broker.CHECKS[:3], setup))
        assert time.monotonic() - began_s < 20
    assert results[0].findings[0].level is Level.FAULT
    assert [one.findings[0].level for one in results[1:]] == [Level.UNKNOWN] * 2


@pytest.mark.parametrize(
    ("name", "found", "fix"),
    [
        ("stranger", "is not signed by .*ca.pem .self-signed", "ssl.ca.location"),
        ("expired", "has expired", "renew it"),
        ("elsewhere", f"is not for {HERE}", f"reissued with {HERE} among its names"),
    ],
)
def test_certificates_that_do_not_hold(certs: Certificates, name: str, found: str, fix: str) -> None:
    with listening(tls(certs, name)) as server:
        what, mend = probed(server, security_protocol="SSL", ssl_ca_location=certs["ca.pem"])
    assert re.search(found, what), what
    assert fix in mend


def test_a_certificate_that_is_wanted_of_the_client(certs: Certificates) -> None:
    known = {"security_protocol": "SSL", "ssl_ca_location": certs["ca.pem"]}
    own = {"ssl_certificate_location": certs["stranger.pem"], "ssl_key_location": certs["stranger.key"]}
    with listening(tls(certs, "good", wants=True)) as server:
        what, fix = probed(server, **known)
        assert "wants a certificate of its clients, and none is set" in what and "ssl.certificate.location" in fix
        what, fix = probed(server, **known, **own)
        assert "does not take this client's certificate" in what and "signed by an authority" in fix
        what, fix = probed(server)
        assert "speaks TLS and wants a certificate of its clients, and security.protocol is PLAINTEXT" in what


def test_tls_to_plain_plain_to_tls_and_files_that_are_none(certs: Certificates, tmp_path: Path) -> None:
    with listening(kafka) as plain, listening(tls(certs, "good")) as secure:
        what, fix = probed(plain, security_protocol="SSL")
        assert "speaks PLAINTEXT, and security.protocol is SSL" in what
        assert fix == "Set security.protocol=PLAINTEXT in client.properties."
        assert "speaks SSL, and security.protocol is PLAINTEXT" in probed(secure)[0]
        what, fix = probed(secure, security_protocol="SSL", ssl_ca_location=tmp_path / "none.pem")
        assert "cannot be loaded" in what and "Correct ssl.ca.location" in fix
