"""What deploy/ grants is what it lists."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


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
