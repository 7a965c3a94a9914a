"""antdt up."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from time import monotonic

import click
from antdt_schemas import framing
from antdt_schemas.connection import Connection
from antdt_schemas.errors import JobTaken, UsageError
from antdt_schemas.exporting import PORT_MAX, Where

from antdt_streams.broker.use import BrokerUse
from antdt_streams.cli.common import (
    connection_options,
    job_argument,
    metrics_options,
    note,
    replication_option,
    stop_on_signals,
)
from antdt_streams.cli.ledger import patience_option, stuck_option
from antdt_streams.cli.topics import told
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import (
    SERVICES,
    STANDBY,
    NamedBroker,
    PageBeside,
    alone_up,
    broker_of,
    start_services,
)
from antdt_streams.local.supervise import POLL_S, Supervisor

BROKER_EVERY_S = 1.0
LEDGERS = ("ledger", STANDBY)


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
@metrics_options
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
    metrics: Where,
    place: Place,
) -> None:
    """Start a job's services: ledger, monitor, controller, and a Kafka broker where none is named.

    Stays in the foreground; Ctrl-C stops everything. The broker's data, the services' state and their logs lie in the
    data folder, and `--resume` goes on with them. Several jobs of one data folder share its broker, which ends with the
    last of them. A service that ends is started again, and that is told here; one that ends for good ends this command
    with its own exit status.

    --metrics-port N serves the metrics of the first of them on port N, and those of the others on the ports behind it.
    """
    framing.begin()  # a registry that is away is told once, and not by each service
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
        served = metrics_of(services, metrics)
        extra = {name: (*(patience if name in LEDGERS else ()), *served.get(name, ())) for name in services}
        supervisor = start_services(job, place, connection, services, policy, extra, say=_at_a_time)
        page = PageBeside(job, place, connection, _at_a_time) if with_page else None
        try:
            if supervisor.await_ready(ready_timeout_s, stopping):
                note(f"Job {job} is up on {connection.bootstrap}. Logs: {place.data / 'logs' / job}")
                for name, (_, port, *_) in served.items():
                    where = f"http://{metrics.host}:{port}/metrics" if port != "0" else "see its log"
                    note(f"Metrics of the {name}: {where}")
                note(f"Start its workers in another terminal:  antdt launch --job {job} -n 4 train.py")
                _look_after(supervisor, broker, stopping, page)
        finally:
            note("Stopping …")
            supervisor.stop()
            if page is not None:
                page.stop()


def metrics_of(services: Sequence[str], metrics: Where) -> dict[str, tuple[str, ...]]:
    """Options of each service; a port of its own, one behind the other."""
    if metrics.port is None:
        return {}
    ports = [metrics.port + i if metrics.port else 0 for i in range(len(services))]
    if ports[-1] > PORT_MAX:
        raise UsageError(
            f"--metrics-port {metrics.port}: there are {len(services)} services; take one that has as many behind it."
        )
    return {
        name: ("--metrics-port", str(port), "--metrics-host", metrics.host)
        for name, port in zip(services, ports, strict=True)
    }


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
