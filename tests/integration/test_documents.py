"""What README, ARCHITECTURE and examples tell people to run, run as they would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest
from antdt_schemas.connection import Connection
from antdt_streams.host.child import spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import environment_of, start_services
from antdt_streams.views.job import audit_of

from tests.helpers.pages import understand
from tests.helpers.warm import python, started

HERE = Path(__file__).parents[2]
LAUNCH = "from antdt.launch.command import main; main(prog_name='antdt launch')"
WITHIN_S = 90
# What a reader has before the loop of the README begins.
BEFORE_THE_LOOP = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset

torch.manual_seed(0)
model, loss_function = nn.Linear(4, 1), nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = TensorDataset(torch.rand(1024, 4), torch.rand(1024, 1))
"""
OWNED = """
scheduler, scaler = torch.optim.lr_scheduler.StepLR(optimizer, 1000), torch.amp.GradScaler("cpu")
average = torch.optim.swa_utils.AveragedModel(model)
"""


def fenced(file: str, language: str) -> list[str]:
    """Code blocks between fences."""
    return re.findall(rf"^```{language}\n(.*?)^```", (HERE / file).read_text(encoding="utf-8"), re.M | re.S)


def commands(file: str) -> list[list[str]]:
    """The command lines of each indented block, without their remarks."""
    blocks: list[list[str]] = [[]]
    for line in (HERE / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            blocks[-1].append(line.split("#", maxsplit=1)[0].strip())
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block and all(re.match(r"(make|antdt) ", line) for line in block)]


def antdt(line: str) -> list[str]:
    """This interpreter's antdt."""
    return [sys.executable, "-m", "antdt_streams", *line.split()[1:]]


def test_every_block_is_known_here() -> None:
    """A block that is added must be run by a test of this module (or of `test_hosts`), or be a picture."""
    assert [len(fenced(f, "python")) for f in ("README.md", "ARCHITECTURE.md")] == [2, 0]
    assert [len(commands(f)) for f in ("README.md", "ARCHITECTURE.md")] == [6, 0]
    languages = {
        x for f in ("README.md", "ARCHITECTURE.md") for x in re.findall(r"^```(\w+)", (HERE / f).read_text(), re.M)
    }
    assert languages <= {"python", "text"}


def test_make_knows_what_the_readme_asks_of_it() -> None:
    lines = [line for block in commands("README.md") if block[0].startswith("make") for line in block]
    means = {"make demo": "antdt demo", "make test": "-m pytest", "make chaos SEEDS=20": "antdt chaos --seeds 20"}
    assert lines == list(means)
    for line in lines:
        plan = subprocess.run([*line.split(), "-n"], cwd=HERE, capture_output=True, text=True, check=True).stdout
        assert means[line] in plan


@pytest.mark.parametrize("first", ["antdt rollback", "antdt web"])
def test_what_an_operator_is_told_to_type_is_understood(first: str) -> None:
    """Commands that act upon a running job have tests of their own; here, that they are called like that."""
    (block,) = [b for b in commands("README.md") if b[0].startswith(first)]
    for line in block:
        understand(shlex.split(line)[1:])


@contextmanager
def up(line: str, folder: Path, environ: dict[str, str]) -> Iterator[None]:
    """`antdt up` in a terminal of its own, until Ctrl-C."""
    process: Any = spawn(antdt(line), cwd=folder, env=environ, stderr=subprocess.PIPE, text=True)
    said: Queue[str] = Queue()

    def read() -> None:
        assert process.stderr is not None
        for text in process.stderr:
            said.put(text)

    Thread(target=read, daemon=True).start()
    try:
        assert "is up" in said.get(timeout=WITHIN_S)
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.kafka
def test_the_commands_of_the_readme_with_its_loop(tmp_path: Path) -> None:
    """As a newcomer has them: no broker is named, and each command finds the one that the first has started."""
    (block,) = [b for b in commands("README.md") if b[0].startswith("antdt up")]
    said: dict[str, str] = {}
    loop, owning = fenced("README.md", "python")
    imports, plain, body = re.split(r"^(agent = .*\n)", loop, maxsplit=1, flags=re.M)
    assert "antdt.Agent(" in plain
    (tmp_path / "train.py").write_text(imports + BEFORE_THE_LOOP + OWNED + owning + body)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ANTDT_KAFKA_", "ANTDT_DATA"))}
    with up(block[0], tmp_path, environ):
        for line in block[1:]:
            done = subprocess.run(
                antdt(line), cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=WITHIN_S, check=False
            )
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            said[line.split()[1]] = done.stdout
    assert "EXACTLY ONCE" in said["audit"]


@pytest.mark.kafka
def test_the_example_trains(connection: Connection, job: str, tmp_path: Path) -> None:
    place = Place(connection, True, tmp_path, None)
    topics_admin.create(connection, job)
    supervisor = start_services(job, place, connection, ("ledger",), start=started)
    try:
        command = "--job", job, "-n", "2", str(HERE / "examples" / "train.py")
        done = python(LAUNCH, *command, folder=tmp_path, environ=os.environ | environment_of(connection, place))
    finally:
        supervisor.stop()
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"accuracy (\S+) after", done.stdout)
    assert found is not None
    assert float(found[1]) > 0.85
    assert audit_of(connection, job)["exactly_once"]
