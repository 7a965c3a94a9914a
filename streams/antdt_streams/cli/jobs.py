"""antdt jobs, archive, delete: the jobs of a broker, and how one leaves it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click
from antdt_schemas.errors import Refused, UsageError

from antdt_streams.cli.common import connection_options, emit_json, job_argument, json_option, note
from antdt_streams.local.place import Place

UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@click.command()
@json_option
@connection_options
def jobs(as_json: bool, place: Place) -> None:
    """List the jobs of a broker: how far each is, how old it is, and how many records it holds."""
    from antdt_streams.views.jobs import jobs_of

    place.connection.check_reachable()
    found = jobs_of(place.connection)
    if as_json:
        emit_json({"jobs": [asdict(row) for row in found]})
        return
    if not found:
        click.echo("There is no job on this broker. `antdt up JOB` makes one.")
        return
    lines = [("job", "state", "samples committed", "step", "members", "records", "begun")]
    for row in found:
        share = f" ({100 * row.committed / row.samples_total:.0f} %)" if row.samples_total else ""
        done = f"{row.committed:,}{share}"
        begun = "-" if row.age_s is None else f"{age(row.age_s)} ago"
        lines.append((row.job, row.state, done, f"{row.step:,}", f"{row.members}", f"{row.records:,}", begun))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def age(seconds: float) -> str:
    """In the largest unit that there is one of."""
    for unit_s, name in UNITS:
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return "0 s"


@click.command()
@job_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@connection_options
def archive(job: str, file: Path, place: Place) -> None:
    """Write all that a job's topics hold to FILE, a zip archive, which needs no broker and no antdt to be read.

    In it are the shard log as `antdt export` writes it, with its checker, and every other topic as JSON lines, as
    `antdt topics tail` prints them. FILE is there whole or not at all. Checkpoints are not in it.
    """
    from antdt_streams.views.archive import write

    place.connection.check_reachable()
    for name, count in write(place.connection, job, file).items():
        click.echo(f"  {count:>12,} {name}")
    click.echo(f"{file}: {file.stat().st_size:,} bytes")


@click.command()
@job_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
def delete(job: str, yes: bool, place: Place) -> None:
    """Delete a job: its topics, its consumer groups, and the state of its services on this machine.

    It is told what goes, and asked. A job that runs is not deleted. Checkpoints and logs of processes stay.
    """
    from antdt_streams.cli import removal

    place.connection.check_reachable()
    found = removal.look(place, job)
    if found.running is None:
        raise Refused(f"Whether the services of job {job} run cannot be told with the rights of this client.")
    if found.running:
        raise Refused(f"Job {job} runs ({', '.join(found.running)}): end `antdt launch` and `antdt up` first.")
    click.echo(f"Of job {job} these go:")
    for line in found.lines():
        click.echo(f"  {line}")
    if found.left:
        click.echo(f"These stay: {', '.join(map(str, found.left))}.")
    click.echo(f"Nothing brings back what goes; `antdt archive {job} FILE` writes what is in the topics.")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("Nobody can be asked here: say --yes.")
        click.confirm("Delete them?", abort=True)
    removal.remove(place, job, found)
    note(f"Job {job} is deleted.")
