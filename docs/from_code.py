"""What the documentation takes from the code while it is built: the command line, and the schema of a record.

A page names where. `{commands} GROUP`, as `antdt -h` has its groups, becomes a section for each command: what it does,
how it is called, and every option with its default. `{records} NAME` becomes the fields of a schema, with what it says
of them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import click
from antdt.launch.command import main as launch
from antdt_schemas import codec
from antdt_streams.cli.main import GROUPS, main
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def commands_of(heading: str) -> dict[str, click.Command]:
    """Of one group, with those below them: `topics list` stands behind `topics`."""
    context = click.Context(main, info_name="antdt", **main.context_settings)
    out: dict[str, click.Command] = {}
    for name in GROUPS[heading]:
        command = launch if name == "launch" else main.get_command(context, name)
        assert command is not None, name
        out[name] = command
        if isinstance(command, click.Group):
            out |= {f"{name} {below}": one for below, one in command.commands.items()}
    return out


def reference(heading: str) -> str:
    """The page's part for a group, as Markdown."""
    return "\n".join(line for name, command in commands_of(heading).items() for line in _command(name, command))


def _command(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"antdt {name}")
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"## antdt {name}\n\n```text\nantdt {name} {pieces}".rstrip() + "\n```\n"
    yield from _prose(inspect.cleandoc(command.help or ""))
    options = [p for p in command.get_params(context) if isinstance(p, click.Option) and "--help" not in p.opts]
    for option in options:
        record = option.get_help_record(context)
        assert record is not None, option
        flags, told = record
        yield f"`{flags}`\n: {_inline(told)}\n"


def _prose(text: str) -> Iterator[str]:
    r"""Paragraphs; one that begins with \b is kept as it is laid out."""
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("\b"):
            yield "```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```\n"
        else:
            yield _inline(paragraph) + "\n"


def _inline(text: str) -> str:
    """One line of plain text, in which Markdown finds nothing but `code`."""
    words = re.sub(r"(?<![\w`-])(--[a-z][-a-z]+)", r"`\1`", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_<>\[\]])", r"\\\1", part)
        for part in re.split(r"(`[^`]*`)", words)
    )


def schema(name: str) -> str:
    """A schema's records and their fields, as Markdown."""
    return "\n".join(_records(json.loads(codec.schema_text(name))))


def _records(kind: Any) -> Iterator[str]:
    """A record, and whatever records are in it, each where it first occurs."""
    if isinstance(kind, list):
        for one in kind:
            yield from _records(one)
    elif isinstance(kind, dict) and kind["type"] == "record":
        yield f"**{kind['name']}**\n: {_inline(kind.get('doc', ''))}\n"
        for field in kind["fields"]:
            told = _inline(field.get("doc", ""))
            yield f"  - `{field['name']}` ({_type(field['type'])}){': ' if told else ''}{told}"
        yield ""
        for field in kind["fields"]:
            yield from _records(field["type"])
    elif isinstance(kind, dict) and kind["type"] == "array":
        yield from _records(kind["items"])


def _type(kind: Any) -> str:
    if isinstance(kind, list):
        named = [_type(one) for one in kind]
        return "one of those below" if len(named) > 3 else " or ".join(named)
    if isinstance(kind, dict):
        return f"list of {_type(kind['items'])}" if kind["type"] == "array" else str(kind.get("name", kind["type"]))
    return str(kind)


class FromCode(SphinxDirective):
    """A directive with one argument, of which `told` makes Markdown."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}
    told: ClassVar[Callable[[str], str]]

    def run(self) -> list[nodes.Node]:
        text = type(self).told(self.arguments[0])
        self.content = StringList(text.splitlines(), source=__file__)
        return self.parse_content_to_nodes(allow_section_headings=True)


class Commands(FromCode):
    """`{commands}`."""

    told = staticmethod(reference)


class Records(FromCode):
    """`{records}`."""

    told = staticmethod(schema)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx asks for this."""
    app.add_directive("commands", Commands)
    app.add_directive("records", Records)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
