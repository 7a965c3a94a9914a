"""The services of a job as processes of one machine: their command lines, folders, environment, and their broker."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from antdt_schemas.connection import ENV_BOOTSTRAP, ENV_FILE, ENV_FRAMING, Connection
from antdt_schemas.data_folder import BROKER, ENV_DATA
from antdt_schemas.errors import JobTaken
from antdt_schemas.exporting import ENV_PORT

from antdt_streams.broker.use import BrokerUse
from antdt_streams.host import locks
from antdt_streams.host.child import ServiceEnded
from antdt_streams.local.place import MAIN_INSTANCE, Place
from antdt_streams.local.supervise import Start, Supervisor, start_process

SERVICES = ("ledger", "monitor", "controller")
STANDBY, PAGE = "standby", "web"
PAGE_PORT = 8780


class NamedBroker:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def look(self) -> None:
        """Its life is not our affair."""


@contextmanager
def broker_of(
    place: Place, say: Callable[[str], None], stopping: Callable[[], bool] = lambda: False
) -> Iterator[BrokerUse | NamedBroker]:
    """The broker that was named, or that of the data folder, which ends with the last one who uses it."""
    if place.named:
        place.connection.check_reachable()
        yield NamedBroker(place.connection)
        return
    with BrokerUse(place.data / BROKER, say, stopping) as broker:
        yield broker


@contextmanager
def alone_up(place: Place, job: str) -> Iterator[None]:
    """One `antdt up` of a job at a time works in a data folder.

    Raises:
        JobTaken: another one does; which process that is.
    """
    file = place.data / "state" / job / "up"
    lock = locks.acquire(file)
    if lock is None:
        raise JobTaken(
            f"Job {job!r} is up already: process {locks.holder(file)} runs its services in {place.data}.",
            "Start workers with `antdt launch`, or stop that one first.",
        )
    try:
        yield
    finally:
        os.close(lock)


def service_command(service: str, job: str, place: Place, extra: Sequence[str] = ()) -> list[str]:
    """The command line of a service process; "standby" is a second ledger that waits for the first to fall silent.

    The stream processors are named: one that is started again goes on at once.
    """
    command = ("ledger", job, "--standby", "--instance", STANDBY) if service == STANDBY else (service, job)
    named = ("--instance", MAIN_INSTANCE) if service in ("monitor", "controller") else ()
    return [sys.executable, "-m", "antdt_streams", *command, "--data-dir", str(place.data), *named, *extra]


def start_services(
    job: str,
    place: Place,
    connection: Connection,
    services: Sequence[str],
    policy: str | None = None,
    extra: Mapping[str, Sequence[str]] | None = None,
    start: Start = start_process,
    say: Callable[[str], None] = lambda _: None,
) -> Supervisor:
    """Start the services of a job as supervised processes; their logs lie in the data folder.

    extra: further arguments by service. start: what starts a process. say: see Supervisor.
    """
    environ = dict(os.environ) | environment_of(connection, place)
    environ.pop(ENV_PORT, None)  # one port is not for all of them
    supervisor = Supervisor(environ, start=start, say=say)
    for service in services:
        more = [*(extra or {}).get(service, ())]
        if policy and service == "controller":
            more += ["--policy", policy]
        log = place.data / "logs" / job / f"{service}.log"
        supervisor.add(service, service_command(service, job, place, more), log)
    return supervisor


class PageBeside:
    """The page of a job in a process of its own beside its services. Whatever becomes of it, they go on."""

    def __init__(
        self,
        job: str,
        place: Place,
        connection: Connection,
        say: Callable[[str], None],
        start: Start = start_process,
    ) -> None:
        self._say, self._told = say, ""
        # One port for all its lives, so that open pages find it again; the usual one may be another job's.
        port = ("--port", str(free_port(PAGE_PORT)))
        self._supervisor = start_services(job, place, connection, (PAGE,), extra={PAGE: port}, start=start)

    def poll(self) -> None:
        """Start it again if it has ended; say where it is, once for each place."""
        child = self._supervisor.children.get(PAGE)
        if child is None:
            return
        try:
            self._supervisor.poll()
        except ServiceEnded as error:
            self._say(f"There is no page any more. {error}")
            self._supervisor.stop()
            return
        if child.ready_at is not None and not self._told:
            with suppress(OSError):
                self._told = child.ready_file.read_text(encoding="utf-8").strip()
                self._say(f"The page is at {self._told}")

    def stop(self) -> None:
        self._supervisor.stop()


def free_port(wanted: int) -> int:
    """This port of the loopback, if nobody listens there now; else another one."""
    for port in (wanted, 0):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                return int(one.getsockname()[1])
    return 0


def environment_of(connection: Connection, place: Place) -> dict[str, str]:
    """What a child needs to find the broker; properties of the environment are there already."""
    named = {ENV_FILE: str(place.config.absolute())} if place.config is not None else {}
    if place.framing:
        named[ENV_FRAMING] = place.framing
    return {ENV_BOOTSTRAP: connection.bootstrap, ENV_DATA: str(place.data), **named}
