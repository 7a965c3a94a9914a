"""The store in which the members of a generation find each other's addresses: JSON lines over TCP.

Must not know groups. torch's own TCPStore will not do, measured: its client asks the name service for the name of a
numeric address at every connection (5 s where that does not answer), and its calls hang for good, observing no
timeout, once the serving process is stopped. Whoever reaches the port may read and write, as with gloo's own.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Any

import torch.distributed

LINE_MAX_BYTES = 2**20
GENERATIONS_MAX = 4
IDLE_TIMEOUT_S = 60.0
POLL_S = 0.0005


class StoreServer(socketserver.ThreadingTCPServer):
    """Keeps the values of the newest GENERATIONS_MAX generations: older ones are over."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str) -> None:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        self.address_family = family
        try:
            super().__init__((host, 0), _Conversation)
        except OSError:  # advertised, but not ours to bind: behind a service or an address translation
            super().__init__(("::" if family == socket.AF_INET6 else "0.0.0.0", 0), _Conversation)
        self._values: dict[int, dict[str, str]] = {}
        self._lock = threading.Lock()

    def answer(self, request: dict[str, Any]) -> dict[str, str]:
        """A "key" is set to "value"; in any case, the answer is what is known of the keys that begin with "read"."""
        with self._lock:
            values = self._values.setdefault(int(request["generation"]), {})
            for number in sorted(self._values)[:-GENERATIONS_MAX]:
                del self._values[number]
            if "key" in request:
                values[str(request["key"])] = str(request["value"])
            prefix = str(request["read"])
            return {key: value for key, value in values.items() if key.startswith(prefix)}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A member that went away, or a stranger: its connection ends, and that is all."""


class _Conversation(socketserver.StreamRequestHandler):
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    server: StoreServer

    def handle(self) -> None:
        while line := self.rfile.readline(LINE_MAX_BYTES):
            self.wfile.write(json.dumps(self.server.answer(json.loads(line))).encode() + b"\n")


class StoreClient:
    """One member's view of one generation's values. Every wait ends by `until` (monotonic) or when abandoned."""

    def __init__(self, host: str, port: int, generation: int, until: float) -> None:
        """Raises OSError when the store does not answer."""
        self._generation, self._until = generation, until
        self._known: dict[str, str] = {}
        self._abandoned = threading.Event()
        self._socket = socket.create_connection((host, port), timeout=self._left())
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")

    def set(self, key: str, value: bytes) -> None:
        """For all members to read."""
        self._ask({"key": key, "value": value.hex(), "read": key})

    def get(self, key: str) -> bytes:
        """Waits until somebody has set it."""
        family = key.rpartition("/")[0] + "/"  # with the one asked for come those of the other members
        while key not in self._known:
            self._known |= self._ask({"read": family})
            if key not in self._known and self._abandoned.wait(POLL_S):
                raise OSError("abandoned")
        return bytes.fromhex(self._known[key])

    def _ask(self, request: dict[str, Any]) -> dict[str, str]:
        self._socket.settimeout(self._left())
        self._socket.sendall(json.dumps({"generation": self._generation} | request).encode() + b"\n")
        line = self._lines.readline(LINE_MAX_BYTES)
        if not line.endswith(b"\n"):
            raise OSError("the store went away")
        found: dict[str, str] = json.loads(line)
        return found

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the generation did not form in time")
        return left

    def abandon(self) -> None:
        """From any thread: whoever waits here raises OSError."""
        self._abandoned.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The server forgets the connection; the values stay."""
        self._lines.close()
        self._socket.close()


class GroupStore(torch.distributed.Store):  # type: ignore[misc]
    """What a process group sees of it: keys of its own under a name."""

    def __init__(self, client: StoreClient, name: str) -> None:
        super().__init__()
        self._client, self._name = client, name

    def set(self, key: str, value: bytes | str) -> None:
        """Called by gloo with its own addresses."""
        self._client.set(f"{self._name}/{key}", value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """Called by gloo for a peer's addresses."""
        return self._client.get(f"{self._name}/{key}")

    def wait(self, keys: list[str], _timeout: Any = None) -> None:
        """The client's own bound is the shorter one."""
        for key in keys:
            self.get(key)
