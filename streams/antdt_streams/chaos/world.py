"""The processes of one run, found and struck by name: broker, supervised services, a launcher and its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from antdt_schemas.errors import AntdtError, ExitCode, Unavailable

from antdt_streams import topics_admin
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.broker.child import spawn
from antdt_streams.chaos import clock
from antdt_streams.chaos.progress import Progress
from antdt_streams.chaos.schedule import SERVICES
from antdt_streams.cli.common import Place
from antdt_streams.cli.services import STANDBY, environment_of, ledger_folder, service_command
from antdt_streams.supervise import Child, RestartPolicy, Supervisor, last_words

RESTARTS_MAX = 1000
LEDGERS = ("ledger", STANDBY)
LAUNCH_AGAIN = (ExitCode.RESTART_HERE, ExitCode.RESTART_ELSEWHERE, ExitCode.DRAINED)


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained: enough samples to last as long as the faults, each with a delay in place of an accelerator."""

    workers: int = 4
    samples: int = 1437
    epochs: int = 6
    batch_size: int = 32
    delay_ms: float = 4.0
    checkpoint_every: int = 20
    patience_ms: int = 2000
    seed: int = 0
    standby: bool = True


class World:
    """One job on a broker that may be struck as well. Nothing of it outlives `close`."""

    def __init__(self, broker: EmbeddedBroker, job: str, folder: Path, training: Training) -> None:
        self.broker, self.job, self.training = broker, job, training
        self.place = Place(broker.connection, True, folder, None)
        self.records, self.logs, self.result = folder / "records", folder / "logs", folder / "result.json"
        self.services = (*SERVICES, STANDBY) if training.standby else SERVICES
        self.clocks = {name: clock.Clock(folder / "clocks" / name) for name in self.services}
        self.environ = dict(os.environ) | environment_of(broker.connection, self.place)
        self.supervisor = Supervisor(self.environ, RestartPolicy(restarts_max=RESTARTS_MAX))
        self.launcher: subprocess.Popen[bytes] | None = None
        self.launches = 0
        self.progress: Progress | None = None
        self._broker_starts: threading.Thread | None = None
        self._broker_error: AntdtError | None = None
        self._brokers: set[int] = set()

    # -- its life

    def open(self) -> None:
        """Topics, services, workers."""
        topics_admin.create(self.broker.connection, self.job)
        self.progress = Progress(self.broker.connection, self.job)
        self.progress.start()
        for name in self.services:
            extra = ("--patience-ms", str(self.training.patience_ms)) if name in LEDGERS else ()
            command = self.clocks[name].of_service(service_command(name, self.job, self.place, extra))
            self.supervisor.add(name, command, self.logs / f"{name}.log")
        self.launch()

    def launch(self) -> None:
        """Start the launcher of the workers, the first time or after it was killed."""
        t, self.launches = self.training, self.launches + 1
        command = [sys.executable, "-m", "antdt.launch", "--job", self.job, "-n", str(t.workers)]
        command += ["--max-restarts", str(RESTARTS_MAX), "--logs", str(self.logs), "--"]
        command += ["-m", "antdt.examples.recorded", "--record", str(self.records), "--seed", str(t.seed)]
        command += ["--samples", str(t.samples), "--epochs", str(t.epochs), "--batch-size", str(t.batch_size)]
        command += ["--delay-ms", str(t.delay_ms), "--checkpoint-every", str(t.checkpoint_every)]
        command += ["--result", str(self.result)]
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / "launcher.log").open("ab") as out:
            self.launcher = spawn(
                command, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def look(self) -> bool:
        """Keep what is to live alive. True once the workers have ended well.

        Raises:
            AntdtError: a service, the workers or the broker ended for good.
        """
        if self._broker_error is not None:
            raise self._broker_error
        if self.progress is not None and self.progress.failure is not None:
            raise self.progress.failure
        self.supervisor.poll()
        self._brokers |= {self.broker.pid} if self.broker.pid is not None else set()
        if self.launcher is None or self.launcher.poll() is None:
            return False
        code = self.launcher.returncode
        if code == ExitCode.DONE:
            return True
        if code not in LAUNCH_AGAIN:
            raise Unavailable(f"The workers ended with status {code}: {last_words(self.logs / 'launcher.log')}")
        self.launch()  # as whatever starts launchers does: the broker was away
        return False

    def close(self) -> None:
        """Stop everything but the broker."""
        if self.launcher is not None and self.launcher.poll() is None:
            self.launcher.kill()  # its workers go with it
            self.launcher.wait(10)
        for child in self.supervisor.children.values():
            if child.process is not None:
                send(child.process.pid, signal.SIGCONT)
        self.supervisor.stop()
        if self.progress is not None:
            self.progress.stop()
        self.wait_for_broker()
        for pid in self._brokers - {self.broker.pid}:
            clock.forget(pid)

    # -- who is who

    def service(self, name: str) -> Child | None:
        """A service that lives. The ledger is whichever of two is in office, the standby the other one."""
        alive = {n: c for n, c in self.supervisor.children.items() if c.process and c.process.poll() is None}
        if STANDBY in self.services and name in LEDGERS:
            leader = self.progress.leader_pid if self.progress is not None else None
            pair = {c.process.pid: c for n, c in alive.items() if n in LEDGERS and c.process}
            if leader in pair:
                return pair[leader] if name == "ledger" else next((c for p, c in pair.items() if p != leader), None)
        return alive.get(name)

    def service_pid(self, name: str) -> int | None:
        """Its process."""
        child = self.service(name)
        return child.process.pid if child is not None and child.process is not None else None

    def state_folder(self, child: str) -> Path:
        """Where a service keeps its state."""
        if child in LEDGERS:
            return ledger_folder(self.place, self.job, "" if child == "ledger" else child)
        return self.place.service_folder(self.job, child)

    def worker_pid(self, name: str) -> int | None:
        """The process of a worker, known by the log that it writes to."""
        log = f"/{name}.log"
        return next((pid for pid, out in self._outputs() if out.endswith(log)), None)

    def worker_pids(self) -> list[int]:
        """All of the launcher's children."""
        return [pid for pid, _ in self._outputs()]

    def _outputs(self) -> list[tuple[int, str]]:
        """(pid, standard output) of the launcher's children."""
        if self.launcher is None or self.launcher.poll() is not None:
            return []
        out = []
        with suppress(OSError):
            children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text()
            for pid in children.split():
                with suppress(OSError):
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                        out.append((int(pid), str(Path(f"/proc/{pid}/fd/1").readlink())))
        return out

    # -- the broker

    @property
    def broker_ready(self) -> bool:
        """It runs, and nobody is starting it."""
        return self.broker.pid is not None and (self._broker_starts is None or not self._broker_starts.is_alive())

    def start_broker(self) -> None:
        """Start it again on its data; returns at once."""

        def start() -> None:
            try:
                self.broker.start()
            except AntdtError as error:
                self._broker_error = error

        self._broker_starts = threading.Thread(target=start, name="antdt-broker", daemon=True)
        self._broker_starts.start()

    def wait_for_broker(self) -> None:
        """Have a broker that runs."""
        if self._broker_starts is not None:
            self._broker_starts.join(self.broker.options.start_timeout_s + 5)


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(process: subprocess.Popen[bytes], timeout_s: float = 5.0) -> float:
    """Wait until a killed process is gone; when that was."""
    process.wait(timeout_s)
    return monotonic()
