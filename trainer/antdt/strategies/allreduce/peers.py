"""How the members of a generation connect straight to each other: each to those of lower rank, where they listen.

Must not know what is sent. Every wait ends by a given time, or when it is abandoned.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from antdt.strategies.allreduce.sockets import Address

PEERS_MAX = 15
HELLO = struct.Struct("!16sQ")  # the word that the listener has told the store, and a rank
SLICE_S = 0.05


class Door:
    """Where one member takes connections of others. `said`: for them, and nobody else, to find it."""

    def __init__(self, host: str) -> None:
        """host: own address, as a number."""
        self._listener = socket.create_server((host, 0), family=_family(host), backlog=PEERS_MAX)
        self._word, self._abandoned = secrets.token_bytes(16), threading.Event()
        self.said = f"{host} {self._listener.getsockname()[1]} {self._word.hex()}"

    def meet(self, rank: int, others: Mapping[int, str], until_s: float) -> dict[int, socket.socket]:
        """Connections to all others, by rank. others: what they have `said`. until_s: by time.monotonic().

        Raises OSError, which says who could not be reached, or has not come.
        """
        found = dict[int, socket.socket]()
        try:
            for other, said in others.items():
                if other < rank:
                    host, port, word = said.split(" ")
                    found[other] = self._connect(other, (host, int(port)), until_s)
                    found[other].sendall(HELLO.pack(bytes.fromhex(word), rank))
            awaited = {other for other in others if other > rank}
            while awaited:
                other, connection = self._accept(awaited, until_s)
                awaited.discard(other)
                found[other] = connection
        except OSError:
            for connection in found.values():
                connection.close()
            raise
        finally:
            self._listener.close()
        return found

    def _connect(self, other: int, address: Address, until_s: float) -> socket.socket:
        while True:
            left_s = self._left_s(until_s, f"rank {other} was not reached")
            with suppress(TimeoutError):
                return socket.create_connection(address, timeout=min(left_s, 20 * SLICE_S))

    def _accept(self, awaited: set[int], until_s: float) -> tuple[int, socket.socket]:
        """The next one of those that are awaited; a stranger is sent away."""
        who = f"rank {min(awaited)} has not connected"
        while True:
            self._listener.settimeout(min(self._left_s(until_s, who), SLICE_S))
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                other = self._introduced(connection, until_s)
                if other in awaited:
                    return other, connection
                connection.close()

    def _introduced(self, connection: socket.socket, until_s: float) -> int:
        """The rank of whoever has connected; -1 of who does not know the word."""
        said = b""
        with suppress(OSError):
            connection.settimeout(max(SLICE_S, min(1.0, until_s - time.monotonic())))
            while len(said) < HELLO.size and (more := connection.recv(HELLO.size - len(said))):
                said += more
        if len(said) < HELLO.size:
            return -1
        word, rank = HELLO.unpack(said)
        return int(rank) if secrets.compare_digest(word, self._word) else -1

    def _left_s(self, until_s: float, who: str) -> float:
        if self._abandoned.is_set():
            raise OSError("abandoned")
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise OSError(f"{who} in time")
        return left_s

    def abandon(self) -> None:
        """From any thread: who waits here raises OSError soon."""
        self._abandoned.set()

    def close(self) -> None:
        """Nobody can come any more."""
        self._listener.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
