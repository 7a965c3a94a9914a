"""antdt demo."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import click
from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import data_folder
from antdt_schemas.errors import UsageError

from antdt_streams.cli.common import connection_options, note
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES, broker_of, start_services


@click.command(context_settings={"show_default": True})
@click.option(
    "--scene",
    type=click.Choice(["mitigation", "restart", "dd", "topic", "ps"]),
    default="mitigation",
    help="Slow workers, without and with the Controller; a worker that is started again; unlike devices; a topic that "
    "is trained on while it grows; parameter servers, one of which is killed.",
)
@click.option("--workers", default=4, help="Worker processes.")
@click.option(
    "--data",
    default="digits",
    help="digits (of scikit-learn, no download), or mnist:DIR with the folder of MNIST's idx files.",
)
@click.option(
    "--epochs", default=0, show_default=False, help="Passes over the data.  [default: 8 for digits, 1 for mnist]"
)
@click.option(
    "--samples",
    default=0,
    show_default=False,
    help="Use the first N samples only.  [default: all; of mnist the first 12,000]",
)
@click.option("--batch-size", default=128, help="Samples of all workers together in one step.")
@click.option("--delay-ms", default=4.0, help="Time that one sample takes at least.")
@click.option("--slow", default=3.0, help="How many times slower w1 is, throughout.")
@click.option("--burst", default=3.0, help="How many times slower the last worker is in bursts.")
@click.option("--burst-s", default=4.0, help="Seconds that a burst lasts.")
@click.option("--burst-every-s", default=12.0, help="A period in seconds; a burst ends each one.")
@click.option("--seed", default=0, help="Of the model and of the order of the samples.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result to this file, too."
)
@click.option("--keep", is_flag=True, help="Leave broker and services of the mitigated run up until Ctrl-C.")
@connection_options
def demo(scene: str, json_file: Path | None, keep: bool, place: Place, **choice: Any) -> None:
    """Train a small CNN twice on a real Kafka broker, with one worker slow and one slow in bursts.

    First with equal batches, then with the Controller moving samples to whoever is fast; at the end both runs are
    audited from their logs. Takes about a minute. Ctrl-C ends it at any time and leaves nothing running.

    --scene ps: one run on two parameter servers, one of which is killed after a third of the samples.

    Each sample takes a fixed time at least (--delay-ms), which stands in for an accelerator: so two cores suffice for
    any number of workers, and what the best possible result would be is known.

    --scene topic: one run on click events of a Kafka topic, which grows meanwhile; a worker is killed.

    --scene restart and --scene dd are one run each, of half a minute: a worker falls ill and is started again, and what
    that saved is measured; devices of other speed and memory get quotas that they compute in micro-batches.
    """
    from rich.console import Console

    from antdt_streams.demo.options import SERVERS, DemoOptions
    from antdt_streams.demo.run import Demo
    from antdt_streams.demo.view import screen_of, summary, verdict

    options = DemoOptions(scene=scene, **choice)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"--json {json_file}: there is no folder {json_file.absolute().parent}.")
    _interrupt_once()
    if scene == "topic":
        sys.exit(_topic_scene(place, options.workers, json_file, keep))
    console, tag = Console(), secrets.token_hex(2)
    if scene in ("restart", "dd"):
        sys.exit(_scene(scene, f"demo-{scene}-{tag}", place, keep, json_file, console))
    names = (f"demo-static-{tag}", f"demo-{tag}") if options.scene != SERVERS else (f"demo-ps-{tag}",)
    with (
        _folder(place, keep) as home,
        broker_of(home, note) as broker,
        _topics(broker.connection, names, keep or not home.named),
    ):
        connection = broker.connection
        note(f"Kafka on {connection.bootstrap}, data in {home.data}")
        with screen_of(console, options) as screen:
            running = Demo(home, connection, options, screen)
            result = running.both(*names) if options.scene != SERVERS else running.on_servers(*names)
        console.print(summary(result) if options.scene != SERVERS else verdict(result), highlight=False)
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
        _next(home, connection.bootstrap, names[-1], keep)
        if keep:
            _keep_up(home, connection, names[-1])
    audits = [value for name, value in result.items() if name.startswith("audit")]
    sys.exit(0 if all(audit["exactly_once"] for audit in audits) else 1)


def _topic_scene(place: Place, workers: int, json_file: Path | None, keep: bool) -> int:
    """The exit status."""
    from antdt_streams.cli.job import show_audit
    from antdt_streams.demo.topic import TopicScene, clean

    job = f"demo-topic-{secrets.token_hex(2)}"
    with _folder(place, keep) as home, broker_of(home, note) as broker:
        note(f"Kafka on {broker.connection.bootstrap}, data in {home.data}")
        with _topics(broker.connection, (job,), keep or not home.named):
            try:
                result = TopicScene(home, broker.connection, workers, note).run(job)
            finally:
                if home.named and not keep:
                    clean(broker.connection, job)
    show_audit(result["audit"])
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0 if result["audit"]["exactly_once"] else 1


def _scene(scene: str, job: str, place: Place, keep: bool, json_file: Path | None, console: Any) -> int:
    """One run. Returns the exit status."""
    from antdt_streams.demo.scenes import SceneOptions, show, told
    from antdt_streams.demo.view import screen_of

    with (
        _folder(place, keep) as home,
        broker_of(home, note) as broker,
        _topics(broker.connection, (job,), keep or not home.named),
    ):
        with screen_of(console, SceneOptions()) as screen:
            result = show(scene, job, home, broker.connection, screen)
        console.print(told(result), highlight=False)
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0 if result["audit"]["exactly_once"] else 1


def _interrupt_once() -> None:
    """The first SIGINT or SIGTERM ends what is going on; further ones must not end the clean-up."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


@contextmanager
def _folder(place: Place, keep: bool) -> Iterator[Place]:
    """A folder of the demo's own, removed afterwards unless somebody wants to look, or has named one."""
    if keep or place.data != data_folder(os.environ):
        yield place
        return
    folder = Path(tempfile.mkdtemp(prefix="antdt-demo-"))
    try:
        yield replace(place, data=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _topics(connection: Connection, names: tuple[str, ...], stay: bool) -> Iterator[None]:
    """On somebody else's broker nothing is left behind either."""
    try:
        yield
    finally:
        for name in () if stay else names:
            if topics_admin.topic_ids(connection, name):
                topics_admin.delete(connection, name)


def _keep_up(place: Place, connection: Connection, job: str) -> None:
    supervisor = start_services(job, place, connection, SERVICES)
    try:
        with suppress(KeyboardInterrupt):
            supervisor.run(Event())
    finally:
        supervisor.stop()


def _next(place: Place, bootstrap: str, job: str, keep: bool) -> None:
    if not keep:
        note("\nTry next:")
        note("  antdt demo --slow 6 --workers 6       a worse cluster")
        note("  antdt demo --keep                     the services stay up to look around")
        note("  antdt up my-job                       services for a job of your own; then")
        note("  antdt launch --job my-job -n 4 examples/train.py")
        return
    where = f"--bootstrap-servers {bootstrap}" if place.named else f"--data-dir {place.data}"
    note("\nEverything stays up until Ctrl-C. In another terminal:")
    for command, gives in (
        (f"status {job}", "where it stands"),
        (f"audit {job}", "prove it again, from the log alone"),
        (f"topics tail {job} decisions", "why each batch size changed"),
        (f"topics tail {job} shard-log", "every assignment and every step"),
    ):
        note(f"  # {gives}\n  antdt {command} {where}")
    note(f"Logs: {place.data / 'logs'}")
