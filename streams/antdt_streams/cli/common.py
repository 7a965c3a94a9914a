"""What every command shares: connection options, the job argument, how errors reach people."""

from __future__ import annotations

import functools
import json
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click
from antdt_schemas.address import LOOPBACK
from antdt_schemas.errors import AntdtError, ExitCode
from antdt_schemas.exporting import ENV_HOST, ENV_PORT, Where
from antdt_schemas.framing import REGISTRY, SINGLE_OBJECT
from antdt_schemas.topics import check_job

from antdt_streams.cli import extras
from antdt_streams.local.place import place_of

FRAMINGS = (SINGLE_OBJECT, REGISTRY)


def connection_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --bootstrap-servers, --kafka-config, --data-dir and --framing as they are given."""
    options = (
        click.option("--bootstrap-servers", help="Kafka, HOST:PORT[,HOST:PORT]. Default: the broker of `antdt up`."),
        click.option(
            "--kafka-config",
            type=click.Path(path_type=Path),
            help="Java-style client.properties, or a folder with one file for each key (SASL, TLS, ...).",
        ),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Folder of broker and state. Default ./antdt-data."
        ),
        click.option(
            "--framing",
            type=click.Choice(FRAMINGS),
            help="How records are written: registry is for consoles that read Confluent's framing only, and needs "
            "schema.registry.url (in the file, or ANTDT_KAFKA_SCHEMA_REGISTRY_URL). Default: wire.framing there.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the same; the command gets a Place as `place`."""

    @connection_flags
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        bootstrap_servers: str | None,
        kafka_config: Path | None,
        data_dir: Path | None,
        framing: str | None,
        **rest: Any,
    ) -> Any:
        place = place_of(bootstrap_servers, kafka_config, data_dir, framing or "")
        connection = place.connection.named(rest.get("job") or "", "cli")
        return command(*args, place=replace(place, connection=connection), **rest)

    return wrapped


def metrics_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --metrics-port and --metrics-host; the command gets a Where as `metrics`."""

    @click.option(
        "--metrics-port",
        type=int,
        envvar=ENV_PORT,
        help="Serve metrics for Prometheus here; 0: on a port that is free. Default: not at all.",
    )
    @click.option(
        "--metrics-host",
        envvar=ENV_HOST,
        default=LOOPBACK,
        show_default=True,
        help="The address for that; 0.0.0.0: all of this machine.",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, metrics_port: int | None, metrics_host: str, **rest: Any) -> Any:
        where = Where(metrics_port, metrics_host)
        where.check()
        return command(*args, metrics=where, **rest)

    return wrapped


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
replication_option = click.option(
    "--replication",
    type=int,
    help="Copies of each partition.  [default: 3 where there are three brokers, else what they make]",
)


def job_argument(command: Callable[..., Any]) -> Callable[..., Any]:

    def checked(_: click.Context, __: click.Parameter, value: str) -> str:
        return check_job(value)

    return click.argument("job", callback=checked)(command)


def emit_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def note(message: str) -> None:
    """A line for people, on stderr."""
    with suppress(OSError):  # the terminal is gone, or the disk is full that it goes to: that ends nothing
        click.echo(message, err=True)


class Group(click.Group):
    """A group whose commands turn the error tree into one sentence and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a fault of the world or of the user is told in one sentence."""
        try:
            return super().invoke(ctx)
        except AntdtError as error:
            self._end(ctx, error)
        except ModuleNotFoundError as error:  # met on the way only, also by a command of a group
            wrong = extras.missing_from(ctx.invoked_subcommand or "", error)
            if wrong is None:
                raise
            self._end(ctx, wrong)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.DRAINED)

    def _end(self, ctx: click.Context, error: AntdtError) -> NoReturn:
        note(f"antdt: {error}")
        ctx.exit(int(error.exit_code))


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
