"""Forks processes that find imported what they need: `python -m tests.helpers.warm_server LISTENER KIND`.

LISTENER is a socket's descriptor; KIND says what is imported, torch and what a worker needs of it, or the services.

One message is one process: what to run, pickled, and descriptors to go with it. The answers on the same connection are
its pid, and its exit status as the system has it. It is killed when the connection ends, or this server.

It has no threads, as `antdt launch` has none when it forks.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

MESSAGE_MAX_BYTES = 1 << 20
PIPES_MAX = 4
TRAINER, SERVICES = "trainer", "services"


def main() -> None:
    """Serve until killed."""
    {TRAINER: preload_trainer, SERVICES: preload_services}[sys.argv[2]]()
    Server(socket.socket(fileno=int(sys.argv[1]))).run()


def preload_trainer() -> None:
    """What `antdt launch` has imported when it forks its workers, and itself."""
    from antdt.launch import launcher as launch
    from antdt.launch import process

    assert launch is not None
    process.preload(os.environ)


def preload_services() -> None:
    """What a service imports before it does anything."""
    from antdt_streams.cli import processors, replay, services
    from antdt_streams.controller import service as controller
    from antdt_streams.ledger import service as ledger
    from antdt_streams.monitor import service as monitor
    from antdt_streams.runtime import faust_app, run

    assert None not in (processors, replay, services, controller, ledger, monitor, faust_app, run)
    gc.freeze()


class Server:
    """Waits for three things: a request, the end of a process, the end of whoever asked for it."""

    def __init__(self, listener: socket.socket) -> None:
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, lambda: self.accept(listener))

    def run(self) -> None:
        """Serve."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj in self.selector.get_map():  # or it went with one before it
                    key.data()

    def accept(self, listener: socket.socket) -> None:
        """Somebody who will ask for a process."""
        asker = listener.accept()[0]
        self.selector.register(asker, selectors.EVENT_READ, lambda: self.start(asker))

    def start(self, asker: socket.socket) -> None:
        """Fork it."""
        self.selector.unregister(asker)
        request, pipes, _, _ = socket.recv_fds(asker, MESSAGE_MAX_BYTES, PIPES_MAX)
        if not request:
            asker.close()
            return
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            from antdt.host.child import die_with_parent

            die_with_parent(lambda: os.getppid() == server)
            os.setsid()  # as antdt_streams.host.child.spawn does
            asker.close()
            for key in self.selector.get_map().values():
                os.close(key.fd)
            begin(*pickle.loads(request), pipes=[Connection(pipe) for pipe in pipes])
        for pipe in pipes:
            os.close(pipe)
        asker.send(str(pid).encode())
        pidfd = os.pidfd_open(pid)

        def ended() -> None:
            self.selector.unregister(pidfd)
            self.selector.unregister(asker)
            os.close(pidfd)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(OSError):  # nobody wants to know
                asker.send(str(status).encode())
            asker.close()

        self.selector.register(pidfd, selectors.EVENT_READ, ended)
        self.selector.register(asker, selectors.EVENT_READ, lambda: os.kill(pid, signal.SIGKILL))


def begin(
    target: Callable[..., None],
    args: tuple[Any, ...],
    environ: dict[str, str],
    output: str,
    cwd: str,
    pipes: list[Connection],
) -> None:
    """Be the process, to its end."""
    # Whoever runs the tests in the background has SIGINT ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    code = 1
    try:
        target(*args, *pipes)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
    # And it ends as an interpreter does: a forked process would skip what a step that is open might block.
    ctypes.pythonapi.Py_Exit(code)


if __name__ == "__main__":
    main()
