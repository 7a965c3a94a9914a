"""One user's hold on the broker of a folder, which others may use, too: `antdt up` of several jobs, `antdt demo`.

Owns the user's side of `keeper`: take a shared lock, have a broker, and be gone without leaving one that nobody uses.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import running
from antdt_schemas.errors import ExitCode, Unavailable, UsageError

from antdt_streams.broker.keeper import KEEPER, LOG, USERS
from antdt_streams.host import locks
from antdt_streams.host.child import ServiceEnded

STARTING = "starting"
POLL_S = 0.1
SILENCE_S = 0.5
START_S = 600.0  # what is fetched and prepared once may take long
STOP_S = 30.0
REACH_S = 10.0


class BrokerUse:
    """From `open` to `close` there is a broker, and it is not ended by anybody else who uses it.

    say: takes a line for people whenever something is waited for. stopping: whether this user wants to end.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], stopping: Callable[[], bool] = lambda: False) -> None:
        self.folder, self.say, self.stopping = folder.absolute(), say, stopping
        self._lease: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._bootstrap = ""

    @property
    def connection(self) -> Connection:
        return Connection(self._bootstrap)

    def open(self) -> Self:
        """Have a broker: the one that runs, or one that is started now.

        Raises:
            AntdtError, UsageError: it cannot be had; why.
            KeyboardInterrupt: told to stop meanwhile.
        """
        gone = f"The broker of {self.folder} is just being stopped"
        self._lease = self._await(lambda: locks.acquire(self.folder / USERS, shared=True), USERS, gone, STOP_S)
        try:
            self._ensure()
        except BaseException:
            self.close()
            raise
        return self

    def look(self) -> None:
        """Start it again if whoever keeps it was killed."""
        if running(self.folder) is None:
            free = locks.acquire(self.folder / KEEPER)
            if free is not None:  # otherwise its keeper is about to start it
                os.close(free)
                self.say(f"The broker of {self.folder} has ended: it is started again. See {self.folder / LOG}")
                before = self._bootstrap
                self._ensure()
                if self._bootstrap != before:
                    what = f"The broker of {self.folder} is at {self._bootstrap} now, and no more at {before}."
                    raise Unavailable(what, "Start this again, and the workers.")

    def close(self) -> None:
        """Let go; whoever is the last one ends the broker, and has seen it end."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            if locks.convert(lease, shared=False):
                self._end_keeper()
        finally:
            os.close(lease)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how it is started and ended

    def _ensure(self) -> None:
        by_another = f"The broker of {self.folder} is just being started"
        lock = self._await(lambda: locks.acquire(self.folder / STARTING), STARTING, by_another, START_S)
        try:
            if running(self.folder) is None:
                self._start()
            address = running(self.folder)
            if address is None:
                raise Unavailable(f"The broker of {self.folder} has ended at once.", f"See {self.folder / LOG}.")
            self._bootstrap = address
            self.connection.check_reachable(REACH_S)
        finally:
            os.close(lock)

    def _await(self, acquire: Callable[[], int | None], name: str, what: str, bound_s: float) -> int:
        """A lock that somebody else may have for a while."""
        began, said = time.monotonic(), False
        while (lock := acquire()) is None:
            self._check_stopping()
            waited_s = time.monotonic() - began
            by = locks.holder(self.folder / name)
            if waited_s > bound_s:
                raise Unavailable(f"{what} by process {by}, for {bound_s:g} s.", "Look at that process.")
            if waited_s > SILENCE_S and not said:
                said = True
                self.say(f"{what} by process {by}: waiting for that …")
            time.sleep(POLL_S)
        return lock

    def _check_stopping(self) -> None:
        if self.stopping():
            raise KeyboardInterrupt

    def _start(self) -> None:
        """What it says until the broker answers, it says in this terminal."""
        read, write = os.pipe()
        try:
            command = [sys.executable, "-m", "antdt_streams.broker.keeper", str(self.folder), str(write)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, pass_fds=(write,)
            )
            os.close(write)
            write = -1
            found = self._report(read)
        finally:
            os.close(read)
            if write >= 0:
                os.close(write)
        if found.get("code") == ExitCode.USAGE:
            raise UsageError(found["message"])
        if found:
            raise ServiceEnded(found["message"], ExitCode(found["code"]))

    def _report(self, read: int) -> dict[str, Any]:
        """Empty once the broker serves clients."""
        until, said = time.monotonic() + START_S, b""
        while not said.endswith(b"\n"):
            self._check_stopping()
            if time.monotonic() > until:
                raise Unavailable(f"The broker of {self.folder} does not answer within {START_S:g} s.")
            if select.select([read], [], [], POLL_S)[0]:
                part = os.read(read, 1 << 16)
                if not part:
                    raise Unavailable(f"What keeps the broker of {self.folder} has ended before it answered.")
                said += part
        return dict(json.loads(said))

    def _end_keeper(self) -> None:
        """Nobody else uses it, and nobody can begin to while this process has the lock alone."""
        own, until = self._process, time.monotonic() + STOP_S
        if own is not None and own.poll() is None:
            own.terminate()  # it may not have got as far as its lock
            with suppress(subprocess.TimeoutExpired):
                own.wait(STOP_S)
        pid = locks.holder(self.folder / KEEPER)
        while (free := locks.acquire(self.folder / KEEPER)) is None:
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if time.monotonic() > until:
                self.say(f"Process {pid}, which keeps the broker of {self.folder}, does not end within {STOP_S:g} s.")
                return
            time.sleep(POLL_S)
        os.close(free)
