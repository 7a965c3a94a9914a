"""A job of workers and parameter servers whose launches are on several hosts, as a cluster's user types them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import records
from antdt_streams.chaos.judge import judge_log
from antdt_streams.local.services import environment_of

from tests.helpers.hosts import Hosts
from tests.helpers.job_processes import JobProcesses
from tests.helpers.tallied import expected
from tests.helpers.warm import Warm

SCRIPT = (str(Path(__file__).with_name("tallied.py")),)
# What each host starts: one worker and the first server; the other server alone; two workers alone.
PLACES = {
    "a": ("-n", "1", "--first-rank", "0", "--servers-here", "1"),
    "b": ("-n", "0", "--servers-here", "1", "--first-server", "1"),
    "d": ("-n", "2", "--first-rank", "1"),
}
JOB = ("--world-size", "3", "--servers", "2")


class ServerHosts:
    """Launches on hosts, each with a data folder of its own; what they have in common is the folder of checkpoints.
    `launches`: by host. `hostname`: of all of them, where they have no names of their own. script: what is launched, if
    it is not `tallied`.
    """

    def __init__(self, hosts: Hosts, job: JobProcesses, script: Sequence[str] = ()) -> None:
        self.hosts, self.job, self.launches = hosts, job, dict[str, Warm]()
        self.hostname = ""
        self.result = job.folder / "tally.json"
        own = (*SCRIPT, "--record", str(job.record), "--result", str(self.result))
        self.script = tuple(script) or own
        self.checkpoints = job.folder / "checkpoints"

    def launch(self, host: str, place: Sequence[str], *options: str, **environ: str) -> Warm:
        """One command on a host; options are the script's."""
        own = dict(os.environ) | environment_of(self.job.connection, self.job.place)
        own |= {"ANTDT_DATA": str(self.job.folder / host), "ANTDT_CHECKPOINTS": str(self.checkpoints), **environ}
        arguments = ["--job", self.job.job, *JOB, *place, "--", *self.script, *options]
        found = self.hosts.launch(host, arguments, own, self.log(host), hostname=self.hostname or f"host-{host}")
        self.job.launchers.append(found)
        return found

    def launch_all(self, *options: str, launcher: Sequence[str] = ()) -> None:
        """On all three hosts. launcher: further options of each launch."""
        for host, place in PLACES.items():
            self.launches[host] = self.launch(host, (*place, *launcher), *options)

    def log(self, host: str) -> Path:
        """What the launches of a host have said."""
        return self.job.folder / f"{host}.log"

    def said(self, host: str) -> str:
        path = self.log(host)
        return path.read_text() if path.exists() else ""

    def pass_s(self, seconds: float, until: Callable[[], bool] = bool) -> None:
        """The job goes on for so long, while this does not hold."""
        end = time.monotonic() + seconds
        self.job.until(lambda: time.monotonic() > end or until(), "the clock stands")

    def committed(self) -> int:
        """Steps that are in the log."""
        state = self.job.state()
        return state.line.committed if state is not None else 0

    def ended(self, code: int = 0) -> None:
        """All launches end like that."""
        for host, launch in self.launches.items():
            self.job.until(lambda launch=launch: launch.poll() is not None, f"{host} does not end")  # type: ignore[misc]
        found = {host: launch.returncode for host, launch in self.launches.items()}
        told = "\n".join(f"-- {host}\n{self.said(host)}" for host in found)
        assert found == dict.fromkeys(found, code), told

    def joined(self) -> dict[str, set[str]]:
        """Where each worker and server was reached, by name."""
        found: dict[str, set[str]] = {}
        for event in self.job.events():
            if isinstance(event, records.Joined):
                found.setdefault(event.worker, set()).add(event.host)
        return found

    def judged(self) -> dict[str, Any]:
        """The audit, once the model itself agrees with it."""
        report, wrong = judge_log(self.job.entries())
        assert not wrong, wrong
        found = json.loads(self.result.read_text())
        assert (found["steps"], found["lineage"]) == (report["steps"], report["lineage"])
        assert found["tally"] == pytest.approx(expected(self.job.events(), self.job.now().spec), abs=1e-4)
        assert report["exactly_once"], report["verdict"]
        return report
