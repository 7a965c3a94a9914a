"""Pages of documentation as tests read them: their blocks, and the command lines that they tell people to type.

The words behind a block's language say what becomes of it: `sh` is run line by line, `sh terminal` is left running
beside what follows, `sh elsewhere` needs what a test does not have, so that its commands are only understood; `python
NAME.py` is a file, `python` is run; `text` is what somebody sees.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import antdt.launch.command
import click
from antdt_streams.cli.main import main

HERE = Path(__file__).parents[2]
DOCS = HERE / "docs"
KINDS = {"sh": ("", "terminal", "elsewhere"), "python": None, "text": ("",)}
DIRECTIVE = re.compile(r"\{[a-z]+\}")


@dataclass(frozen=True, slots=True)
class Block:
    """Between two fences. word: what stands behind the language."""

    language: str
    word: str
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: str) -> list[Block]:
    """All that are code; directives of the documentation are none."""
    found = re.findall(r"^```([^\s`]+)[ ]*([^\n]*)\n(.*?)^```$", page, re.M | re.S)
    return [Block(*one) for one in found if not DIRECTIVE.fullmatch(one[0])]


def told(page: str) -> Iterator[list[str]]:
    """Arguments of each `antdt` that a page tells people to type: in an indented block, or in one of `sh`."""
    indented = re.findall(r"^ {4}(\S.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.M)
    for line in [*indented, *(line for one in blocks(page) if one.language == "sh" for line in one.lines)]:
        for before, found in re.findall(r"(^|\$\(|\d )antdt (.*)", line):
            words = shlex.split(found.partition(")")[0] if before == "$(" else found.split("   ")[0], comments=True)
            yield [*takewhile(lambda word: word not in ("|", ">"), words)]


def mentioned(page: str) -> Iterator[list[str]]:
    """The same of each that a sentence speaks of, which need not be whole."""
    for found in re.findall(r"(?<!`)`antdt ([^`]+)`", page):
        yield shlex.split(" ".join(found.split()))


def command_of(arguments: list[str]) -> tuple[click.Command, list[str], click.Context]:
    """The command that is meant, and the arguments behind its name."""
    command: click.Command | None = main
    rest = [re.sub(r"\$\{JOB:.*\}|\$ANTDT_JOB|^JOB$", "my-job", word) for word in arguments]
    # In a context of the whole command line: a command keeps for ever which help options its first context has.
    context = click.Context(main, info_name="antdt", **main.context_settings)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        command = antdt.launch.command.main if name == "launch" else command.get_command(context, name)
    assert command is not None, f"there is no command {' '.join(arguments)}"
    return command, rest, context


def understand(arguments: list[str]) -> None:
    """Names, options and arguments; nothing is run.

    Raises:
        click.UsageError: they are not.
    """
    command, rest, context = command_of(arguments)
    assert not isinstance(command, click.Group), arguments
    command.make_context(command.name, rest, parent=context)


def recognise(arguments: list[str]) -> None:
    """The command is there, and has these options."""
    command, rest, context = command_of(arguments)
    known = {option for param in command.get_params(context) for option in param.opts}
    ours = takewhile(lambda word: word != "--", rest)  # what is behind is the script's
    assert {word for word in ours if word.startswith("--")} <= known, arguments
