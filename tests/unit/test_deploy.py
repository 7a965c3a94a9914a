"""What deploy/ grants is what it lists, and what it runs is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import antdt.launch
import click
import pytest
from antdt_schemas.connection import ENV_PREFIX
from antdt_streams.broker.jars import KAFKA_VERSION
from antdt_streams.cli.main import main

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
    while isinstance(command, click.Group):
        name = rest.pop(0)
        command = antdt.launch.main if name == "launch" else command.get_command(click.Context(command), name)
    assert command is not None, arguments
    command.make_context(name, rest)


def test_whatever_is_named_exists() -> None:
    assert len(RUN) == 5
    assert f"apache/kafka:{KAFKA_VERSION}\n" in COMPOSE, "the version that these tests run with"
    sources = "".join(p.read_text() for part in ("schemas", "streams", "trainer") for p in (HERE / part).rglob("*.py"))
    names = {name for file in DEPLOY.iterdir() for name in re.findall(r"\bANTDT_[A-Z_]+", file.read_text())}
    assert not {n for n in names if f'"{n}"' not in sources and not n.startswith(ENV_PREFIX)}
    image = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", image, re.M):
        assert all((HERE / source).exists() for source in line.split()), line
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"\.\[(\w+)\]", image)) <= project["optional-dependencies"].keys()
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", image, re.M)[0])[0] in project["scripts"]


def test_every_line_of_the_list_becomes_a_grant(tmp_path: Path) -> None:
    tool = tmp_path / "kafka-acls.sh"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [DEPLOY / "grant.sh", "my-job", "--bootstrap-server", "b:1"]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [line.split() for line in (DEPLOY / "acls.txt").read_text().splitlines() if line and line[0] != "#"]
    assert len(said) == len(lines)
    for line, (principal, kind, name, operations) in zip(said, lines, strict=True):
        where = f"--{kind} {name.replace('JOB', 'my-job')}".replace("*", " --resource-pattern-type prefixed")
        what = " ".join(f"--operation {operation}" for operation in operations.split(","))
        assert line == f"--bootstrap-server b:1 --add --allow-principal User:{principal} {where} {what}"
