"""A wire between clients and a broker that may go dead: its connections stay open and carry nothing."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 << 10
TO_BROKER, TO_CLIENT = "to the broker", "to the client"


class Wire:
    """Forwards TCP connections from an address of its own to `target`, which may be set after it was made."""

    def __init__(self) -> None:
        self.target = "", 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._dead: set[tuple[socket.socket, str]] = set()
        self._open: dict[socket.socket, socket.socket] = {}

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def go_dead(self, *ways: str) -> int:
        """From now on, what the connections of this moment carry this way is lost in silence; how many there are."""
        with self._lock:
            self._dead |= {(client, way) for client in self._open for way in ways}
            return len(self._open)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.close()
        with self._lock:
            for ends in self._open.items():
                for end in ends:
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self.target)
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open[client] = server
                for way in (TO_BROKER, TO_CLIENT):
                    threading.Thread(target=self._pump, args=(client, server, way), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket, way: str) -> None:
        """One way of one connection. A dead one also keeps to itself that an end has hung up."""
        source, sink = (client, server) if way == TO_BROKER else (server, client)
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if (client, way) not in self._dead:
                    sink.sendall(data)
        with self._lock:
            if (client, way) in self._dead:
                return
            self._open.pop(client, None)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
