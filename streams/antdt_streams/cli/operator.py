"""antdt rollback, readmit, restart, resize, end, recover: what only a person decides, on record with its author."""

from __future__ import annotations

import click
from antdt_schemas.errors import ExitCode, UsageError
from antdt_schemas.launch_locks import process_name

from antdt_streams.cli.common import connection_options, job_argument, note
from antdt_streams.host.logs import log_to_stderr
from antdt_streams.kafka import operating
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.local.place import Place


@click.command()
@job_argument
@click.option("--step", type=int, default=-1, help="Step of the checkpoint to go back to; default: the newest one.")
@click.option("--reason", required=True, help="Why, for whoever reads the log later.")
@connection_options
def rollback(job: str, step: int, reason: str, place: Place) -> None:
    """Go back to a checkpoint: the steps behind it are undone, exactly their samples are trained on again.

    The workers that run load it and go on. `antdt status JOB` lists the checkpoints that are kept.
    """
    place.connection.check_reachable()
    note(operating.rollback(place.connection, job, place.secret, step, reason))


@click.command()
@job_argument
@connection_options
def readmit(job: str, place: Place) -> None:
    """Try again what is in quarantine: samples that made their workers fail several times.

    Mend them first. A job that was done is no longer: launch its workers again, they begin with its final model.
    """
    place.connection.check_reachable()
    note(operating.readmit(place.connection, job, place.secret))


@click.command()
@job_argument
@click.argument("worker")
@click.option("--reason", required=True, help="Why, for whoever reads the log later.")
@click.option(
    "--wait-s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait until it is back; 0: do not wait.",
)
@connection_options
def restart(job: str, worker: str, reason: str, wait_s: float, place: Place) -> None:
    """Have a worker or server started again by its launcher: it leaves, and its next life joins.

    WORKER is its name, w0 or s0 and so on. What it had in hand is trained on by the others, or by itself once it is
    back; nothing is lost or repeated. The job's policy is not asked, and waits with restarts of its own meanwhile.
    """
    from antdt_streams.views import orders

    place.connection.check_reachable()
    incarnation, said = orders.restart(place.connection, job, worker, reason)
    note(said)
    if wait_s:
        note(orders.await_next(place.connection, job, incarnation, wait_s, note))


@click.command()
@job_argument
@click.option("--batch-size", type=int, required=True, help="Samples of all workers together in one step.")
@click.option("--reason", required=True, help="Why, for whoever reads the log later.")
@connection_options
def resize(job: str, batch_size: int, reason: str, place: Place) -> None:
    """Change the global batch of a job that runs, or is to be launched again: the workers meet anew, and go on with it.

    What is left of an epoch is shared out among steps of the new size; no sample is left out or repeated. The shard log
    says from which step on it counts (`antdt status`). Learning rates go with it where the script says so.
    """
    place.connection.check_reachable()
    note(operating.resize(place.connection, job, place.secret, batch_size, reason))


@click.command()
@job_argument
@click.option("--reason", required=True, help="Why, for whoever reads the log later.")
@connection_options
def end(job: str, reason: str, place: Place) -> None:
    """End the data of a job that trains on a topic that grows (Topic(bounded=False)).

    What its workers have heard of until now is trained on, then the job is done; what comes later is not of this job.
    """
    place.connection.check_reachable()
    note(operating.end(place.connection, job, place.secret, reason))


@click.command()
@job_argument
@click.option("--accept-loss", is_flag=True, help="Yes, entries that were acknowledged are gone, and that is accepted.")
@click.option("--reason", required=True, help="Why, for whoever reads the log later.")
@click.option("--instance", default="", help="Name of the ledger whose folder knows of the lost entries.")
@connection_options
def recover(job: str, accept_loss: bool, reason: str, instance: str, place: Place) -> None:
    """Accept that the broker has lost acknowledged entries of the shard log, and record it there.

    Run it while no ledger runs, then `antdt up JOB --resume`. The workers join anew and begin at the newest checkpoint
    that the log still knows of; the old state folder is kept under another name.
    """
    from antdt_streams.ledger.service import Ledger

    if not accept_loss:
        raise UsageError("Say --accept-loss: what the lost entries recorded cannot be proven any more.")
    log_to_stderr(job, "ledger")
    options = LedgerOptions(secret=place.secret)
    fact = Ledger(place.connection, job, place.ledger_folder(job, instance), options).recover(reason)
    lost = f"from offset {fact.first_lost}" if fact.first_lost >= 0 else "at offsets that are not known"
    note(f"Recorded by {process_name()}: entries {lost} up to {fact.next_offset} of run {fact.run_id} are lost.")
    raise SystemExit(ExitCode.DONE)
