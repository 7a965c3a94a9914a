"""A disk that is full for one process and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from antdt_streams.chaos.full import FullDisk

WRITES = """
import os, sys
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            with open(line.strip(), "w") as file:
                file.write("x")
            print("written", flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_who_is_struck_and_its_children_cannot_write_until_there_is_room_again(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WRITES], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def said() -> str:
            print(tmp_path / "file", file=process.stdin, flush=True)
            assert process.stdout is not None
            return process.stdout.readline().strip()

        full = FullDisk(lambda: [process.pid])
        assert said() == "written"
        assert full.strike()
        assert said() == "OSError"
        (tmp_path / "mine").write_text("of another process")
        full.relieve()
        assert said() == "written"
        process.stdin.close()
    assert not full.strike(), "it is gone"
