"""antdt ledger: in a module of its own, since whoever starts a ledger again waits for what it imports."""

from __future__ import annotations

import os
import sys

import click
from antdt_schemas.errors import ExitCode
from antdt_schemas.exporting import Where

from antdt_streams.cli.common import connection_options, job_argument, metrics_options, stop_on_signals
from antdt_streams.host.logs import log_to_stderr
from antdt_streams.host.readiness import Readiness
from antdt_streams.ledger.core.holdups import STUCK_MS
from antdt_streams.local.place import MAIN_INSTANCE, Place

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
@patience_option
@stuck_option
@click.option("--standby", is_flag=True, help="Follow the log, and take office when its leader falls silent.")
@click.option("--instance", default="", help="Name of this ledger where one machine has several: a folder of its own.")
@metrics_options
@connection_options
def ledger(
    job: str, patience_ms: int, stuck_ms: int, standby: bool, instance: str, metrics: Where, place: Place
) -> None:
    """Run a ledger of a job: one is in office, and writes the shard log; whoever is superseded stands by."""
    from antdt_streams.ledger.options import LedgerOptions
    from antdt_streams.ledger.service import Ledger

    log_to_stderr(job, "ledger")
    stopping = stop_on_signals()
    options = LedgerOptions(patience_ms=patience_ms, stuck_ms=stuck_ms, standby=standby, secret=place.secret)
    connection = place.connection.named(job, "ledger", instance or MAIN_INSTANCE)
    service = Ledger(connection, job, place.ledger_folder(job, instance), options)
    service.stopping, service.readiness, service.metrics = stopping, Readiness.of(os.environ), metrics
    service.run()
    sys.exit(ExitCode.DRAINED)
