"""What deploy/ grants is what it lists, and what it runs is there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import antdt.launch.launcher
import click
import pytest
from antdt_schemas.connection import ENV_PREFIX
from antdt_streams.broker.jars import KAFKA_VERSION
from antdt_streams.cli.main import main
from antdt_streams.kafka.grants import acls_of

HERE = Path(__file__).parents[2]
DEPLOY = HERE / "deploy"
COMPOSE = (DEPLOY / "docker-compose.yml").read_text()
TOLD = re.findall(r"^ {4}antdt (.*)$|`antdt ([^`]+ [^`]+)`", (DEPLOY / "README.md").read_text(), re.M)
RUN = [json.loads(found) for found in re.findall(r"^ +command: (\[.*\])$", COMPOSE, re.M)]


@pytest.mark.parametrize("arguments", [*RUN, *(shlex.split(a or b) for a, b in TOLD)], ids=" ".join)
def test_every_command_is_understood(arguments: list[str]) -> None:
    """Names, options and arguments; nothing is run."""
    command: click.Command | None = main
    rest = [re.sub(r"\$\{JOB:.*\}", "my-job", word) for word in arguments]
    # In a context of the whole command line: a command keeps for ever which help options its first context has.
    context = click.Context(main, info_name="antdt", **main.context_settings)
    while isinstance(command, click.Group):
        name = rest.pop(0)
        command = antdt.launch.launcher.main if name == "launch" else command.get_command(context, name)
    assert command is not None, arguments
    command.make_context(name, rest, parent=context)


def test_whatever_is_named_exists() -> None:
    assert len(RUN) == 5
    assert f"apache/kafka:{KAFKA_VERSION}\n" in COMPOSE, "the version that these tests run with"
    sources = "".join(p.read_text() for part in ("schemas", "streams", "trainer") for p in (HERE / part).rglob("*.py"))
    names = {
        name
        for file in DEPLOY.rglob("*")
        if file.is_file()
        for name in re.findall(r"\bANTDT_[A-Z_]+", file.read_text())
    }
    assert not {n for n in names if f'"{n}"' not in sources and not n.startswith(ENV_PREFIX)}
    image = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", image, re.M):
        assert all((HERE / source).exists() for source in line.split()), line
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"\.\[([\w,]+)\]", image)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", image, re.M)[0])[0] in project["scripts"]


def test_every_line_of_the_list_becomes_a_grant() -> None:
    lines = [line.split() for line in (DEPLOY / "acls.txt").read_text().splitlines() if line and line[0] != "#"]
    granted = acls_of("my-job")
    assert len(granted) == len(lines)
    for acls, (principal, kind, name, operations) in zip(granted.values(), lines, strict=True):
        assert [acl.operation.name for acl in acls] == [o.replace("eC", "E_C").upper() for o in operations.split(",")]
        for acl in acls:
            assert (acl.principal, acl.restype.name.lower(), acl.host) == (f"User:{principal}", kind, "*")
            assert acl.name == name.replace("JOB", "my-job").rstrip("*")
            assert acl.resource_pattern_type.name == ("PREFIXED" if name[-1] == "*" else "LITERAL")
