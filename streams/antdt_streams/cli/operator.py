"""antdt rollback, readmit, resize, end, recover: what only a person decides, recorded in the log with its author."""

from __future__ import annotations

import click
from antdt_schemas import records
from antdt_schemas.errors import ExitCode, Refused, UsageError
from antdt_schemas.launch_locks import process_name

from antdt_streams.cli.common import connection_options, job_argument, note
from antdt_streams.host.logs import log_to_stderr
from antdt_streams.kafka import ask
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
    if step < -1:
        raise UsageError(f"--step {step}: name the step of a checkpoint, from 0.")
    _ask(job, place, lambda author: records.Rollback(step, author, reason))
    note(f"Job {job} goes back to {'its newest checkpoint' if step < 0 else f'step {step}'}.")


@click.command()
@job_argument
@connection_options
def readmit(job: str, place: Place) -> None:
    """Try again what is in quarantine: samples that made their workers fail several times.

    Mend them first. A job that was done is no longer: launch its workers again, they begin with its final model.
    """
    _ask(job, place, lambda _: records.Readmit())
    whom = "by the workers that run or by the next launch"
    note(f"What was in quarantine in job {job} will be trained on again, {whom}.")


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
    _ask(job, place, lambda author: records.Resize(batch_size, author, reason))
    note(f"Job {job} goes on with {batch_size} samples in a step.")


@click.command()
@job_argument
@click.option("--reason", required=True, help="Why, for whoever reads the log later.")
@connection_options
def end(job: str, reason: str, place: Place) -> None:
    """End the data of a job that trains on a topic that grows (Topic(bounded=False)).

    What its workers have heard of until now is trained on, then the job is done; what comes later is not of this job.
    """
    _ask(job, place, lambda author: records.End(author, reason))
    note(
        f"The data of job {job} end here: it finishes with what it knows of. `antdt status {job}` shows how far it is."
    )


def _ask(job: str, place: Place, body: ask.Body) -> None:
    place.connection.check_reachable()
    reply = ask.ask(place.connection, job, body, place.secret)
    if reply.status is not records.Status.OK:
        raise Refused(f"The ledger refused: {reply.reason}")


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
    from antdt_streams.local.services import ledger_folder

    if not accept_loss:
        raise UsageError("Say --accept-loss: what the lost entries recorded cannot be proven any more.")
    log_to_stderr(job, "ledger")
    options = LedgerOptions(secret=place.secret)
    fact = Ledger(place.connection, job, ledger_folder(place, job, instance), options).recover(reason)
    lost = f"from offset {fact.first_lost}" if fact.first_lost >= 0 else "at offsets that are not known"
    note(f"Recorded by {process_name()}: entries {lost} up to {fact.next_offset} of run {fact.run_id} are lost.")
    raise SystemExit(ExitCode.DONE)
