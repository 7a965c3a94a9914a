"""The pages of docs/, typed in as a reader would: every command of a page in its order, on the broker that all tests
share, in a folder of its own, with a job of its own name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from antdt_schemas.connection import ENV_BOOTSTRAP, Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.host.child import spawn

from tests.helpers.in_progress import committed
from tests.helpers.pages import DOCS, Block, blocks

pytestmark = [pytest.mark.kafka, pytest.mark.dear, pytest.mark.timeout(600)]
WITHIN_S, LOOK_S = 110, 0.5
BASH = shutil.which("bash") or ""
PAGES = [page for page in sorted(DOCS.glob("*.md")) if any(b.language == "sh" for b in blocks(page.read_text()))]


class Reader:
    """Somebody with terminals."""

    def __init__(self, folder: Path, job: str, environ: dict[str, str]) -> None:
        self.folder, self.job, self.environ = folder, job, environ
        self.terminals: list[tuple[subprocess.Popen[bytes], Path]] = []

    def reads(self, block: Block) -> None:
        if block.language == "python" and block.word:
            (self.folder / block.word).write_text(block.text)
        elif block.language == "sh" and block.word == "terminal":
            for line in block.lines:
                self._leave_running(line)
        elif block.language == "sh" and not block.word:
            for line in block.lines:
                self._type(line)

    def _type(self, line: str) -> None:
        command = [BASH, "-euc", line.replace("my-job", self.job)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def _leave_running(self, line: str) -> None:
        said = self.folder / f"terminal-{len(self.terminals)}"
        with said.open("wb") as output:
            command = [BASH, "-euc", f"exec {line.replace('my-job', self.job)}"]
            process = spawn(command, cwd=self.folder, env=self.environ, stdout=output, stderr=output)
        self.terminals.append((process, said))
        until = time.monotonic() + WITHIN_S
        while not (self._trains() if "antdt launch" in line else "is up" in said.read_text()):
            assert process.poll() is None and time.monotonic() < until, f"{line}\n{said.read_text()}"
            time.sleep(LOOK_S)

    def _trains(self) -> bool:
        return committed(Connection(self.environ[ENV_BOOTSTRAP]), self.job) > 0

    def ends(self) -> None:
        """Ctrl-C in each terminal, the workers' first."""
        for process, said in reversed(self.terminals):
            process.terminate()
            assert process.wait(60) in (ExitCode.DONE, ExitCode.DRAINED), said.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_typed_in(page: Path, connection: Connection, job: str, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ANTDT_")}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    # The broker that the first command would start for itself.
    named = {ENV_BOOTSTRAP: connection.bootstrap, "ANTDT_DATA": str(tmp_path / "antdt-data")}
    alone = environ.copy()
    reader = Reader(tmp_path, job, alone)
    try:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.word == "terminal":
                reader.environ = alone | named
            reader.reads(block)
        reader.ends()
    finally:
        for process, _ in reader.terminals:
            process.kill()
