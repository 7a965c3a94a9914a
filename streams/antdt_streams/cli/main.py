"""The command `antdt`."""

from __future__ import annotations

from importlib import import_module

import click

from antdt_streams.cli import extras
from antdt_streams.cli.common import Group

CLI = "antdt_streams.cli."
# Heading -> command -> where it lives, and its line. A module is imported when its command is called: proving an
# exported log needs no Kafka client, and no command waits for what only another one imports.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Try": {
        "demo": ("demo", "See it work: a job run twice, static and mitigated."),
        "chaos": ("chaos", "Break a real run on purpose, and prove that it held."),
    },
    "Run": {
        "up": ("services", "Start the services of a job, and Kafka if need be."),
        "launch": ("launch", "Start the workers of a job on this machine."),
    },
    "Look": {
        "jobs": ("jobs", "List the jobs of a broker."),
        "status": ("job", "Show a job: progress, members, plan, decisions."),
        "top": ("top", "Watch a job, its slowest workers first."),
        "web": ("web", "Show a job, or all of them, in a browser."),
        "why": ("job", "Say why a worker is slow, and what was done."),
        "bridge": ("bridge", "Copy its figures to MLflow, W&B or TensorBoard."),
        "stack": ("stack", "Print where a worker that hangs is, by its stacks."),
        "doctor": ("doctor", "Say what would keep a job from running, and how to mend it."),
        "topics": ("topics", "Look at what a job wrote to Kafka, or create its topics."),
    },
    "Prove": {
        "audit": ("job", "Prove from the log what a job trained on."),
        "replay": ("replay", "Rebuild the state of a job from its log."),
        "export": ("replay", "Write the log to a file, with its checker."),
    },
    "Operate": {
        "policy": ("policy", "Look at the Controller's policy, steer it."),
        "rollback": ("operator", "Go back to a checkpoint."),
        "readmit": ("operator", "Try samples in quarantine again."),
        "restart": ("operator", "Have a worker or server started again."),
        "resize": ("operator", "Change the global batch."),
        "archive": ("jobs", "Write all topics of a job to a zip archive."),
        "delete": ("jobs", "Delete a job: topics, groups, state."),
        "avoid-nodes": ("nodes", "Name the nodes that were too slow, for a scheduler."),
        "end": ("operator", "End a topic that grows: the job finishes with what is known."),
        "recover": ("operator", "Accept a loss of the broker, on record."),
    },
    "Services": {
        "ledger": ("ledger", "Run one ledger of a job, as `antdt up` does."),
        "monitor": ("processors", "Run the Monitor of a job: it measures every worker."),
        "controller": ("processors", "Run the Controller of a job: it decides and commands."),
    },
}
COMMANDS = {name: CLI + where for group in GROUPS.values() for name, (where, _) in group.items()}


class Commands(Group):
    """The commands of the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            command = getattr(import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        except ModuleNotFoundError as error:
            wrong = extras.missing_from(cmd_name, error)
            if wrong is None:
                raise
            return extras.stand_in(cmd_name, wrong)
        assert isinstance(command, click.Command)
        return extras.guarded(cmd_name, command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Grouped by what they are for; no command's module is imported for that."""
        width = max(map(len, COMMANDS))
        for heading, group in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in group.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="antdt", prog_name="antdt")  # looked up when somebody asks
def main() -> None:
    """Straggler-proof, auditable distributed training on Kafka.

    Try `antdt demo` first. For a job of your own:

    \b
    antdt up JOB                           its services; stays in this terminal
    antdt launch --job JOB -n 4 train.py   its workers, in another one
    antdt status JOB                       how far it is
    antdt audit JOB                        proof of what it trained on
    """
