"""Processes that find torch imported: importing it is most of what a short one costs, and changes nothing else.

A server, one for each process of the test run, imports it once and forks whoever is asked for, as `antdt launch` does
with its workers. What is started here is a process like any other: it has a pid, and is killed, stopped and awaited.
`python -m antdt.launch` itself is run by chaos, the demo and the documents.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PRELOADED = ["torch._dynamo", "antdt.agent", "antdt.launch"]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read while torch is imported; what `antdt launch` sets as well
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


class Warm:
    """Runs target(*args) in a process of its own; what tests use of Popen."""

    def __init__(
        self, target: Callable[..., None], args: tuple[Any, ...], environ: Mapping[str, str], output: Path
    ) -> None:
        """`output` is where it writes what it says; `args` may have connections of `Pipe` among them."""
        self._process = _server.Process(target=_begin, args=(target, args, dict(environ), str(output)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As Popen's: negative for a signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status once it has ended."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """The exit status; TimeoutExpired if it goes on."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Unless it has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


def launched(arguments: list[str], environ: Mapping[str, str], output: Path) -> Warm:
    """`antdt launch` with these arguments."""
    return Warm(_launch, (arguments,), environ, output)


def _begin(target: Callable[..., None], args: tuple[Any, ...], environ: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environ)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    code = 1
    try:
        target(*args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
    # And it ends as an interpreter does: a forked process would skip what a step that is open might block.
    ctypes.pythonapi.Py_Exit(code)


def _launch(arguments: list[str]) -> None:
    from antdt.launch import main

    main(arguments, prog_name="antdt launch")
