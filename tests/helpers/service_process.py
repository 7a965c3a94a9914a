"""A service in a process of its own, to be killed: `tests.helpers.service_process BOOTSTRAP JOB FOLDER` as a module."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from antdt_schemas.connection import Connection

from tests.helpers.warm import module


class Process:
    """A process that a test starts, kills and awaits; it does not outlive the `with` block."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._said_before = len(self.log.read_text()) if log.exists() else 0
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = module(command, os.environ, log)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def suspend(self) -> None:
        """SIGSTOP: it does nothing any more, and does not know."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def logged(self) -> str:
        """What it has said so far, and nothing of an earlier process with the same log."""
        return self.log.read_text()[self._said_before :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.kill()


class ServiceProcess(Process):
    """An instance of the counting service."""

    def __init__(self, connection: Connection, job: str, folder: Path, *flags: str) -> None:
        command = ["tests.helpers.service_process", connection.bootstrap, job, str(folder), *flags]
        super().__init__(command, folder.with_name(f"{folder.name}.log"))


class AntdtProcess(Process):
    """An instance of Monitor or Controller, as the command line starts it."""

    def __init__(self, connection: Connection, job: str, name: str, data: Path, *flags: str) -> None:
        place = ("--bootstrap-servers", connection.bootstrap, "--data-dir", str(data))
        super().__init__(["antdt_streams", name, job, *place, *flags], data / f"{name}.log")


def main() -> int:
    """Run the counting service. Its folder's name is the name of the instance, unless it is to have none."""
    from antdt_streams.runtime.partitions import Policy
    from antdt_streams.runtime.run import RunOptions, run_service

    from tests.helpers.counting import COUNTING

    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("job")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instance")
    parser.add_argument("--nameless", action="store_true")
    parser.add_argument("--session-timeout-ms", type=int)
    parser.add_argument("--snapshot-every", type=int, default=1_000_000)
    parser.add_argument("--accept-loss", action="store_true")
    parser.add_argument("--version", type=int, default=COUNTING.version)
    given = parser.parse_args()
    options = RunOptions(
        instance=None if given.nameless else given.instance or given.folder.name,
        session_timeout_ms=given.session_timeout_ms,
        policy=Policy(given.accept_loss, given.snapshot_every),
        reach_timeout_s=3.0,
    )
    service = replace(COUNTING, version=given.version)
    return run_service(Connection.of(given.bootstrap, None, os.environ), given.job, service, given.folder, options)


if __name__ == "__main__":
    sys.exit(main())
