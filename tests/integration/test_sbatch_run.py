"""deploy/slurm/antdt.sbatch with real launches: commands of Slurm's names start local processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_streams.host.child import spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import start_services
from antdt_streams.views.job import audit_of

from tests.helpers.in_progress import committed, joined, long_enough, members, order
from tests.helpers.pages import HERE
from tests.helpers.warm import started

pytestmark = [pytest.mark.kafka, pytest.mark.dear, pytest.mark.timeout(400)]
SBATCH = HERE / "deploy" / "slurm" / "antdt.sbatch"
WITHIN_S, LOOK_S = 120.0, 0.3
BASH = shutil.which("bash") or ""
# A step is what it runs; another job is the script again, on another node; a requeue is noted, and done by the test.
COMMANDS = {
    "antdt": f'exec {sys.executable} -m antdt_streams "$@"\n',
    "srun": 'echo $$ > "$NOTES/pid-$SLURM_ARRAY_TASK_ID"\nexec "$@"\n',
    "scontrol": 'echo "$*" >> "$NOTES/scontrol"\n',
    "sbatch": (
        'echo "$*" >> "$NOTES/sbatch"\nexport SLURM_ARRAY_TASK_ID="${1#--array=}"\n'
        'export SLURM_JOB_ID=99 SLURMD_NODENAME=node-8\nshift 2\nexec bash "$@"\n'
    ),
}


class Slurm:
    """Runs tasks of an array, each as its own job."""

    def __init__(self, folder: Path, connection: Connection, job: str) -> None:
        self.folder, self.tasks = folder, dict[int, subprocess.Popen[bytes]]()
        commands = folder / "bin"
        commands.mkdir()
        for name, does in COMMANDS.items():
            (commands / name).write_text(f"#!/bin/bash\n{does}")
            (commands / name).chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANTDT_")}
        self.environ = inherited | {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "NOTES": str(folder),
            "USER": "somebody",
            "SLURM_SUBMIT_DIR": str(folder),
            "ANTDT_SBATCH": str(SBATCH),
            "ANTDT_JOB": job,
            "ANTDT_KAFKA_BOOTSTRAP_SERVERS": connection.bootstrap,
            "ANTDT_DATA": str(folder / "data"),
            "ANTDT_WORKERS": "2",
        }

    def run(self, task: int, **more: str) -> None:
        where = {"SLURM_ARRAY_TASK_ID": f"{task}", "SLURM_JOB_ID": f"7{task}", "SLURMD_NODENAME": f"node-{task}"}
        log = (self.folder / f"task-{task}.log").open("ab")
        command = [BASH, str(SBATCH), "train.py"]
        self.tasks[task] = spawn(command, cwd=self.folder, env=self.environ | where | more, stdout=log, stderr=log)
        log.close()

    def noted(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""

    def until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + WITHIN_S
        while not holds():
            said = "".join(f"-- {log.name}\n{log.read_text()[-2000:]}" for log in self.folder.glob("*.log"))
            assert time.monotonic() < end, f"{what}\n{said}"
            time.sleep(LOOK_S)


def test_a_job_that_ran_out_of_time_and_one_on_a_slow_node_go_on_and_all_is_exact(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    place = Place(connection, True, tmp_path / "services", None)
    topics_admin.create(connection, job)
    (tmp_path / "train.py").write_text(long_enough((HERE / "examples" / "train.py").read_text()))
    services = start_services(job, place, connection, ("ledger",), start=started)
    slurm = Slurm(tmp_path, connection, job)
    try:
        slurm.run(0)
        slurm.run(1)
        slurm.until(lambda: committed(connection, job) > 500, "no training")
        os.kill(int(slurm.noted("pid-0")), signal.SIGTERM)  # as --signal=TERM@60 does
        slurm.until(lambda: slurm.noted("scontrol") == "requeue 70\n", "it is not requeued")
        slurm.run(0, SLURM_RESTART_COUNT="1")
        slurm.until(lambda: members(connection, job) == 2, "it is not back")
        order(connection, job, "w1")
        slurm.until(lambda: "--exclude=node-1 " in slurm.noted("sbatch"), "no other job takes its place")
        slurm.until(lambda: ("w1", "node-8") in joined(connection, job), "it does not go on elsewhere")
        (tmp_path / "go").touch()
        slurm.until(lambda: all(task.poll() is not None for task in slurm.tasks.values()), "no end")
        assert [task.returncode for task in slurm.tasks.values()] == [0, 0]
    finally:
        for task in slurm.tasks.values():
            task.kill()
        services.stop()
    assert audit_of(connection, job)["exactly_once"]
    assert [who for who, _ in joined(connection, job)] == ["w0", "w0", "w1", "w1"]
