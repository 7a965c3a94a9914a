"""antdt top."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import click
from antdt_schemas.errors import ExitCode
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from antdt_streams.cli.common import connection_options, emit_json, job_argument, json_option
from antdt_streams.cli.job import WATCHED_ONLY
from antdt_streams.local.place import Place
from antdt_streams.views.control import SLOW
from antdt_streams.views.drawing import has_unicode, line, speed_line
from antdt_streams.views.top import Top, await_current

EVERY_S = 1.0
DECISIONS_SHOWN = 4
OTHER_LINES = 13  # of a frame, beside its workers
ROWS_MIN = 3
WORDS = ("worker", "class")  # columns; what follows are numbers
NUMBERS = ("samples/s", "a step", "own ms", "ms a sample", "wait ms")


@click.command()
@job_argument
@click.option("--once", is_flag=True, help="Print it once, and end; so it is where the output is no terminal.")
@json_option
@connection_options
def top(job: str, once: bool, as_json: bool, place: Place) -> None:
    """Watch a job: how far it is, its workers with the slowest first, and what was decided. Ctrl-C ends it.

    It is drawn anew every second. What the figures come from: `antdt why JOB WORKER`.
    """
    place.connection.check_reachable()
    watched, console = Top(place.connection, job), Console()
    watched.follow.start()
    try:
        await_current(watched)
        if console.is_terminal and not (once or as_json):
            _watch(watched, console)
        with watched.follow.changed:  # another thread goes on reading
            found, speeds = watched.document(), watched.progress.speeds
        if as_json:
            emit_json(found)
        else:
            console.print(frame(found, speeds, console), soft_wrap=True)
    except KeyboardInterrupt:
        raise SystemExit(ExitCode.DONE) from None
    finally:
        watched.follow.stop()


def _watch(watched: Top, console: Console) -> NoReturn:
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while watched.follow.failure is None:
            with watched.follow.changed:
                live.update(frame(watched.document(), watched.progress.speeds, console), refresh=True)
            time.sleep(EVERY_S)
    raise watched.follow.failure


def frame(found: dict[str, Any], speeds: list[int], console: Console) -> RenderableType:
    """found: what `Top.document` says. As many workers as the terminal has lines for."""
    count = found["samples"]
    share = f"{100 * count['committed'] / count['total']:.1f} %" if count["total"] else "-"
    rest = ", ".join(f"{count[name]:,} {name}" for name in ("leased", "returned", "quarantined", "left"))
    state = "done" if found["done"] else f"generation {found['generation']}, {found['members']} members"
    age = "" if found["last_entry_s"] is None else f", {found['last_entry_s']:.0f} s ago"
    rows = max(ROWS_MIN, console.height - OTHER_LINES) if console.is_terminal else len(found["workers"])
    hidden = len(found["workers"]) - rows
    more = [line(f"and {hidden} more, faster ones", "dim")] if hidden > 0 else []
    decisions = [line(f"plan {d['plan']}: {d['reason']}", "yellow") for d in found["decisions"][-DECISIONS_SHOWN:]]
    void = f", {found['void_entries']} void entries" if found["void_entries"] else ""
    slow = any(one["class"] in SLOW for one in found["workers"])
    committed = f"{count['committed']:,} of {count['total']:,} samples committed ({share}); {rest}"
    return Group(
        line(f"{found['job']}   step {found['step']:,}   {state}", "bold"),
        line(found["verdict"], "red" if slow else "green"),
        line(WATCHED_ONLY if found["watched"] else committed),
        ProgressBar(total=count["total"] or 1, completed=count["committed"], width=min(100, console.width)),
        speed_line(speeds, console.width, has_unicode(console)),
        _table(found["workers"][:rows]),
        *more,
        Text(""),
        *(decisions or [line("Nothing was decided yet.", "dim")]),
        line(f"log@{found['offset']}{age}{void}; in office: {found['leader'] or 'nobody'}", "dim"),
    )


def _table(workers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in WORDS:
        table.add_column(name, no_wrap=True)
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for one in workers:
        style = "red" if one["class"] in SLOW else ""
        numbers = (f"{one['samples_per_s']:,.0f}", str(one["batch_size"]), f"{one['own_ms']:,.1f}")
        cells = (one["worker"], one["class"], *numbers, f"{one['own_ms_a_sample']:.3g}", f"{one['wait_ms']:,.1f}")
        table.add_row(*cells, style=style)
    return table
