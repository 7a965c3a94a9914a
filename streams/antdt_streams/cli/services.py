"""antdt up, ledger."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from antdt_schemas.connection import ENV_BOOTSTRAP, Connection
from antdt_schemas.data_folder import BROKER, ENV_DATA, running
from antdt_schemas.errors import ExitCode, JobTaken
from antdt_schemas.topics import check_worker

from antdt_streams import topics_admin
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.cli.common import Place, connection_options, job_argument, note
from antdt_streams.cli.processors import MAIN_INSTANCE
from antdt_streams.ledger.core.holdups import STUCK_MS
from antdt_streams.runtime.logs import log_to_stderr
from antdt_streams.supervise import Start, Supervisor, start_process

SERVICES = ("ledger", "monitor", "controller")
STANDBY = "standby"


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


@contextmanager
def broker_of(place: Place) -> Iterator[Connection]:
    """The broker that was named, or one of our own in the data folder, stopped at the end if it was started here."""
    if place.named:
        place.connection.check_reachable()
        yield place.connection
        return
    folder = place.data / BROKER
    if running(folder):
        place.connection.check_reachable()
        yield place.connection
        return
    broker = EmbeddedBroker(folder)
    broker.start()
    try:
        yield broker.connection
    finally:
        broker.stop()


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
) -> Supervisor:
    """Start the services of a job as supervised processes; their logs lie in the data folder.

    extra: further arguments by service. start: what starts a process.
    """
    environ = dict(os.environ) | environment_of(connection, place)
    supervisor = Supervisor(environ, start=start)
    for service in services:
        more = [*(extra or {}).get(service, ())]
        if policy and service == "controller":
            more += ["--policy", policy]
        log = place.data / "logs" / job / f"{service}.log"
        supervisor.add(service, service_command(service, job, place, more), log)
    return supervisor


def environment_of(connection: Connection, place: Place) -> dict[str, str]:
    """What a child needs to find the broker: properties pass through the environment it already has."""
    return {ENV_BOOTSTRAP: connection.bootstrap, ENV_DATA: str(place.data)}


stuck_option = click.option(
    "--stuck-ms",
    type=click.IntRange(min=1000),
    default=STUCK_MS,
    show_default=True,
    help="A worker that lives, but holds up the others for longer without announcing it, is given up.",
)


@click.command(short_help="Start the services of a job, and Kafka if need be.")
@job_argument
@click.option("--resume", is_flag=True, help="Go on with a job that exists already.")
@click.option("--policy", default=None, help="Policy of the controller: a name, or FILE.py:CLASS.  [default: antdt-nd]")
@click.option("--replication", type=int, default=None, help="Copies of each partition; default: the broker's.")
@click.option("--standby", is_flag=True, help="A second ledger, which takes over within about a second.")
@click.option(
    "--patience-ms",
    type=int,
    default=5_000,
    show_default=True,
    help="A worker that is silent for longer is given up, and the others go on. Counts when the job is new.",
)
@stuck_option
@connection_options
def up(
    job: str,
    resume: bool,
    policy: str | None,
    replication: int | None,
    standby: bool,
    patience_ms: int,
    stuck_ms: int,
    place: Place,
) -> None:
    """Start a job's services: ledger, monitor, controller, and a Kafka broker where none is named.

    Stays in the foreground; Ctrl-C stops everything. The broker's data, the services' state and their logs lie in the
    data folder, and `--resume` goes on with them.
    """
    stopping = stop_on_signals()
    with broker_of(place) as connection:
        try:
            topics_admin.create(connection, job, replication=replication, resume=resume)
        except JobTaken as taken:
            raise JobTaken(f"{taken}{_who(connection, job)}") from taken
        services = (*SERVICES, STANDBY) if standby else SERVICES
        patience = ("--patience-ms", str(patience_ms), "--stuck-ms", str(stuck_ms))
        supervisor = start_services(job, place, connection, services, policy, {"ledger": patience, STANDBY: patience})
        note(f"Job {job} is up on {connection.bootstrap}. Logs: {place.data / 'logs' / job}")
        note(f"Start its workers in another terminal:  antdt launch --job {job} -n 4 train.py")
        try:
            supervisor.run(stopping)
        finally:
            note("Stopping …")
            supervisor.stop()


def _who(connection: Connection, job: str) -> str:
    """Which run has the name, if its log says so."""
    from antdt_streams.reader import read_genesis

    genesis = read_genesis(connection, job)
    return "" if genesis is None else f" Its run is {genesis.run_id}, begun by {genesis.owner}."


@click.command(short_help="Run one ledger of a job, as `antdt up` does.")
@job_argument
@click.option(
    "--patience-ms",
    type=int,
    default=5_000,
    show_default=True,
    help="A worker that is silent for longer is given up, and the others go on. Counts when the job is new.",
)
@stuck_option
@click.option("--standby", is_flag=True, help="Follow the log, and take office when its leader falls silent.")
@click.option("--instance", default="", help="Name of this ledger where one machine has several: a folder of its own.")
@connection_options
def ledger(job: str, patience_ms: int, stuck_ms: int, standby: bool, instance: str, place: Place) -> None:
    """Run a ledger of a job: one is in office, and writes the shard log; whoever is superseded stands by."""
    from antdt_streams.ledger.options import LedgerOptions
    from antdt_streams.ledger.service import Ledger

    log_to_stderr(job, "ledger")
    stopping = stop_on_signals()
    options = LedgerOptions(patience_ms=patience_ms, stuck_ms=stuck_ms, standby=standby, secret=place.secret)
    service = Ledger(place.connection, job, ledger_folder(place, job, instance), options)
    service.stopping = stopping
    service.run()
    sys.exit(ExitCode.DRAINED)


def ledger_folder(place: Place, job: str, instance: str) -> Path:
    """Local state of one ledger."""
    return place.service_folder(job, f"ledger-{check_worker(instance)}" if instance else "ledger")
