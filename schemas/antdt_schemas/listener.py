"""What a listener of Kafka speaks, asked without a client of Kafka: TLS or not, SASL with which mechanisms or not.

A client whose `security.protocol` is another than the listener's only sees its connections closed, which is also what a
broker does that is about to stop. This asks the one question that tells them apart. Knows no settings.
"""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass

SASL_HANDSHAKE, VERSION = 17, 1
API_VERSIONS = 18
HEAD = struct.Struct(">hhih")  # which request, its version, its number, the length of a name that is left out
UNSUPPORTED_MECHANISM, NO_SASL_HERE = 33, 34
ANSWER_BYTES_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a listener speaks. `mechanisms` is empty where it wants no credentials."""

    tls: bool
    mechanisms: tuple[str, ...]

    @property
    def protocol(self) -> str:
        """As `security.protocol` names it."""
        return ("SASL_" if self.mechanisms else "") + ("SSL" if self.tls else "PLAINTEXT")


def host_port(server: str) -> tuple[str, int]:
    """Host and port of `[PROTOCOL://]HOST[:PORT]`; an IPv6 address loses its brackets."""
    server = server.strip().rpartition("://")[2]
    host, colon, port = server.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = server, "9092"
    return host.strip("[]"), int(port)


def spoken(server: str, timeout_s: float) -> Spoken | None:
    """What the listener at this address speaks; None if nobody answers there, or nothing that Kafka would."""
    for tls in (False, True):
        mechanisms = _mechanisms(host_port(server), tls, timeout_s)
        if mechanisms is not None:
            return Spoken(tls, mechanisms)
    return None


def connects(host: str, port: int, timeout_s: float) -> str:
    """Empty if a connection is taken there within the time, else why not."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        return str(error.strerror or error).lower()
    return ""


def api_versions(server: str, *, tls: bool, timeout_s: float) -> dict[int, tuple[int, int]]:
    """Number of each kind of request that a broker takes -> its oldest and newest version; empty if it does not say."""
    data = _asked(host_port(server), tls, timeout_s, API_VERSIONS, 0, b"")
    if data is None or len(data) < 10 or struct.unpack_from(">ih", data) != (1, 0):
        return {}
    (count,) = struct.unpack_from(">i", data, 6)
    rows = [struct.unpack_from(">hhh", data, 10 + 6 * i) for i in range(min(count, (len(data) - 10) // 6))]
    return {key: (oldest, newest) for key, oldest, newest in rows}


def _mechanisms(address: tuple[str, int], tls: bool, timeout_s: float) -> tuple[str, ...] | None:
    """Ask to begin SASL with a mechanism that nobody has: the refusal lists those that there are."""
    data = _asked(address, tls, timeout_s, SASL_HANDSHAKE, VERSION, struct.pack(">h", 1) + b"-")
    return None if data is None else _answer(data)


def _asked(
    address: tuple[str, int], tls: bool, timeout_s: float, request: int, version: int, body: bytes
) -> bytes | None:
    """The answer to one request on a connection of its own; None if there is none."""
    try:
        with socket.create_connection(address, timeout=timeout_s) as plain:
            wire = _context().wrap_socket(plain) if tls else plain
            whole = HEAD.pack(request, version, 1, -1) + body
            wire.sendall(struct.pack(">i", len(whole)) + whole)
            with wire.makefile("rb") as answers:
                (size,) = struct.unpack(">i", answers.read(4))
                data = answers.read(size) if 10 <= size <= ANSWER_BYTES_MAX else b""
            return data if len(data) == size else None
    except (OSError, struct.error):
        return None


def _context() -> ssl.SSLContext:
    """Nothing is told to whoever is there: who it is does not matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _answer(data: bytes) -> tuple[str, ...] | None:
    correlation, error, count = struct.unpack_from(">ihi", data)
    if correlation != 1 or error not in (UNSUPPORTED_MECHANISM, NO_SASL_HERE):
        return None
    names, at = [], 10
    for _ in range(count if error == UNSUPPORTED_MECHANISM else 0):
        (length,) = struct.unpack_from(">h", data, at)
        names.append(data[at + 2 : at + 2 + length].decode())
        at += 2 + length
    return tuple(names)
