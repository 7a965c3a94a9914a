"""What deploy/ grants is what it lists, and what it runs is there."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from antdt_schemas.connection import ENV_PREFIX
from antdt_streams.broker.jars import KAFKA_VERSION
from antdt_streams.kafka.grants import acls_of

from tests.helpers.pages import mentioned, recognise, told, understand

HERE = Path(__file__).parents[2]
DEPLOY = HERE / "deploy"
COMPOSE = (DEPLOY / "docker-compose.yml").read_text()
TOLD = list(told((DEPLOY / "README.md").read_text()))
# Of a script in deploy/ itself, or of a manifest.
OWN = {"ANTDT_WORKERS", "ANTDT_AGAIN", "ANTDT_AGAIN_MAX", "ANTDT_SBATCH", "ANTDT_INDEX"}
RUN = [json.loads(found) for found in re.findall(r"^ +command: (\[.*\])$", COMPOSE, re.M)]


@pytest.mark.parametrize("arguments", [*RUN, *TOLD], ids=" ".join)
def test_every_command_is_understood(arguments: list[str]) -> None:
    """Names, options and arguments; nothing is run."""
    understand(arguments)


def test_every_command_that_is_spoken_of_is_there() -> None:
    for arguments in mentioned((DEPLOY / "README.md").read_text()):
        recognise(arguments)


def test_whatever_is_named_exists() -> None:
    assert len(RUN) == 5
    assert f"apache/kafka:{KAFKA_VERSION}\n" in COMPOSE, "the version that these tests run with"
    sources = "".join(p.read_text() for part in ("schemas", "streams", "trainer") for p in (HERE / part).rglob("*.py"))
    files = [file for file in DEPLOY.rglob("*") if file.is_file()]
    names = {name for file in files for name in re.findall(r"\bANTDT_[A-Z_]+", file.read_text())}
    assert not {n for n in names if f'"{n}"' not in sources and not n.startswith(ENV_PREFIX)} - OWN


@pytest.mark.parametrize("name", ["Dockerfile", "worker.Dockerfile"])
def test_an_image_has_what_the_wheel_is_built_of(name: str) -> None:
    image = (DEPLOY / name).read_text()
    copied = {source for line in re.findall(r"^COPY (.*) \S+$", image, re.M) for source in line.split()}
    assert all((HERE / source).exists() for source in copied)
    built = tomllib.loads((HERE / "pyproject.toml").read_text())
    wheel, project = built["tool"]["hatch"]["build"]["targets"]["wheel"], built["project"]
    needs = [*wheel["packages"], *wheel["force-include"], project["readme"], *project["license-files"]]
    assert {need.split("/")[0] for need in needs} <= copied
    assert set(re.findall(r"\.\[([\w,]+)\]", image)[0].split(",")) <= project["optional-dependencies"].keys()
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", image, re.M)[0])[0] in project["scripts"]
    assert re.findall(r"^USER (.*)$", image, re.M) == ["1000"], "as the pods of kubernetes/ say it"


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
