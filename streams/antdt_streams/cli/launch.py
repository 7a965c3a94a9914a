"""antdt launch."""

from __future__ import annotations

import os
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(arguments: tuple[str, ...]) -> None:
    """Start the workers of a job on this machine."""
    # The launcher belongs to the trainer's side, which this side never imports: it becomes this process.
    os.execv(sys.executable, [sys.executable, "-m", "antdt.launch", *arguments])
