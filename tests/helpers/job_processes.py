"""A job of real processes: the ledger's service, a launcher with its workers, and what the log says meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from antdt_schemas.connection import Connection
from antdt_streams import topics_admin
from antdt_streams.chaos.judge import entries_of, judge_log, judge_records
from antdt_streams.cli.common import Place
from antdt_streams.cli.services import environment_of, start_services
from antdt_streams.ledger.core.state import State

from tests.helpers.ledger_thread import replayed

WITHIN_S = 90.0
Launcher = subprocess.Popen[bytes]


class JobProcesses:
    """One job on one machine. Every wait keeps the services going and has a bound."""

    def __init__(self, connection: Connection, job: str, folder: Path, patience_ms: int = 5_000) -> None:
        self.connection, self.job, self.folder = connection, job, folder
        self.place = Place(connection, True, folder, None)
        topics_admin.create(connection, job)
        extra = {"ledger": ("--patience-ms", str(patience_ms))}
        self.supervisor = start_services(job, self.place, connection, ("ledger",), extra=extra)
        self.launchers: list[Launcher] = []
        self.record, self.output = folder / "record", folder / "workers.log"

    def launch(self, workers: int, *options: str) -> Launcher:
        """Workers that write down what they train on; `options` are the script's."""
        script = ["-m", "antdt.examples.recorded", "--record", str(self.record), "--batch-size", "24", *options]
        with self.output.open("ab") as out:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "antdt.launch", "--job", self.job, "-n", str(workers), "--", *script],
                env=dict(os.environ) | environment_of(self.connection, self.place),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.launchers.append(launcher)
        return launcher

    @staticmethod
    def workers_of(launcher: Launcher) -> list[int]:
        """Process ids of a launcher's workers, in the order of their ranks."""
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        return sorted(map(int, children))

    def state(self) -> State | None:
        """What the log says now."""
        return replayed(self.connection, self.job).state

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        end = time.monotonic() + WITHIN_S
        while not holds():
            self.supervisor.poll()
            assert time.monotonic() < end, what
            time.sleep(0.02)  # between two looks

    def until_committed(self, step: int) -> None:
        """Wait until this step is in the log."""

        def there() -> bool:
            state = self.state()
            return state is not None and state.committed >= step

        self.until(there, f"step {step} was not committed")

    def ended(self, launcher: Launcher, code: int = 0) -> None:
        """Wait for the end of a launcher, which must end like that."""
        self.until(lambda: launcher.poll() is not None, "the run does not end")
        assert launcher.returncode == code, self.output.read_text()

    def judged(self) -> dict[str, object]:
        """The report of the audit, once that and the workers' own records agree that all is well."""
        entries = entries_of(self.connection, self.job)
        report, wrong = judge_log(entries)
        assert not wrong
        assert not judge_records(entries, self.record), "the workers' own records say something else"
        return report

    def close(self) -> None:
        """End everything."""
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait(10)
        self.supervisor.stop()


def kill_all(launcher: Launcher) -> None:
    """kill -9 of a launcher and its workers."""
    pids = JobProcesses.workers_of(launcher)
    for pid in (launcher.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    launcher.wait(10)


@contextmanager
def job_processes(connection: Connection, job: str, folder: Path, patience_ms: int = 5_000) -> Iterator[JobProcesses]:
    """A job that is ended whatever happens."""
    one = JobProcesses(connection, job, folder, patience_ms)
    try:
        yield one
    finally:
        one.close()
