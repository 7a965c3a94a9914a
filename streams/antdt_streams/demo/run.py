"""Runs the demo: broker, services and workers as real processes, the same job without and with the Controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, Protocol

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, ExitCode, Unavailable
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, SHARD_LOG, STEPS

from antdt_streams.demo.options import SERVERS, DemoOptions
from antdt_streams.host.child import end, outputs, send, spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES, environment_of, start_services
from antdt_streams.local.supervise import Supervisor, last_words
from antdt_streams.views.control import Control
from antdt_streams.views.follow import Follow
from antdt_streams.views.job import audit_of
from antdt_streams.views.progress import Progress

POLL_S = 0.25
GRACE_S = 15.0


@dataclass(slots=True)
class Run:
    job: str
    train_s: float
    accuracy: float
    audit: dict[str, Any]
    decisions: list[dict[str, Any]] = field(default_factory=list)


class Watch(Follow):
    def __init__(self, connection: Connection, job: str) -> None:
        self.progress, self.control = Progress(), Control()
        topics = (SHARD_LOG, STEPS, MEASUREMENTS, DECISIONS)
        super().__init__(connection, job, topics, self.progress, self.control)


class Screen(Protocol):
    """What the demo shows while it runs."""

    def show(self, watch: Watch, title: str) -> None:
        """The run as it is now."""

    def ended(self, title: str, run: Run) -> None:
        """What came out of it."""


class Demo:
    """Two runs on one broker. Whatever ends it, nothing is left running."""

    def __init__(self, place: Place, connection: Connection, options: DemoOptions, screen: Screen) -> None:
        self.place, self.connection, self.options, self.screen = place, connection, options, screen
        self._struck = False

    def run(self, job: str, mitigated: bool, title: str) -> Run:
        topics_admin.create(self.connection, job)
        # The static run is the same in everything but one: nobody commands.
        services = SERVICES if mitigated else ("ledger", "monitor")
        folder = self.place.data / "demo" / job
        folder.mkdir(parents=True, exist_ok=True)
        result, log = folder / "result.json", self.place.data / "logs" / job / "workers.log"
        watch = Watch(self.connection, job)
        supervisor = start_services(job, self.place, self.connection, services)
        try:
            watch.start()
            with self._workers(job, result, log) as launcher:
                self._follow(launcher, supervisor, watch, title)
        finally:
            watch.stop()
            supervisor.stop()
        report = audit_of(self.connection, job)
        made = json.loads(result.read_text(encoding="utf-8"))
        if not report["train_s"]:
            raise AntdtError(f"Job {job} has no committed step.")
        decisions = [codec.to_json(decision) for decision in watch.control.decisions]
        run = Run(job, report["train_s"], made["accuracy"], report, decisions)
        self.screen.ended(title, run)
        return run

    @contextmanager
    def _workers(self, job: str, result: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        script = ["-m", "antdt.examples.digits", *self.options.script_arguments, "--result", str(result)]
        environ = dict(os.environ) | environment_of(self.connection, self.place)
        launcher = self.options.launcher_arguments
        if self.options.scene == SERVERS:  # by its log a process is found
            launcher += ["--logs", str(log.parent)]
        command = [sys.executable, "-m", "antdt.launch", "--job", job, *launcher, "--", *script]
        with log.open("ab") as out:
            process = spawn(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            end(process, GRACE_S)

    def _follow(self, launcher: subprocess.Popen[bytes], supervisor: Supervisor, watch: Watch, title: str) -> None:
        while launcher.poll() is None:
            sleep(POLL_S)
            supervisor.poll()
            if watch.failure is not None:
                raise watch.failure
            title = self._strike(launcher, watch) or title
            self.screen.show(watch, title)
        if launcher.returncode != ExitCode.DONE:
            log = self.place.data / "logs" / watch.job / "workers.log"
            raise Unavailable(f"The workers ended with status {launcher.returncode}: {last_words(log)}")

    def _strike(self, launcher: subprocess.Popen[bytes], watch: Watch) -> str:
        """Where servers are shown, one of them is killed after a third of the samples. Returns what is said of it."""
        progress = watch.progress
        if self.options.scene != SERVERS or self._struck or progress.committed * 3 < max(1, progress.total):
            return ""
        pid = next((pid for pid, log in outputs(launcher.pid) if log.endswith("/s1.log")), None)
        if pid is None:
            return ""
        self._struck = send(pid, signal.SIGKILL)
        return "s1 was killed: all servers go back to the newest checkpoint, and the ledger with them"

    def on_servers(self, job: str) -> dict[str, Any]:
        """One run on parameter servers, of which one dies; the result is what `--json` writes."""
        title = "4 workers push to 2 parameter servers, and nobody waits for anybody (asp)"
        run = self.run(job, True, title.replace("4", str(self.options.workers), 1))
        made = {"train_s": run.train_s, "accuracy": run.accuracy, "audit": run.audit, "decisions": run.decisions}
        return {**made, "jobs": [job], "options": asdict(self.options)}

    def both(self, *names: str) -> dict[str, Any]:
        """Static, then mitigated; the result is what `--json` writes."""
        static = self.run(names[0], False, "1 of 2  static: equal batches, nobody intervenes")
        mitigated = self.run(names[1], True, "2 of 2  mitigated: the Controller moves samples to whoever is fast")
        samples = static.audit["samples"] * static.audit["epochs"]
        return {
            "static_s": static.train_s,
            "mitigated_s": mitigated.train_s,
            "ideal_s": self.options.ideal_s(samples),
            "speedup": static.train_s / mitigated.train_s,
            "accuracy_static": static.accuracy,
            "accuracy_mitigated": mitigated.accuracy,
            "audit_static": static.audit,
            "audit_mitigated": mitigated.audit,
            "decisions": mitigated.decisions,
            "jobs": list(names),
            "options": asdict(self.options),
        }
