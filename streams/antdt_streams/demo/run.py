"""Runs the demo: broker, services and workers as real processes, the same job without and with the Controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, ExitCode, Unavailable, UsageError

from antdt_streams import topics_admin
from antdt_streams.broker.child import spawn
from antdt_streams.cli.common import Place
from antdt_streams.cli.job import audit_of
from antdt_streams.cli.services import SERVICES, environment_of, start_services
from antdt_streams.demo.watch import Watch
from antdt_streams.supervise import Supervisor, last_words

POLL_S = 0.25


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs. Times of bursts in seconds; `slow` and `burst` multiply the time a sample takes."""

    workers: int = 4
    data: str = "digits"
    samples: int = 0
    epochs: int = 12
    batch_size: int = 128
    delay_ms: float = 2.0
    slow: float = 3.0
    burst: float = 3.0
    burst_s: float = 4.0
    burst_every_s: float = 12.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.workers < 3:
            raise UsageError(f"--workers {self.workers}: the demo slows two workers down, take at least 3.")
        if self.batch_size < self.workers:
            raise UsageError(f"--batch-size {self.batch_size}: take at least one sample for each worker.")
        if self.delay_ms <= 0 or self.slow < 1 or self.burst < 1:
            raise UsageError("--delay-ms must be above 0, and --slow and --burst at least 1.")
        if not 0 < self.burst_s < self.burst_every_s:
            raise UsageError("Bursts must be shorter than their period.")

    @property
    def slowness(self) -> str:
        """As the training script takes it: w1 throughout, the last worker in bursts."""
        last = self.workers - 1
        return f"w1:{self.slow:g},w{last}:{self.burst:g}:{self.burst_s:g}:{self.burst_every_s:g}"

    def ideal_s(self, samples: int) -> float:
        """Time for `samples` if each were done by the worker that is free first: the sum of the rates decides."""
        on = self.burst_s / self.burst_every_s
        rates = (self.workers - 2) + 1 / self.slow + on / self.burst + (1 - on)
        return samples * self.delay_ms / 1000 / rates


@dataclass(slots=True)
class Run:
    """What came out of one of the two runs."""

    job: str
    train_s: float
    accuracy: float
    audit: dict[str, Any]
    decisions: list[dict[str, Any]] = field(default_factory=list)


Show = Callable[[Watch, str, float], None]


class Demo:
    """Two runs on one broker. Whatever happens, nothing is left running; `stopping` ends it early."""

    def __init__(self, place: Place, connection: Connection, options: DemoOptions, stopping: threading.Event) -> None:
        self.place, self.connection, self.options, self.stopping = place, connection, options, stopping

    def run(self, job: str, mitigated: bool, title: str, show: Show) -> Run:
        """One run, from fresh topics to its audit."""
        topics_admin.create(self.connection, job)
        # The static run is the same in everything but one: nobody commands.
        services = SERVICES if mitigated else ("ledger", "monitor")
        supervisor = start_services(job, self.place, self.connection, services)
        watch = Watch(self.connection, job)
        watch.start()
        folder = self.place.data / "demo" / job
        folder.mkdir(parents=True, exist_ok=True)
        result, log = folder / "result.json", self.place.data / "logs" / job / "workers.log"
        try:
            with self._workers(job, result, log) as launcher:
                self._follow(launcher, supervisor, watch, lambda s: show(watch, title, s))
        finally:
            watch.stop()
            supervisor.stop()
        report = audit_of(self.connection, job)
        made = json.loads(result.read_text(encoding="utf-8"))
        decisions = [codec.to_json(d) for d in watch.decisions]
        return Run(job, report["train_s"], made["accuracy"], report, decisions)

    @contextmanager
    def _workers(self, job: str, result: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        o = self.options
        script = ["-m", "antdt.examples.digits", "--data", o.data, "--samples", str(o.samples)]
        script += ["--epochs", str(o.epochs), "--batch-size", str(o.batch_size), "--seed", str(o.seed)]
        script += ["--delay-ms", str(o.delay_ms), "--slow", o.slowness, "--result", str(result)]
        environ = dict(os.environ) | environment_of(self.connection, self.place)
        command = [sys.executable, "-m", "antdt.launch", "--job", job, "-n", str(o.workers), "--", *script]
        with log.open("ab") as out:
            process = spawn(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _follow(
        self, launcher: subprocess.Popen[bytes], supervisor: Supervisor, watch: Watch, show: Callable[[float], None]
    ) -> None:
        began = monotonic()
        while launcher.poll() is None:
            if self.stopping.wait(POLL_S):
                raise KeyboardInterrupt
            supervisor.poll()
            if watch.failure is not None:
                raise watch.failure
            show(monotonic() - began)
        show(monotonic() - began)
        if launcher.returncode != ExitCode.DONE:
            log = self.place.data / "logs" / watch.job / "workers.log"
            raise Unavailable(f"The workers ended with status {launcher.returncode}: {last_words(log)}")

    def both(self, names: tuple[str, str], show: Show) -> dict[str, Any]:
        """Static, then mitigated; the result is what `--json` writes."""
        static = self.run(names[0], False, "1 of 2: static, equal batches", show)
        mitigated = self.run(names[1], True, "2 of 2: mitigated", show)
        samples = static.audit["samples"] * static.audit["epochs"]
        if not (static.train_s and mitigated.train_s):
            raise AntdtError("A run has no committed step.")
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
        }
