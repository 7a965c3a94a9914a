"""The command `antdt`."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import click

from antdt_streams.cli.common import Group
from antdt_streams.cli.demo import demo
from antdt_streams.cli.job import audit, status
from antdt_streams.cli.services import controller, ledger, monitor, up
from antdt_streams.cli.topics import topics


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("antdt"), prog_name="antdt")
def main() -> None:
    """Straggler-proof, auditable distributed training on Kafka.

    Try `antdt demo` first. For a job of your own: `antdt up JOB` starts its services, `antdt launch --job JOB -n 4
    train.py` its workers, `antdt status JOB` shows it, `antdt audit JOB` proves what it trained on.
    """


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(arguments: tuple[str, ...]) -> None:
    """Start the workers of a job on this machine (see `antdt launch --help`)."""
    # The launcher belongs to the trainer's side, which this side never imports: it becomes this process.
    os.execv(sys.executable, [sys.executable, "-m", "antdt.launch", *arguments])


for command in (demo, up, launch, status, audit, topics, ledger, monitor, controller):
    main.add_command(command)
