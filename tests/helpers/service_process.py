"""A service in a process of its own, to be killed: `python -m tests.helpers.service_process BOOTSTRAP JOB FOLDER`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from antdt_schemas.connection import Connection

ROOT = Path(__file__).resolve().parents[2]


class ServiceProcess:
    """The counting service, started, killed and awaited by a test; it does not outlive the `with` block."""

    def __init__(self, connection: Connection, job: str, folder: Path, *flags: str) -> None:
        self.log = folder.with_name(f"{folder.name}.log")
        command = [
            sys.executable,
            "-m",
            "tests.helpers.service_process",
            connection.bootstrap,
            job,
            str(folder),
            *flags,
        ]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=log, stdout=log)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def logged(self) -> str:
        """What it has said so far."""
        return self.log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.kill()


def main() -> int:
    """Run the counting service."""
    from antdt_streams.runtime.run import RunOptions, run_service

    from tests.helpers.counting import COUNTING

    bootstrap, job, folder, *flags = sys.argv[1:]
    options = RunOptions(accept_loss="--accept-loss" in flags, reach_timeout_s=3.0)
    return run_service(Connection(bootstrap), job, COUNTING, Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
