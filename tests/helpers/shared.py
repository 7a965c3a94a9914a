"""What a run of the tests has one of, however many processes share the tests: a broker, servers of warm processes, and
a shelf of what one has computed and others need, too.

The process that leads the run has them, starts each when somebody asks for it first, and tells whoever asks where it
is. They are its children, and die with it, whatever it dies of.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from antdt_schemas.connection import Connection
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.host.child import spawn
from antdt_streams.host.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
ENV_ADDRESS, ENV_LEADER, ENV_SHELF = "ANTDT_TESTS_SHARED", "ANTDT_TESTS_LEADER", "ANTDT_TESTS_SHELF"
BROKER = "broker"
BACKLOG = 128


@dataclass(frozen=True)
class SharedBroker:
    """A running broker that somebody else has started."""

    folder: Path
    bootstrap: str
    pid: int

    @property
    def connection(self) -> Connection:
        """How to reach it."""
        return Connection(self.bootstrap)


class Leader:
    """Answers in a thread of the process that leads the run; an answer is a value, or what went wrong."""

    def __init__(self) -> None:
        self._listener = Listener(family="AF_UNIX")
        self._shelf = tempfile.TemporaryDirectory(prefix="antdt-tests-")
        # Those that share the tests are its children.
        os.environ |= {
            ENV_ADDRESS: str(self._listener.address),
            ENV_LEADER: str(os.getpid()),
            ENV_SHELF: self._shelf.name,
        }
        self._broker: EmbeddedBroker | None = None
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        threading.Thread(target=self._serve, name="shared", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                asker = self._listener.accept()
            except OSError:  # closed
                return
            with asker, suppress(EOFError, BrokenPipeError):
                what, folder = asker.recv()
                try:
                    asker.send(self._a_broker(folder) if what == BROKER else self._server(what))
                except Exception as error:  # noqa: BLE001  raised where it was asked for
                    asker.send(error)

    def _a_broker(self, folder: Path) -> SharedBroker:
        if self._broker is None:
            self._broker = EmbeddedBroker(folder).start()
        assert self._broker.pid is not None, "somebody has ended the broker that all share"
        return SharedBroker(self._broker.folder, self._broker.bootstrap, self._broker.pid)

    def _server(self, kind: str) -> str:
        """Where it listens, and ".log" what it says. It is bound before the server runs: who is early waits."""
        address = f"{self._listener.address}-{kind}"
        if kind not in self._servers:
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, open(f"{address}.log", "wb") as log:
                listener.bind(address)
                listener.listen(BACKLOG)
                command = [sys.executable, "-m", "tests.helpers.warm_server", str(listener.fileno()), kind]
                quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                self._servers[kind] = spawn(command, cwd=ROOT, env=environ, pass_fds=(listener.fileno(),), **quiet)
        return address

    def close(self) -> None:
        """End what was started."""
        self._listener.close()
        if self._broker is not None:
            self._broker.kill()  # nobody wants its data
        for server in self._servers.values():
            server.kill()
            server.wait()
        self._shelf.cleanup()


def ask(what: str, folder: Path | None = None) -> Any:
    """The run's BROKER, in `folder` if it is not started yet, or the address of its server of warm processes."""
    with Client(os.environ[ENV_ADDRESS], family="AF_UNIX") as leader:
        leader.send((what, folder))
        answer = leader.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def put(name: str, value: Any) -> None:
    """Lay something on the shelf; whoever takes it sees all of it or nothing."""
    write_whole(Path(os.environ[ENV_SHELF]) / name, pickle.dumps(value))


def take(name: str) -> Any:
    """What lies there; None if nobody has put it."""
    try:
        return pickle.loads((Path(os.environ[ENV_SHELF]) / name).read_bytes())
    except FileNotFoundError:
        return None
