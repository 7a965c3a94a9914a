"""The processes of one run, found and struck by name: broker, supervised services, a launcher and its workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from antdt_schemas.errors import AntdtError, ExitCode, Unavailable
from antdt_schemas.launch_locks import folder_of, is_free

from antdt_streams import topics_admin
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos import clock
from antdt_streams.chaos.progress import Progress
from antdt_streams.chaos.schedule import SERVICES
from antdt_streams.cli.common import Place
from antdt_streams.cli.services import STANDBY, environment_of, ledger_folder, service_command
from antdt_streams.supervise import Child, Process, RestartPolicy, Start, Supervisor, last_words, start_process

RESTARTS_MAX = 1000
ALL = "all"
LEDGERS = ("ledger", STANDBY)
LAUNCH_AGAIN = (ExitCode.RESTART_HERE, ExitCode.RESTART_ELSEWHERE)
LEFT = (ExitCode.DRAINED, ExitCode.KILLED)


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
    """One job on a broker that may be struck as well. Nothing of it outlives `close`.

    start: what starts services and launchers; by default as users start them.
    """

    def __init__(
        self,
        broker: EmbeddedBroker,
        job: str,
        folder: Path,
        training: Training,
        start: Start = start_process,
    ) -> None:
        self.broker, self.job, self.training, self._start = broker, job, training, start
        self.place = Place(broker.connection, True, folder, None)
        self.records, self.logs, self.result = folder / "records", folder / "logs", folder / "result.json"
        self.deaf = folder / "deaf"
        self.deaf.mkdir(parents=True, exist_ok=True)
        self.services = (*SERVICES, STANDBY) if training.standby else SERVICES
        self.clocks = {name: clock.Clock(folder / "clocks" / name) for name in self.services}
        self.environ = dict(os.environ) | environment_of(broker.connection, self.place)
        self.supervisor = Supervisor(self.environ, RestartPolicy(restarts_max=RESTARTS_MAX), start)
        self.launchers: dict[str, Process] = {}
        self.leaving: dict[str, int] = {}
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
            command = self.clocks[name].of_service(
                service_command(name, self.job, self.place, extra), self.deaf_file(name)
            )
            self.supervisor.add(name, command, self.logs / f"{name}.log")
        self.launch()

    def launch(self, worker: str = ALL) -> None:
        """Start the launcher of all workers, the first time or after it was killed, or one for a worker that left."""
        t = self.training
        which = ["-n", "1", "--first-rank", worker[1:]] if worker != ALL else ["-n", str(t.workers)]
        command = [sys.executable, "-m", "antdt.launch", "--job", self.job, *which, "--world-size", str(t.workers)]
        command += ["--max-restarts", str(RESTARTS_MAX), "--logs", str(self.logs), "--"]
        command += ["-m", "antdt.examples.recorded", "--record", str(self.records), "--seed", str(t.seed)]
        command += ["--samples", str(t.samples), "--epochs", str(t.epochs), "--batch-size", str(t.batch_size)]
        command += ["--delay-ms", str(t.delay_ms), "--checkpoint-every", str(t.checkpoint_every)]
        command += ["--result", str(self.result), "--deaf", str(self.deaf)]
        self.logs.mkdir(parents=True, exist_ok=True)
        self.launchers[worker] = self._start(command, self.environ, self.logs / "launcher.log")

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
        for worker in [w for w, pid in self.leaving.items() if not alive(pid)]:
            self._replace(worker)
        codes = {worker: launcher.poll() for worker, launcher in self.launchers.items()}
        for worker, code in codes.items():
            if code in LAUNCH_AGAIN:
                self._launch_again(worker)
            elif code in LEFT:
                del self.launchers[worker]  # each of its workers was told to leave, and is launched by itself
            elif code not in (None, ExitCode.DONE):
                raise Unavailable(f"The workers ended with status {code}: {last_words(self.logs / 'launcher.log')}")
        return bool(codes) and not self.leaving and all(code == ExitCode.DONE for code in codes.values())

    def _replace(self, worker: str) -> None:
        """One that was told to leave is gone: it is launched by itself once its launcher has let it go, as people do
        who read what that says. One that was killed on the way is started again by its launcher, and stays.
        """
        if is_free(folder_of(self.place.data, self.job), worker):
            del self.leaving[worker]
            self.launch(worker)
        elif self.worker_pid(worker) is not None:
            del self.leaving[worker]

    def _launch_again(self, which: str) -> None:
        """As whatever starts launchers does: the broker was away. Those that were launched by themselves stay so."""
        del self.launchers[which]
        others = {*self.launchers, *self.leaving}
        workers = [f"w{rank}" for rank in range(self.training.workers)] if which == ALL else [which]
        if which == ALL and others.isdisjoint(workers):
            self.launch()
            return
        for worker in workers:
            if worker not in others:
                self.launch(worker)

    def close(self) -> None:
        """Stop everything but the broker."""
        for launcher in self.launchers.values():
            launcher.kill()  # its workers go with it
            launcher.wait(10)
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

    def deaf_file(self, name: str) -> Path:
        """What makes a service, by the name of its process, or a worker fall deaf."""
        return self.deaf / name

    def worker_pid(self, name: str) -> int | None:
        """The process of a worker, known by the log that it writes to."""
        log = f"/{name}.log"
        return next((pid for pid, out in self._outputs() if out.endswith(log)), None)

    def _outputs(self) -> list[tuple[int, str]]:
        """(pid, standard output) of the launchers' children."""
        out = []
        for launcher in self.launchers.values():
            with suppress(OSError):
                for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
                    with suppress(OSError):
                        if alive(int(pid)):
                            out.append((int(pid), str(Path(f"/proc/{pid}/fd/1").readlink())))
        return out

    def kill_everybody(self) -> None:
        """kill -9 of launchers, workers and services, as a power cut would; `launch` starts the workers again."""
        services = [c.process for c in self.supervisor.children.values() if c.process is not None]
        workers = [pid for pid, _ in self._outputs()]
        for pid in (*(p.pid for p in self.launchers.values()), *workers, *(p.pid for p in services)):
            send(pid, signal.SIGKILL)
        for process in (*self.launchers.values(), *services):
            process.wait(10)
        self.launchers.clear()
        self.leaving.clear()

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


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
