"""The processes of one run, found and struck by name: broker, supervised services, launches and their workers."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

from antdt_schemas import records
from antdt_schemas.errors import AntdtError, ExitCode, Refused
from antdt_schemas.topics import SHARD_LOG

from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos import clock
from antdt_streams.chaos.launches import RESTARTS_MAX, Launches, Training
from antdt_streams.chaos.schedule import EVERYBODY, SERVICES, WORKERS
from antdt_streams.chaos.waits import waits_of
from antdt_streams.host.child import send
from antdt_streams.host.files import write_whole
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.ask import ask
from antdt_streams.local.place import Place
from antdt_streams.local.services import STANDBY, environment_of, service_command
from antdt_streams.local.supervise import Child, RestartPolicy, Start, Supervisor, start_process
from antdt_streams.views.follow import Follow
from antdt_streams.views.progress import Progress

LEDGERS = ("ledger", STANDBY)
POLL_S = 0.02


class World:
    """One job on a broker that may be struck as well. Nothing of it outlives `close`.

    start: what starts services and launchers; by default as users start them.
    """

    def __init__(
        self, broker: EmbeddedBroker, job: str, folder: Path, training: Training, start: Start = start_process
    ) -> None:
        self.broker, self.job, self.training = broker, job, training
        self.place = Place(broker.connection, True, folder, None)
        self.services = (*SERVICES, STANDBY) if training.standby else SERVICES
        self.clocks = {name: clock.Clock(folder / "clocks" / name) for name in self.services}
        self.environ = dict(os.environ) | environment_of(broker.connection, self.place)
        self.supervisor = Supervisor(self.environ, RestartPolicy(restarts_max=RESTARTS_MAX), start)
        self.launches = Launches(job, training, folder, self.place.data, self.environ, start)
        self.records, self.logs, self.result = self.launches.records, self.launches.logs, self.launches.result
        self.progress = Progress()
        self.follow = Follow(broker.connection, job, (SHARD_LOG,), self.progress)
        self.poison: dict[str, str] = {}
        self._broker_starts: threading.Thread | None = None
        self._readmits: threading.Thread | None = None
        self.mended_at_s = 0.0  # when the data were, and the job launched once more; 0: never
        self._error: AntdtError | None = None
        self._brokers: set[int] = set()

    # -- its life

    def open(self) -> None:
        topics_admin.create(self.broker.connection, self.job)
        self.follow.start()
        for name in self.services:
            extra = ("--patience-ms", str(self.training.patience_ms)) if name in LEDGERS else ()
            command = service_command(name, self.job, self.place, extra)
            command = self.clocks[name].of_service(command, self.deaf_file(name))
            self.supervisor.add(name, command, self.logs / f"{name}.log")
        self.launch()

    def launch(self) -> None:
        """Start the workers, the first time or after everybody was killed."""
        self.launches.launch()

    def look(self) -> bool:
        """Keep what is to live alive. True once the workers have ended well.

        Raises:
            AntdtError: a service, the workers or the broker ended for good.
        """
        if self._error is not None:
            raise self._error
        if self.follow.failure is not None:
            raise self.follow.failure
        self.supervisor.poll()
        self._brokers |= {self.broker.pid} if self.broker.pid is not None else set()
        if self._readmits is not None:
            if self._readmits.is_alive():
                return False
            self._readmits = None
            self.launch()
        ended = self.launches.look()
        if ended is ExitCode.INCOMPLETE:
            self._readmit()
        return ended is ExitCode.DONE

    # -- samples that no worker survives

    def poison_sample(self, sample: str, how: str) -> None:
        self.poison[sample] = how
        write_whole(self.launches.faults / "poison", json.dumps(self.poison).encode())

    def _readmit(self) -> None:
        """All is done but what is in quarantine: mend the data and ask for it, as people do. Returns at once."""
        (self.launches.faults / "poison").unlink(missing_ok=True)
        self.launches.running.clear()
        self.mended_at_s = monotonic()
        self._readmits = self._in_thread("readmit", self._ask_for_all)

    def _ask_for_all(self) -> None:
        reply = ask(self.broker.connection, self.job, lambda _: records.Readmit(), None)
        if reply.status is not records.Status.OK:
            raise Refused(f"The ledger refuses to readmit what is in quarantine: {reply.reason}")

    def _in_thread(self, name: str, act: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                act()
            except AntdtError as error:
                self._error = error

        thread = threading.Thread(target=run, name=f"antdt-{name}", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self.launches.kill()
        for child in self.supervisor.children.values():
            if child.process is not None:
                send(child.process.pid, signal.SIGCONT)
        self.supervisor.stop()
        self.follow.stop()
        self.wait_for_broker()
        for pid in self._brokers - {self.broker.pid}:
            clock.forget(pid)

    def waits(self) -> str:
        return waits_of(self.broker.connection, self.job)

    # -- who is who

    def service(self, name: str) -> Child | None:
        """A service that lives. The ledger is whichever of two is in office, the standby the other one."""
        alive = {n: c for n, c in self.supervisor.children.items() if c.process and c.process.poll() is None}
        if STANDBY in self.services and name in LEDGERS:
            leader = self.progress.leader_pid
            pair = {c.process.pid: c for n, c in alive.items() if n in LEDGERS and c.process}
            if leader in pair:
                return pair[leader] if name == "ledger" else next((c for p, c in pair.items() if p != leader), None)
        return alive.get(name)

    def service_pid(self, name: str) -> int | None:
        child = self.service(name)
        return child.process.pid if child is not None and child.process is not None else None

    def state_folder(self, child: str) -> Path:
        if child in LEDGERS:
            return self.place.ledger_folder(self.job, "" if child == "ledger" else child)
        return self.place.service_folder(self.job, child)

    def deaf_file(self, name: str) -> Path:
        """What makes a service, by the name of its process, or a worker fall deaf."""
        return self.launches.faults / "deaf" / name

    def pids(self, whom: str) -> list[int]:
        """Processes: a service's, those of the workers, or of everybody but the broker."""
        services = self.services if whom == EVERYBODY else (whom,)
        found = [pid for name in services if (pid := self.service_pid(name)) is not None]
        if whom == EVERYBODY:
            found += [launcher.pid for launcher in self.launches.running.values()]
        return found + (self.launches.pids() if whom in (WORKERS, EVERYBODY) else [])

    def kill_everybody(self, grace_s: float = 0.0) -> None:
        """SIGKILL of launchers, workers and services, as a power cut would; `launch` starts the workers again.

        grace_s: they are told by SIGTERM before, and have so long to end.
        """
        services = [c.process for c in self.supervisor.children.values() if c.process is not None]
        if grace_s:
            told = [*self.launches.tell(), *services]
            for process in services:
                send(process.pid, signal.SIGTERM)
            until = monotonic() + grace_s
            while monotonic() < until and any(process.poll() is None for process in told):
                sleep(POLL_S)
        for process in services:
            send(process.pid, signal.SIGKILL)
        self.launches.kill()
        for process in services:
            process.wait(10)

    # -- the broker

    @property
    def broker_ready(self) -> bool:
        """It runs, and nobody is starting it."""
        return self.broker.pid is not None and (self._broker_starts is None or not self._broker_starts.is_alive())

    def start_broker(self) -> None:
        """Start it again on its data; returns at once."""
        self._broker_starts = self._in_thread("broker", self.broker.start)

    def wait_for_broker(self) -> None:
        if self._broker_starts is not None:
            self._broker_starts.join(self.broker.options.start_timeout_s + 5)
