"""antdt stack."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from antdt_streams.cli.common import connection_options, emit_json, job_argument, json_option, note
from antdt_streams.local.place import Place


@click.command()
@job_argument
@click.argument("worker")
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=1),
    default=15.0,
    show_default=True,
    help="Seconds to wait for the Controller, and for the launcher.",
)
@json_option
@connection_options
def stack(job: str, worker: str, timeout_s: float, as_json: bool, place: Place) -> None:
    """Print the Python stacks of a worker or server that hangs: of all its threads, the innermost call first.

    WORKER is its name, w0 or s0 and so on. Its launcher takes them, whatever the worker is at (a collective, C code, a
    lock), and one that trains goes on. With `py-spy` beside the launcher, the frames of C are told of one that has not
    moved for 5 s. Exit status 1 if there are none, with the reason.
    """
    from antdt_streams.views.stacks import stack_of, waited_for
    from antdt_streams.views.standings import standings

    place.connection.check_reachable()
    found = stack_of(place.connection, job, worker, timeout_s, note)
    at = list(waited_for(found, standings(place.connection, job, None)))
    if as_json:
        emit_json(asdict(found) | {"at": at})
    else:
        process = f"process {found.pid} of {found.launcher}" if found.pid else found.launcher
        click.echo(f"{found.incarnation}, {process}: {at[0]}")
        for line in at[1:]:
            click.echo(f"  {line}")
        click.echo(f"\n{found.text}" if found.text else f"There are no stacks of {worker}: {found.problem}.")
        if found.cut_bytes:
            note(f"{found.cut_bytes:,} bytes more are left out: a record of this job's topics has no room for them.")
    if found.problem:
        sys.exit(1)
