"""The command `antdt`."""

from __future__ import annotations

import os
import sys
from importlib import import_module, metadata

import click

from antdt_streams.cli import extras
from antdt_streams.cli.common import Group

# Where each command lives. A module is imported when its command is called: proving an exported log needs no Kafka
# client, and no command waits for what only another one imports.
COMMANDS = {
    "demo": "antdt_streams.cli.demo",
    "chaos": "antdt_streams.cli.chaos",
    "up": "antdt_streams.cli.services",
    "status": "antdt_streams.cli.job",
    "audit": "antdt_streams.cli.job",
    "replay": "antdt_streams.cli.replay",
    "export": "antdt_streams.cli.replay",
    "topics": "antdt_streams.cli.topics",
    "rollback": "antdt_streams.cli.operator",
    "readmit": "antdt_streams.cli.operator",
    "recover": "antdt_streams.cli.operator",
    "ledger": "antdt_streams.cli.services",
    "monitor": "antdt_streams.cli.processors",
    "controller": "antdt_streams.cli.processors",
}


class Commands(Group):
    """The commands of the table above, besides those that are added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, its module imported now."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        try:
            command = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        except ModuleNotFoundError as error:
            wrong = extras.missing_from(cmd_name, error)
            if wrong is None:
                raise
            return extras.stand_in(cmd_name, wrong)
        assert isinstance(command, click.Command)
        return extras.guarded(cmd_name, command)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("antdt"), prog_name="antdt")
def main() -> None:
    """Straggler-proof, auditable distributed training on Kafka.

    Try `antdt demo` first. For a job of your own:

    \b
    antdt up JOB                           its services; stays in this terminal
    antdt launch --job JOB -n 4 train.py   its workers, in another one
    antdt status JOB                       how far it is
    antdt audit JOB                        proof of what it trained on
    """


@main.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(arguments: tuple[str, ...]) -> None:
    """Start the workers of a job on this machine."""
    if not {"-h", "--help"} & set(arguments):
        extras.require("launch")
    # The launcher belongs to the trainer's side, which this side never imports: it becomes this process.
    os.execv(sys.executable, [sys.executable, "-m", "antdt.launch", *arguments])
