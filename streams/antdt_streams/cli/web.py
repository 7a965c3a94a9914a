"""antdt web."""

from __future__ import annotations

import asyncio
import os

import click
from antdt_schemas.address import is_served_here_only
from antdt_schemas.errors import ExitCode, unknown_job
from antdt_schemas.topics import check_job

from antdt_streams.cli.common import connection_options, note, stop_on_signals
from antdt_streams.host.logs import log_to_stderr
from antdt_streams.host.readiness import Readiness
from antdt_streams.local.place import Place
from antdt_streams.local.services import PAGE_PORT


@click.command()
@click.argument("job", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen: an address, or a name.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PAGE_PORT, show_default=True, help="0: any port that is free."
)
@click.option(
    "--allow-actions", is_flag=True, help="Whoever has the token that is printed may give orders from the page."
)
@connection_options
def web(job: str | None, host: str, port: int, allow_actions: bool, place: Place) -> None:
    """Show a job in a browser while it goes on, or at any moment of its past; without JOB, all jobs of the broker.

    Verdict, steps of every worker, decisions and what came of them, where the samples are, and how the services are.
    The page needs no network but this server, which only reads unless --allow-actions is said. Ctrl-C ends it.
    """
    from antdt_streams.kafka import topics_admin
    from antdt_streams.web.actions import Actions, new_token
    from antdt_streams.web.server import Page, serve
    from antdt_streams.web.watched import Watched

    log_to_stderr(job or "-", "web")
    place.connection.check_reachable()
    if job is not None and check_job(job) not in topics_admin.list_jobs(place.connection):
        raise unknown_job(job)
    stopping, token = stop_on_signals(), new_token() if allow_actions else None
    readiness, loopback = Readiness.of(os.environ), is_served_here_only(host)
    connection = place.connection.named(job or "", "web")

    def ready(at: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{at}/" + (f"jobs/{job}" if job else "")
        note(f"The page is at {url}")
        if not loopback:
            note("Mind: whoever reaches this address can read what the jobs of this broker do.")
        if token is not None:
            note(f"Orders need this token: {token}")
        readiness.say(url)

    async def run() -> None:
        page = Page(place, Watched(connection, job), Actions(token), loopback=loopback)
        await serve(page, host, port, stopping, ready)

    try:
        asyncio.run(run())
    finally:
        readiness.withdraw()
    raise SystemExit(ExitCode.DRAINED)
