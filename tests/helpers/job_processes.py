"""A job of real processes: the ledger's service, a launcher with its workers, and what the log says meanwhile."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from antdt.launch import feed
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import SHARD_LOG
from antdt_streams.chaos.judge import Entries, judge_log, judge_records
from antdt_streams.kafka import topics_admin
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.state import State
from antdt_streams.local.place import Place
from antdt_streams.local.services import environment_of, start_services
from antdt_streams.runtime.service import Raw

from tests.helpers.loading import children
from tests.helpers.running import Tail
from tests.helpers.warm import Warm, launched, started

WITHIN_S = 90.0
RECORDED = ("-m", "antdt.examples.recorded")


@dataclass(frozen=True)
class JobOptions:
    """services: what is started beside the workers. bootstrap: where processes find the broker, if not where the test
    does. policy: the controller's, if not its own. environ: further variables of a process by its kind, a service or
    "worker".
    """

    patience_ms: int = 5_000
    stuck_ms: int = 60_000
    services: Sequence[str] = ("ledger",)
    bootstrap: str = ""
    policy: str | None = None
    environ: Callable[[str], Mapping[str, str]] = lambda kind: {}


class JobProcesses:
    """One job on one machine. Every wait keeps the services going and has a bound."""

    def __init__(self, connection: Connection, job: str, folder: Path, options: JobOptions) -> None:
        self.connection, self.job, self.folder, self.options = connection, job, folder, options
        self.place = Place(connection, True, folder, None)
        topics_admin.create(connection, job)
        limits = ("--patience-ms", str(options.patience_ms), "--stuck-ms", str(options.stuck_ms))
        extra = {"ledger": limits}
        self.supervisors = []
        for service in options.services:
            with mock.patch.dict(os.environ, options.environ(service)):
                client = Connection(options.bootstrap or connection.bootstrap)
                one = start_services(job, self.place, client, (service,), options.policy, extra, started)
                self.supervisors.append(one)
        self.launchers: list[Warm] = []
        self.record, self.output = folder / "record", folder / "workers.log"
        self._log, self.fold = Tail(connection, SHARD_LOG.name(job)), Fold(cached=False)
        self._looks_again = False

    def launch(
        self,
        workers: int,
        *options: str,
        script: Sequence[str] = RECORDED,
        restarts: int = 3,
        launcher: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Warm:
        """Workers that write down what they train on; `options` are the script's, `launcher` the launcher's."""
        command = [*script, "--record", str(self.record), "--batch-size", "24", *options]
        client = Connection(self.options.bootstrap or self.connection.bootstrap)
        limits = ["-n", str(workers), "--max-restarts", str(restarts), *launcher]
        environ = (
            dict(os.environ) | environment_of(client, self.place) | self.options.environ("worker") | (environ or {})
        )
        one = launched(["--job", self.job, *limits, "--", *command], environ, self.output)
        self.launchers.append(one)
        return one

    @staticmethod
    def workers_of(launcher: Warm) -> list[int]:
        """Process ids of a launcher's workers, in the order of their starts: numbers begin anew at some point."""
        return [pid for pid in children(launcher.pid) if not is_feed(pid)]

    def pid_of(self, launcher: Warm, incarnation: str) -> int:
        """Process of an incarnation, if none of its launcher's workers was started again."""
        return self.workers_of(launcher)[int(incarnation.partition(".")[0].removeprefix("w"))]

    def state(self) -> State | None:
        """What the log says now. The next look goes on with the same object."""
        raws = self._raws()
        for offset in range(self.fold.position.next_offset, len(raws)):
            self.fold.read(offset, raws[offset].value or b"")
        return self.fold.state

    def now(self) -> State:
        """What the log says now, when somebody has joined."""
        state = self.state()
        assert state is not None
        return state

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        end = time.monotonic() + WITHIN_S
        self._looks_again = True
        try:
            while not holds():
                for supervisor in self.supervisors:
                    supervisor.poll()
                assert time.monotonic() < end, what
                time.sleep(0.02)  # between two looks
        finally:
            self._looks_again = False

    def until_committed(self, step: int) -> None:
        """Wait until this step is in the log."""

        def there() -> bool:
            state = self.state()
            return state is not None and state.line.committed >= step

        self.until(there, f"step {step} was not committed")

    def ended(self, launcher: Warm, code: int = 0) -> None:
        """Wait for the end of a launcher, which must end like that."""
        self.until(lambda: launcher.poll() is not None, "the run does not end")
        assert launcher.returncode == code, self.output.read_text()

    def entries(self) -> Entries:
        """The log as it lies there now; within `until`, what of it has arrived."""
        return [(offset, raw.value or b"") for offset, raw in enumerate(self._raws())]

    def _raws(self) -> list[Raw]:
        return self._log.arrived() if self._looks_again else self._log.read()

    def events(self, before_ms: float = math.inf) -> list[records.Event]:
        """Events of every cycle that was written before a time, in order."""
        raws = (raw for raw in self._raws() if raw.timestamp_ms < before_ms)
        bodies = (codec.decode(raw.value, records.Entry).body for raw in raws)
        return [event for body in bodies if isinstance(body, records.Cycle) for event in body.events]

    def judged(self) -> dict[str, object]:
        """The report of the audit, once that and the workers' own records agree that all is well."""
        entries = self.entries()
        report, wrong = judge_log(entries)
        assert not wrong
        odd = judge_records(entries, self.record)
        assert not odd, "the workers' own records say something else"
        return report

    def close(self) -> None:
        """End everything."""
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait(10)
        for supervisor in self.supervisors:
            supervisor.stop()
        self._log.close()


def is_feed(pid: int) -> bool:
    """Whether this child of a launcher is who follows the decisions for it."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == feed.NAME
    except OSError:
        return False


def kill_all(launcher: Warm) -> None:
    """kill -9 of a launcher and its workers."""
    pids = JobProcesses.workers_of(launcher)
    for pid in (launcher.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    launcher.wait(10)


@contextmanager
def job_processes(connection: Connection, job: str, folder: Path, **options: Any) -> Iterator[JobProcesses]:
    """A job that is ended whatever happens. options: those of JobOptions."""
    one = JobProcesses(connection, job, folder, JobOptions(**options))
    try:
        yield one
    finally:
        one.close()
