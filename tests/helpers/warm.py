"""Processes that find imported what they need: importing is most of what a short one costs, and changes nothing else.

A server, one of each kind for the whole run of the tests, imports it once and forks whoever is asked for, as `antdt
launch` does with its workers. What is started here is a process like any other: it has a pid, and is killed, stopped
and awaited. The commands themselves, `python -m antdt_streams` and `python -m antdt.launch`, are run by the tests of
the demo and of the documents.
"""

from __future__ import annotations

import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from antdt.host.child import leave

from tests.helpers.shared import ask
from tests.helpers.warm_server import SERVICES, TRAINER

START_S = 60.0
LAUNCH = "antdt.launch"


class Warm:
    """Runs target(*args, *pipes) in a process of its own; what tests use of Popen."""

    def __init__(
        self,
        target: Callable[..., None],
        args: tuple[Any, ...],
        environ: Mapping[str, str],
        output: Path,
        pipes: Sequence[Connection] = (),
        kind: str = TRAINER,
    ) -> None:
        """`output` is where it writes what it says; `kind` says what it finds imported."""
        output.touch()
        server = ask(kind)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.settimeout(START_S)
        self._server.connect(server)
        request = pickle.dumps((target, args, dict(environ), str(output.absolute()), str(Path.cwd())))
        socket.send_fds(self._server, [request], [pipe.fileno() for pipe in pipes])
        answer = self._server.recv(16)
        assert answer, f"the server of warm processes has ended: {Path(f'{server}.log').read_text()}"
        self.pid = int(answer)
        self.returncode: int | None = None  # as Popen's: negative for a signal

    def poll(self) -> int | None:
        """The exit status once it has ended."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; TimeoutExpired if it goes on."""
        if self.returncode is None:
            self._server.settimeout(timeout)
            try:
                answer = self._server.recv(16)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0) from None
            assert answer, "the server of warm processes has ended"
            self.returncode = int(answer)
            self._server.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


def python(
    code: str, *arguments: str, folder: Path, environ: Mapping[str, str] = os.environ, kind: str = TRAINER
) -> subprocess.CompletedProcess[str]:
    """`python -c CODE ARGUMENTS`, to its end; what it says lies in the folder."""
    said = folder / "stdout", folder / "stderr"
    process = Warm(_python, (code, arguments, str(said[1].absolute())), environ, said[0], kind=kind)
    try:
        status = process.wait(START_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess([code, *arguments], status, *(one.read_text() for one in said))


def launched(arguments: Sequence[str], environ: Mapping[str, str], output: Path) -> Warm:
    """`antdt launch` with these arguments."""
    return Warm(_launch, (list(arguments),), environ, output)


def module(command: Sequence[str], environ: Mapping[str, str], output: Path) -> Warm:
    """`python -m` this, a service or a command of `antdt`."""
    return Warm(_run, (list(command),), environ, output, kind=SERVICES)


def started(command: Sequence[str], environ: Mapping[str, str], output: Path) -> Warm:
    """A supervise.Start: a launcher or a service, by the command line that users start it with."""
    assert list(command[:2]) == [sys.executable, "-m"], command
    name, *arguments = command[2:]
    return launched(arguments, environ, output) if name == LAUNCH else module([name, *arguments], environ, output)


def _python(code: str, arguments: Sequence[str], errors: str) -> None:
    handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 2)
    os.close(handle)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
    leave(0)


def _run(command: list[str]) -> None:
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _launch(arguments: list[str]) -> None:
    from antdt.launch.command import main

    main(arguments, prog_name="antdt launch")
