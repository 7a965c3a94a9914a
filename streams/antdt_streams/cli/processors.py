"""antdt monitor, antdt controller: one instance each of a stream processor, in a group with its like."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from antdt_schemas.errors import UsageError
from antdt_schemas.exporting import Where
from antdt_schemas.topics import WORKER_NAME

from antdt_streams.cli.common import connection_options, job_argument, metrics_options
from antdt_streams.local.place import MAIN_INSTANCE, Place
from antdt_streams.runtime.service import Service


@dataclass(frozen=True, slots=True)
class Instance:
    name: str | None
    session_timeout_ms: int | None
    accept_loss: bool

    def folder(self, place: Place, job: str, service: str) -> Path:
        # What `antdt up` starts has the folder of the service itself, any other name one beside it.
        own = "" if self.name in (None, MAIN_INSTANCE) else f"-{self.name}"
        return place.service_folder(job, service + own)


def instance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --instance, --session-timeout-ms and --accept-loss; the command gets an Instance as `instance`."""

    @click.option(
        "--instance",
        help="Lasting name of this process. Started again under it, it goes on at once with what it had. Several "
        "instances of a job may run: one works, the others stand by.",
    )
    @click.option(
        "--session-timeout-ms",
        type=click.IntRange(min=1000),
        help="Silence after which another instance takes over. Default: 30000 with a name, 6000 without.",
    )
    @click.option(
        "--accept-loss",
        is_flag=True,
        help="Go on behind records that retention has removed unread; that is written into dead-letters.",
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any, instance: str | None, session_timeout_ms: int | None, accept_loss: bool, **rest: Any
    ) -> Any:
        if instance is not None and not WORKER_NAME.fullmatch(instance):
            raise UsageError(f"Instance {instance!r} is not usable: 1 to 63 of letters, digits, '-', '.' and '_'.")
        return command(*args, instance=Instance(instance, session_timeout_ms, accept_loss), **rest)

    return wrapped


@click.command()
@job_argument
@instance_options
@metrics_options
@connection_options
def monitor(job: str, instance: Instance, metrics: Where, place: Place) -> None:
    """Run the Monitor of a job: it measures every worker."""
    from antdt_streams.monitor.service import service

    _run(job, place, instance, metrics, service())


@click.command()
@job_argument
@click.option("--policy", default=None, help="A name, or FILE.py:CLASS. Default: nd.")
@instance_options
@metrics_options
@connection_options
def controller(job: str, policy: str | None, instance: Instance, metrics: Where, place: Place) -> None:
    """Run the Controller of a job: it decides and commands."""
    from antdt_streams.controller.service import service

    _run(job, place, instance, metrics, service(policy))


def _run(job: str, place: Place, instance: Instance, metrics: Where, service: Service) -> None:
    from antdt_streams.runtime.partitions import Policy
    from antdt_streams.runtime.run import RunOptions, run_service

    policy = Policy(accept_loss=instance.accept_loss)
    options = RunOptions(instance.name, instance.session_timeout_ms, policy, metrics=metrics)
    sys.exit(run_service(place.connection, job, service, instance.folder(place, job, service.name), options))
