"""The command `antdt`: its commands in groups, and what each says of an extra that is not installed."""

from __future__ import annotations

import sys

import click
import pytest
from antdt_streams.cli import extras
from antdt_streams.cli.common import Group
from antdt_streams.cli.main import COMMANDS, GROUPS, main
from click.testing import CliRunner


def test_commands_are_listed_in_groups_each_in_one_whole_line_and_none_is_imported() -> None:
    before = set(sys.modules)
    said = CliRunner().invoke(main, ["-h"], terminal_width=80).output
    assert not {COMMANDS[name] for name in COMMANDS} & (set(sys.modules) - before)
    listed = said.partition("Try:\n")[2].splitlines()
    assert list(GROUPS) == ["Try", "Run", "Look", "Prove", "Operate", "Services"]
    assert [line.removesuffix(":") for line in ["Try:", *listed] if line.endswith(":")] == list(GROUPS)
    assert [line.split()[0] for line in listed if line.startswith("  ")] == list(COMMANDS)
    assert all(line.endswith(".") and "..." not in line for line in listed if line.startswith("  "))
    width = max(map(len, COMMANDS)) + 2
    for group in GROUPS.values():
        for name, (_, told) in group.items():
            assert f"  {name:<{width}}{told}" in said


def test_every_command_is_there_and_knows_its_help() -> None:
    for name in COMMANDS:
        if name != "launch":  # which becomes another process
            done = CliRunner().invoke(main, [name, "-h"])
            assert done.exit_code == 0 and done.output.startswith("Usage: "), (name, done.output)
    done = CliRunner().invoke(main, ["topics", "-h"], terminal_width=80)
    assert "..." not in done.output.partition("Commands:")[2]
    assert CliRunner().invoke(main, ["nothing"]).exit_code == 2


@pytest.mark.parametrize("name", sorted(extras.NEEDS))
def test_a_command_that_lacks_an_extra_says_its_pip_line_before_it_begins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = extras.NEEDS[name]
    main.get_command(click.Context(main), name)  # which may import what is then not there
    for module in needs:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module in needs else object())
    arguments = {
        "demo": [], "chaos": [], "launch": ["--job", "x", "t.py"], "recover": ["x", "--accept-loss", "--reason", "r"]
    }.get(name, ["x"])  # fmt: skip
    done = CliRunner().invoke(main, [name, *arguments])
    assert done.exit_code == 2, done.output
    assert done.output.startswith(f"antdt: `antdt {name}` needs ") and "`pip install " in done.output
    assert len(done.output.splitlines()) == 1


def test_an_extra_that_is_met_only_on_the_way_is_said_also_by_a_command_of_a_group() -> None:
    @click.group(cls=Group)
    def top() -> None: ...

    @top.group()
    def look() -> None: ...

    @look.command()
    @click.argument("module")
    def into(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.deep")

    done = CliRunner().invoke(top, ["look", "into", "rocksdict"])
    assert (done.exit_code, done.output) == (
        2, "antdt: `antdt look` needs rocksdict, which is not installed here: `pip install 'antdt[streams]'`.\n"
    )  # fmt: skip
    done = CliRunner().invoke(top, ["look", "into", "ours"])
    assert isinstance(done.exception, ModuleNotFoundError), "a bug is not an extra"
