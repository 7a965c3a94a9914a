"""How the members of a generation connect straight to each other: each to those of lower rank, where they listen.

Must not know what is sent. Every wait ends by a given time, or when it is abandoned.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from antdt.strategies.allreduce.sockets import Address

PEERS_MAX = 15
HELLO = struct.Struct("!16s2Q")  # the word that the listener has told the store, a rank, and which connection it is
SLICE_S = 0.05

Which = tuple[int, int]  # whose connection, and which of them
Connections = dict[Which, socket.socket]
NOBODY: Which = (-1, 0)


class Door:
    """Where one member takes connections of others. `said`: for them, and nobody else, to find it."""

    def __init__(self, host: str) -> None:
        """host: own address, as a number."""
        self._listener = socket.create_server((host, 0), family=_family(host), backlog=PEERS_MAX)
        self._names = dict[int, str]()
        self._word, self._abandoned = secrets.token_bytes(16), threading.Event()
        self.said = f"{host} {self._listener.getsockname()[1]} {self._word.hex()}"

    def meet(
        self, rank: int, others: Mapping[int, str], until_s: float, each: int = 1, names: Sequence[str] = ()
    ) -> Connections:
        """Connections to all others, by rank and number. others: what they have `said`. until_s: by time.monotonic().
        each: so many to each. names: of all members in rank order, for people.

        Raises OSError, which says who could not be reached, or has not come.
        """
        found: Connections = {}
        self._names = {other: names[other] if names else f"rank {other}" for other in others}
        try:
            for other, said in others.items():
                host, port, word = said.split(" ")
                for number in range(each if other < rank else 0):
                    found[other, number] = self._connect(other, (host, int(port)), until_s)
                    found[other, number].sendall(HELLO.pack(bytes.fromhex(word), rank, number))
            awaited = {(other, number) for other in others if other > rank for number in range(each)}
            while awaited:
                which, connection = self._accept(awaited, until_s)
                awaited.discard(which)
                found[which] = connection
        except OSError:
            for connection in found.values():
                connection.close()
            raise
        finally:
            self._listener.close()
        return found

    def _connect(self, other: int, address: Address, until_s: float) -> socket.socket:
        while True:
            left_s = self._left_s(until_s, f"{self._names[other]} was not reached")
            with suppress(TimeoutError):
                return socket.create_connection(address, timeout=min(left_s, 20 * SLICE_S))

    def _accept(self, awaited: set[Which], until_s: float) -> tuple[Which, socket.socket]:
        """The next one of those that are awaited; a stranger is sent away."""
        who = f"{self._names[min(awaited)[0]]} has not connected"
        while True:
            self._listener.settimeout(min(self._left_s(until_s, who), SLICE_S))
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                which = self._introduced(connection, until_s)
                if which in awaited:
                    return which, connection
                connection.close()

    def _introduced(self, connection: socket.socket, until_s: float) -> Which:
        """Who has connected; nobody where it does not know the word."""
        said = b""
        with suppress(OSError):
            connection.settimeout(max(SLICE_S, min(1.0, until_s - time.monotonic())))
            while len(said) < HELLO.size and (more := connection.recv(HELLO.size - len(said))):
                said += more
        if len(said) < HELLO.size:
            return NOBODY
        word, rank, number = HELLO.unpack(said)
        return (int(rank), int(number)) if secrets.compare_digest(word, self._word) else NOBODY

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
