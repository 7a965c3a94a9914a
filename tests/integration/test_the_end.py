"""How a run ends: leaving the loop early, launching again what is finished, and a disk that is full meanwhile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.limits import INIT_FILE
from antdt_streams.chaos.judge import judge_log

from tests.helpers import leaves_early
from tests.helpers.job_processes import JobProcesses, job_processes

pytestmark = pytest.mark.kafka
SCRIPT = (leaves_early.__file__,)
WHERE = "unseeded", "in the loop"
DRAWN = re.compile(rf"drawn ({'|'.join(WHERE)}) (.*)")


def saved_step(run: JobProcesses, folder: Path) -> int:
    """That of the newest file, which is there, and which the ledger knows."""
    newest = run.now().line.checkpoints[-1]
    path = next(folder.glob(f"checkpoints/**/{newest.file}"))
    assert torch.load(path, weights_only=True)["progress"]["step"] == newest.step == run.now().line.committed
    return newest.step


def test_who_leaves_the_loop_leaves_a_checkpoint_and_hangs_nobody(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        steps = 0
        for how, at in (("break/next", 3), ("open", 6)):
            run.ended(run.launch(2, "--how", how, "--at", str(at), script=SCRIPT))
            assert saved_step(run, tmp_path) >= at
            said = run.output.read_text()
            steps = run.now().line.committed
            assert f"w0 left the loop early, behind step {steps}: its model is in {tmp_path}" in said
            # With a step begun, one of them may be gone before the other has come to it.
            other = "(w0 saves its model|its model is in .*)" if how == "open" else "w0 saves its model"
            assert re.search(rf"w1 left the loop early, behind step {steps}: {other}\. ", said)
            assert f"w1 is behind the loop at step {steps}" in said
        run.ended(run.launch(2, "--how", "/raise", "--at", str(steps + 2), script=SCRIPT), ExitCode.BUG)
        assert saved_step(run, tmp_path) >= steps + 2
        assert "ValueError: a mistake in the script" in run.output.read_text()
        run.ended(run.launch(2, script=SCRIPT))
        undone = [e for e in run.events() if isinstance(e, records.RolledBack)]
        assert not undone, f"nothing was to be done twice: {run.output.read_text()}"
        before = len(run.output.read_text())
        run.ended(run.launch(2, script=SCRIPT))
        again = run.output.read_text()[before:]
        assert f"Job {job} is finished since 20" in again
        assert f"w1 is behind the loop at step {run.now().line.committed}" in again
        run.ended(run.launch(2, "--epochs", "2", script=SCRIPT), ExitCode.USAGE)
        assert "epochs (the job has 1, this worker 2)" in run.output.read_text()
        report, wrong = judge_log(run.entries())
        assert not wrong
        assert report["committed"] == 480
        drawn = [draws for line in run.output.read_text().splitlines() if (draws := DRAWN.search(line))]
    unseeded, in_loop = ([json.loads(line[2]) for line in drawn if line[1] == which] for which in WHERE)
    # Behind the first launch they go on where the checkpoint says, which may be where a step was given up.
    numbers = [number for line in unseeded + in_loop[:2] for number in line]
    assert len(set(numbers)) == len(numbers) >= 3 * 2 * 6, "two workers, or two lives of one, draw the same"


def test_a_folder_that_takes_no_files_ends_nothing_and_is_owed_all_of_them(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.touch()
    options = ("--samples", "400", "--epochs", "3", "--delay-ms", "4", "--checkpoint-every", "5")
    with job_processes(connection, job, tmp_path) as run:
        launcher = run.launch(2, *options, restarts=0)
        run.until_committed(12)
        assert [c.file for c in run.now().line.checkpoints] == [INIT_FILE]
        said = "Training goes on; there is no checkpoint of a step yet."
        run.until(lambda: said in run.output.read_text(), "nobody says that no checkpoint is written")
        blocked.unlink()
        run.until(lambda: len(run.now().line.checkpoints) > 1, "what is owed is not written")
        blocked.rename(tmp_path / "away")
        blocked.touch()
        run.until(lambda: run.now().finished, "it does not come to its end")
        assert run.now().done is None, "without a file of the final model"
        blocked.unlink()
        (tmp_path / "away").rename(blocked)
        run.ended(launcher)
        report = run.judged()
        assert saved_step(run, tmp_path) == report["steps"]
    assert report["committed"] == 1200
    assert [path.name for path in tmp_path.glob(f"checkpoints/**/{INIT_FILE}.pt")], "the model before any step"
    assert "checkpoints can be written again" in run.output.read_text()
