"""TLS with a listener, tried as a client of Kafka would: which of the two does not trust the other, and why.

librdkafka says of all of it that a certificate could not be verified. Knows librdkafka's names of settings; only those
in PEM can be tried, which is what is said of others.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from antdt_schemas.listener import API_VERSIONS, HEAD, host_port
from antdt_schemas.reaching import Fault

# OpenSSL's numbers of what is wrong with a certificate.
EXPIRED, NOT_YET, HOST, ADDRESS = 10, 9, 62, 64
UNTRUSTED = (2, 18, 19, 20, 21)
OFF = ("false", "0", "none", "no", "off")
# What a listener says that wants a certificate of its client, and has got none, or another one.
WANTS = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN")
NO_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")


def tls_fault(server: str, properties: Mapping[str, str], timeout_s: float) -> Fault | None:
    """What keeps a client with these settings from a TLS connection with that listener, and what mends it.

    Raises:
        OSError: nobody is there, or nobody who speaks TLS.
    """
    host, port = host_port(server)
    try:
        context = context_of(properties)
    except (OSError, ssl.SSLError) as error:
        return f"The certificates of the settings cannot be loaded: {error}.", _files(properties)
    try:
        plain = socket.create_connection((host, port), timeout=timeout_s)
        with plain, context.wrap_socket(plain, server_hostname=host) as wire:
            return _behind_handshake(server, wire, properties)
    except ssl.SSLCertVerificationError as error:
        return judged(server, host, error.verify_code, error.verify_message, properties)
    except ssl.SSLError as error:
        if any(word in (error.reason or "") for word in WANTS):
            return wants(server, properties)
        if any(word in (error.reason or "") for word in NO_TLS):
            raise OSError(f"it does not speak TLS ({error.reason})") from error
        return f"No TLS connection with {server}: {error.reason or error}.", "Compare ssl.protocol and ciphers of both."


def _behind_handshake(server: str, wire: ssl.SSLSocket, properties: Mapping[str, str]) -> Fault | None:
    """A listener that speaks TLS 1.3 refuses a client's certificate, or that it has none, only now: by an alert, which
    may be lost with the connection.
    """
    body = HEAD.pack(API_VERSIONS, 0, 1, -1)
    try:
        wire.sendall(struct.pack(">i", len(body)) + body)
        answered = bool(wire.recv(4))
    except (ssl.SSLError, ConnectionError):
        answered = False
    return None if answered else wants(server, properties)


def judged(server: str, host: str, code: int, said: str, properties: Mapping[str, str]) -> Fault:
    """A certificate of a broker that does not hold. code, said: OpenSSL's."""
    authority = properties.get("ssl.ca.location") or "the authorities of this machine"
    if code == EXPIRED:
        return f"The certificate of {server} has expired.", "Have the broker's administrator renew it."
    if code == NOT_YET:
        return f"The certificate of {server} is not valid yet.", "Set this machine's clock, or the broker's (NTP)."
    if code in (HOST, ADDRESS):
        return (
            f"The certificate of {server} is not for {host} ({said}).",
            f"Have it reissued with {host} among its names, or name the broker as its certificate does.",
        )
    if code in UNTRUSTED:
        return (
            f"The certificate of {server} is not signed by {authority} ({said}).",
            "Name the certificate of the authority that has signed it in ssl.ca.location (PEM).",
        )
    return f"The certificate of {server} does not hold: {said}.", "Have the broker's administrator look at it."


def wants(server: str, properties: Mapping[str, str]) -> Fault:
    """The broker ends connections right behind the handshake: it wants a certificate of its clients."""
    given = properties.get("ssl.certificate.location") or properties.get("ssl.keystore.location")
    if given:
        return (
            f"The broker at {server} does not take this client's certificate, {given}.",
            "Have it signed by an authority that the broker's trust store has.",
        )
    return (
        f"The broker at {server} wants a certificate of its clients, and none is set.",
        "Name one that the broker's authority has signed in ssl.certificate.location, its key in ssl.key.location.",
    )


def context_of(properties: Mapping[str, str]) -> ssl.SSLContext:
    """As librdkafka would have it.

    Raises:
        OSError, ssl.SSLError: a file cannot be read, or is no PEM.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    checks_host = properties.get("ssl.endpoint.identification.algorithm", "https").lower() not in OFF
    verifies = properties.get("enable.ssl.certificate.verification", "true").lower() not in OFF
    context.check_hostname = checks_host and verifies
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    authority, pem = properties.get("ssl.ca.location", ""), properties.get("ssl.ca.pem")
    if pem:
        context.load_verify_locations(cadata=pem)
    elif authority and authority != "probe":
        where = "capath" if Path(authority).is_dir() else "cafile"
        context.load_verify_locations(**{where: authority})  # type: ignore[arg-type]
    else:
        context.load_default_certs()
    if properties.get("ssl.certificate.location"):
        password: Callable[[], str] = lambda: properties.get("ssl.key.password", "")  # noqa: E731
        context.load_cert_chain(
            properties["ssl.certificate.location"], properties.get("ssl.key.location") or None, password
        )
    return context


def _files(properties: Mapping[str, str]) -> str:
    named = [key for key in ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location") if key in properties]
    return f"Correct {', '.join(named) or 'them'}: files in PEM that this user can read."
