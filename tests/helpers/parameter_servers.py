"""Servers and workers of one job in threads of one process, over real sockets, without a ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from antdt.files import checkpoint
from antdt.strategies.once import Once
from antdt.strategies.ps.client import Exchange
from antdt.strategies.ps.core.facts import Mode, Version
from antdt.strategies.ps.layout import layout_of
from antdt.strategies.ps.links import Patience
from antdt.strategies.ps.saving import Saved
from antdt.strategies.ps.server import Server
from antdt.strategies.ps.state import ServerState

JOB, HOST = "job", "127.0.0.1"
Made = tuple[torch.nn.Module, Any, Once | None]


class RemoteTable(torch.nn.Module):
    """As `antdt.Embedding` is to a server: rows elsewhere."""

    def __init__(self, rows: int, width: int, std: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0, width))
        self.rows, self.width, self.std, self.seed = rows, width, std, seed


class Group:
    """All servers of a job, each in a thread that turns until it is told to stop. `events`: of the primary."""

    def __init__(self, make: Callable[[], Made], servers: int, mode: Mode, folder: Path) -> None:
        self.make, self.folder = make, folder
        self.servers = []
        for part in range(servers):
            model, optimizer, once = make()
            state = ServerState(layout_of(model, optimizer), model, optimizer, part, servers, once)
            self.servers.append(Server(state, mode, JOB, self.write))
        self.events: list[Version | Saved] = []
        self.wrong: list[BaseException] = []
        self.generation, self.peers = 0, list[tuple[str, int]]()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self.lock = threading.Lock()

    def write(self, name: str, data: memoryview) -> bytes:
        return checkpoint.write_bytes(self.folder / name[-13:], name, bytes(data))

    def start(self) -> None:
        """A new generation."""
        self.generation += 1
        self.peers = [(HOST, server.bind(HOST)) for server in self.servers]
        self._stop.clear()
        for server in self.servers:
            server.begin(self.generation, self.peers)
        self._threads = [threading.Thread(target=self._turn, args=(one,)) for one in self.servers]
        for thread in self._threads:
            thread.start()

    def _turn(self, server: Server) -> None:
        try:
            while not self._stop.is_set():
                with self.lock:  # a turn answers many pushes: whoever has its answer finds the version here as well
                    events = server.turn(0)
                    self.events.extend(events)
                if not events:
                    self._stop.wait(0.0005)
        except BaseException as error:  # noqa: BLE001
            self.wrong.append(error)

    def stop(self) -> None:
        """The generation is over."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def versions(self) -> list[Version]:
        with self.lock:
            return [event for event in self.events if isinstance(event, Version)]

    @property
    def saved(self) -> list[Saved]:
        with self.lock:
            return [event for event in self.events if isinstance(event, Saved)]

    def worker(self, name: str) -> Exchange:
        """Connected."""
        model, optimizer, _ = self.make()
        exchange = Exchange(layout_of(model, optimizer), JOB, name, Patience(5))
        exchange.connect(self.generation, self.peers, lambda: bool(self.wrong))
        return exchange


@contextmanager
def group(make: Callable[[], Made], servers: int, mode: Mode, folder: Path) -> Iterator[Group]:
    """Started; what went wrong in a server's thread is raised at the end."""
    made = Group(make, servers, mode, folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()
        for server in made.servers:
            server.close()
    if made.wrong:
        raise made.wrong[0]
