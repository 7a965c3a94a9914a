"""deploy/slurm/antdt.sbatch: what becomes of a worker's job when its launch has ended, with commands of Slurm's names
that note how they are called.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from antdt_schemas.errors import ExitCode

SBATCH = Path(__file__).parents[2] / "deploy" / "slurm" / "antdt.sbatch"
NOTES = '#!/bin/sh\necho "$(basename "$0") $* AGAIN=${ANTDT_AGAIN:-}" >> "$CALLS"\n'


def run(folder: Path, status: int, avoid: str = "", **environ: str) -> tuple[int, list[str], str]:
    """Its exit status, the commands that it called, and what it said."""
    commands = folder / "bin"
    commands.mkdir()
    for name, does in (
        ("srun", f"exit {status}\n"), ("scontrol", ""), ("sbatch", ""), ("antdt", f"printf '{avoid}'\n")
    ):  # fmt: skip
        (commands / name).write_text(NOTES + does)
        (commands / name).chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "71", "SLURMD_NODENAME": "n7", "SLURM_SUBMIT_DIR": "/there"}
    named = {"ANTDT_JOB": "my-job", "ANTDT_KAFKA_BOOTSTRAP_SERVERS": "b:9092", "USER": "me", "CALLS": f"{folder}/calls"}
    path = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(SBATCH), "train.py", "--lr", "0.1"]
    done = subprocess.run(command, env=path | slurm | named | environ, capture_output=True, text=True, check=False)
    return done.returncode, (folder / "calls").read_text().splitlines(), done.stderr


LAUNCH = "srun antdt launch -n 1 --first-rank 2 --world-size 4 --restart-elsewhere --take-over train.py --lr 0.1 AGAIN="


@pytest.mark.parametrize("status", [*sorted(ExitCode), 139])
def test_what_follows_from_an_exit_status(status: int, tmp_path: Path) -> None:
    code, (launched, *then), said = run(tmp_path, status)
    assert launched == LAUNCH
    if status in (ExitCode.RESTART_HERE, ExitCode.KILLED, ExitCode.DRAINED):
        assert then == ["scontrol requeue 71 AGAIN="]
        assert said == f"antdt.sbatch: status {status}: begun again as the same job\n"
    elif status == ExitCode.RESTART_ELSEWHERE:
        asked, again = then
        assert asked == "antdt avoid-nodes my-job AGAIN="
        assert again == ("sbatch --array=2 --exclude=n7 /there/deploy/slurm/antdt.sbatch train.py --lr 0.1 AGAIN=1"), (
            "elsewhere, whatever the decisions say"
        )
    else:
        assert (code, then, said) == (status, [], "")


def test_nodes_that_others_were_slow_on_are_avoided_too(tmp_path: Path) -> None:
    _, (_, _, again), said = run(tmp_path, 76, avoid=r"n7\nn3\n")
    assert "--exclude=n7,n3 " in again
    assert said == "antdt.sbatch: status 76: begun again by another job, not on n7,n3\n"


def test_it_does_not_begin_again_for_ever(tmp_path: Path) -> None:
    code, calls, said = run(tmp_path, 75, ANTDT_AGAIN="30", SLURM_RESTART_COUNT="20")
    assert (code, len(calls)) == (75, 1)
    assert said == "antdt.sbatch: status 75, and begun again 50 times before: given up (ANTDT_AGAIN_MAX)\n"


def test_a_job_and_a_broker_must_be_named(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", str(SBATCH)], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "name the job" in done.stderr
