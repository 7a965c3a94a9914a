"""antdt up, ledger."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from time import monotonic

import click
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode, JobTaken

from antdt_streams.broker.use import BrokerUse
from antdt_streams.cli.common import connection_options, job_argument, note, replication_option
from antdt_streams.cli.topics import told
from antdt_streams.host.logs import log_to_stderr
from antdt_streams.host.readiness import Readiness
from antdt_streams.kafka import topics_admin
from antdt_streams.ledger.core.holdups import STUCK_MS
from antdt_streams.local.place import Place
from antdt_streams.local.services import (
    MAIN_INSTANCE,
    SERVICES,
    STANDBY,
    NamedBroker,
    PageBeside,
    alone_up,
    broker_of,
    ledger_folder,
    start_services,
)
from antdt_streams.local.supervise import POLL_S, Supervisor

BROKER_EVERY_S = 1.0


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


patience_option = click.option(
    "--patience-ms",
    type=int,
    default=5_000,
    show_default=True,
    help="A worker that is silent for longer is given up, and the others go on. Counts when the job is new.",
)
stuck_option = click.option(
    "--stuck-ms",
    type=click.IntRange(min=1000),
    default=STUCK_MS,
    show_default=True,
    help="A worker that lives, but holds up the others for longer without announcing it, is given up.",
)


@click.command()
@job_argument
@click.option("--resume", is_flag=True, help="Go on with a job that exists already.")
@click.option("--policy", default=None, help="Policy of the controller: a name, or FILE.py:CLASS.  [default: nd]")
@replication_option
@click.option("--standby", is_flag=True, help="A second ledger, which takes over within about a second.")
@click.option("--web", "with_page", is_flag=True, help="Show the job in a browser, too: see `antdt web`.")
@patience_option
@click.option(
    "--ready-timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="A service that does not answer within that many seconds ends the start.",
)
@stuck_option
@connection_options
def up(
    job: str,
    resume: bool,
    policy: str | None,
    replication: int | None,
    standby: bool,
    with_page: bool,
    patience_ms: int,
    ready_timeout_s: float,
    stuck_ms: int,
    place: Place,
) -> None:
    """Start a job's services: ledger, monitor, controller, and a Kafka broker where none is named.

    Stays in the foreground; Ctrl-C stops everything. The broker's data, the services' state and their logs lie in the
    data folder, and `--resume` goes on with them. Several jobs of one data folder share its broker, which ends with the
    last of them. A service that ends is started again, and that is told here; one that ends for good ends this command
    with its own exit status.
    """
    stopping = stop_on_signals()
    with alone_up(place, job), broker_of(place, note, stopping.is_set) as broker:
        connection = broker.connection.named(job, "cli")
        try:
            topics_admin.create(connection, job, replication=replication, resume=resume)
        except JobTaken as taken:
            raise JobTaken(f"{taken}{_who(connection, job)}") from taken
        _check_topics(connection, job)
        services = (*SERVICES, STANDBY) if standby else SERVICES
        patience = ("--patience-ms", str(patience_ms), "--stuck-ms", str(stuck_ms))
        extra = {"ledger": patience, STANDBY: patience}
        supervisor = start_services(job, place, connection, services, policy, extra, say=_at_a_time)
        page = PageBeside(job, place, connection, _at_a_time) if with_page else None
        try:
            if supervisor.await_ready(ready_timeout_s, stopping):
                note(f"Job {job} is up on {connection.bootstrap}. Logs: {place.data / 'logs' / job}")
                note(f"Start its workers in another terminal:  antdt launch --job {job} -n 4 train.py")
                _look_after(supervisor, broker, stopping, page)
        finally:
            note("Stopping …")
            supervisor.stop()
            if page is not None:
                page.stop()


def _check_topics(connection: Connection, job: str) -> None:
    """What makes a log untrue ends the start, with what mends it; the rest is said."""
    differences = topics_admin.check(connection, job)
    topics_admin.refuse_fatal(differences, job)
    for difference in differences:
        note(f"Mind: {told(difference, job)}")


def _look_after(
    supervisor: Supervisor, broker: BrokerUse | NamedBroker, stopping: threading.Event, page: PageBeside | None
) -> None:
    looked = monotonic()
    while not stopping.wait(POLL_S):
        supervisor.poll()
        if page is not None:
            page.poll()
        if monotonic() - looked > BROKER_EVERY_S:
            broker.look()
            looked = monotonic()


def _at_a_time(message: str) -> None:
    note(f"{time.strftime('%H:%M:%S')} {message}")


def _who(connection: Connection, job: str) -> str:
    """Which run has the name, if its log says so."""
    from antdt_streams.kafka.reader import read_genesis

    genesis = read_genesis(connection, job)
    return "" if genesis is None else f" Its run is {genesis.run_id}, begun by {genesis.owner}."


@click.command()
@job_argument
@patience_option
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
    connection = place.connection.named(job, "ledger", instance or MAIN_INSTANCE)
    service = Ledger(connection, job, ledger_folder(place, job, instance), options)
    service.stopping, service.readiness = stopping, Readiness.of(os.environ)
    service.run()
    sys.exit(ExitCode.DRAINED)
