"""Processes of this machine: started so that they do not outlive this one, told, ended."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from antdt_schemas.errors import AntdtError, ExitCode

# Set in the child before it becomes the program, and not in a preexec_fn: between fork and exec of a process with
# threads (librdkafka, torch) nothing but exec is safe. 1 is PR_SET_PDEATHSIG; a parent that is already gone is noticed.
LAUNCH = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
os.getppid() == int(sys.argv[1]) or os._exit(0)
os.execv(sys.argv[3], sys.argv[3:])
"""


class ServiceEnded(AntdtError):
    """A service ended for good. The exit code is its own: what must not be repeated is not repeated further up."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Process(Protocol):
    """What is used here of Popen."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Popen(command) in a session of its own; it is killed when this process ends in any way (Linux).

    The kernel sends that signal when the *thread* that started the child ends, so one thread that lives as long as the
    process starts them all.
    """
    if sys.platform.startswith("linux"):
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), str(int(signal.SIGKILL))]
        command = [*launch, *command]
    answer: queue.Queue[Any] = queue.Queue(1)
    _requests(os.getpid()).put((list(command), options, answer))
    result = answer.get()
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, subprocess.Popen)
    return result


def end(process: Process, grace_s: float) -> None:
    """SIGTERM, and SIGKILL when the grace is over. Returns once it is gone; one that is gone already is fine."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(grace_s)


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def outputs(pid: int) -> Iterator[tuple[int, str]]:
    """The children of a process that live, and where each one's output goes."""
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            with suppress(OSError):
                if alive(child):
                    yield child, str(Path(f"/proc/{child}/fd/1").readlink())


@cache
def _requests(pid: int) -> queue.Queue[Any]:
    """The inbox of the starting thread of process `pid`: a forked process gets a thread of its own."""
    requests: queue.Queue[Any] = queue.Queue(1)

    def serve() -> None:
        while True:
            command, options, answer = requests.get()
            try:
                answer.put(subprocess.Popen(command, start_new_session=True, **options))
            except BaseException as error:  # noqa: BLE001  it is raised where the child was asked for
                answer.put(error)

    threading.Thread(target=serve, name=f"antdt-spawn-{pid}", daemon=True).start()
    return requests
