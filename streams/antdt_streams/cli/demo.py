"""antdt demo."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from antdt_streams.cli.common import Place, connection_options, note
from antdt_streams.cli.services import SERVICES, broker_of, start_services, stop_on_signals

if TYPE_CHECKING:
    from rich.console import Console

    from antdt_streams.demo.run import Show
    from antdt_streams.demo.watch import Watch

LINE_EVERY_S = 5.0


@click.command()
@click.option("--workers", type=int, default=4, show_default=True, help="Worker processes.")
@click.option("--data", default="digits", show_default=True, help="digits, or mnist:DIR (idx files).")
@click.option("--samples", type=int, default=0, help="Train on the first N samples only; 0: all.")
@click.option("--epochs", type=int, default=12, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True, help="Global batch.")
@click.option("--delay-ms", type=float, default=2.0, show_default=True, help="Time that a sample takes.")
@click.option("--slow", type=float, default=3.0, show_default=True, help="How much slower w1 is, throughout.")
@click.option("--burst", type=float, default=3.0, show_default=True, help="How much slower the last one is in bursts.")
@click.option("--burst-s", type=float, default=4.0, show_default=True, help="Seconds that a burst lasts.")
@click.option("--burst-every-s", type=float, default=12.0, show_default=True, help="Seconds from burst to burst.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result to this file as well.")
@click.option("--keep", is_flag=True, help="Leave broker and services of the mitigated run up until Ctrl-C.")
@connection_options
def demo(json_file: Path | None, keep: bool, place: Place, data: str, **choice: float) -> None:
    """Train a small CNN twice on a real Kafka broker, with one worker slow and one slow in bursts.

    First with equal batches, then with the Controller re-balancing them; at the end both runs are audited from their
    logs. Takes about a minute and leaves nothing running.
    """
    from rich.console import Console

    from antdt_streams.demo.run import Demo, DemoOptions
    from antdt_streams.demo.view import summary

    options = DemoOptions(data=data, **choice)  # type: ignore[arg-type]
    stopping, console = stop_on_signals(), Console()
    tag = secrets.token_hex(2)
    names = f"demo-static-{tag}", f"demo-{tag}"
    with _folder(place, keep) as home, broker_of(home) as connection:
        note(f"broker on {connection.bootstrap}, data in {home.data}")
        running = Demo(home, connection, options, stopping)
        with _screen(console) as show:
            result = running.both(names, show)
        console.print(summary(result))
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
        _next(home, connection.bootstrap, names[1], keep)
        if keep:
            supervisor = start_services(names[1], home, connection, SERVICES)
            try:
                supervisor.run(stopping)
            finally:
                supervisor.stop()
    sys.exit(0 if result["audit_static"]["exactly_once"] and result["audit_mitigated"]["exactly_once"] else 1)


@contextmanager
def _folder(place: Place, keep: bool) -> Iterator[Place]:
    """A folder of the demo's own, removed afterwards unless somebody may still want to look."""
    if keep or place.named:
        yield place
        return
    folder = Path(tempfile.mkdtemp(prefix="antdt-demo-"))
    try:
        yield replace(place, data=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _screen(console: Console) -> Iterator[Show]:
    """A live view in a terminal; a line now and then where the output goes elsewhere."""
    from rich.live import Live

    from antdt_streams.demo.view import live

    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as screen:
            yield lambda watch, title, seconds: screen.update(live(watch, title, seconds))
        return
    said = {"at": 0.0}

    def line(watch: Watch, title: str, seconds: float) -> None:
        if monotonic() - said["at"] < LINE_EVERY_S:
            return
        said["at"] = monotonic()
        with watch.lock:
            state = watch.fold.state
            done, total = (state.committed_total, state.samples_total) if state else (0, 0)
            sizes = " ".join(f"{w}={v.batch_size}" for w, v in sorted(watch.workers.items()))
        console.print(f"{title}: {seconds:.0f} s, {done:,} of {total:,} samples, batch sizes {sizes}", highlight=False)

    yield line


def _next(place: Place, bootstrap: str, job: str, keep: bool) -> None:
    where = f"--bootstrap-servers {bootstrap}"
    note("")
    if keep:
        note("Everything stays up until Ctrl-C. In another terminal:")
        note(f"  antdt audit {job} {where}                  prove it again, from the log alone")
        note(f"  antdt topics tail {job} decisions {where}  why each batch size changed")
        note(f"  antdt topics tail {job} shard-log {where}  every assignment and every step")
        note(f"Logs: {place.data / 'logs'}")
        return
    note("Try next:")
    note("  antdt demo --keep                  the same, and leaves the services up to look around")
    note("  antdt demo --slow 6 --workers 6    a worse cluster")
    note("  antdt up my-job                    a job of your own; then antdt launch --job my-job -n 4 train.py")
