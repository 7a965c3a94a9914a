"""Two launches of one job, and what is said by one that is told to end: real processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.proof.audit import audit
from antdt_streams.views.job import status_of

from tests.helpers.job_processes import JobProcesses, job_processes
from tests.helpers.warm import Warm

pytestmark = pytest.mark.kafka
# More than is ever trained here.
OPTIONS = ("--samples", "700", "--epochs", "900", "--delay-ms", "2", "--checkpoint-every", "0", "--max-attempts", "1")


def test_a_second_launch_ends_at_once_and_one_that_takes_over_does_it_once(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    elsewhere = {"ANTDT_DATA": str(tmp_path / "other"), "ANTDT_CHECKPOINTS": str(tmp_path / "checkpoints" / job)}
    with job_processes(connection, job, tmp_path) as run:
        first = run.launch(2, *OPTIONS)
        run.until_committed(10)
        generation = run.now().members.generation
        run.ended(run.launch(2, *OPTIONS), ExitCode.NEVER_RETRY)
        assert f":{first.pid} since" in run.output.read_text(), "it does not say who runs the job"
        # From another folder the ledger alone can tell.
        run.ended(run.launch(2, *OPTIONS, environ=elsewhere), ExitCode.NEVER_RETRY)
        assert f":{first.pid} on" in run.output.read_text(), "it does not say who runs the job"
        assert run.now().members.generation == generation, "the first launch was disturbed"
        assert first.poll() is None
        run.until_committed(run.now().line.committed + 5)

        by_ledger = taken_over(run, first, environ=elsewhere)
        last = taken_over(run, by_ledger, environ=elsewhere)
        last.terminate()
        run.ended(last, ExitCode.DRAINED)
        report, events = audit(run.entries()), run.events()
    assert (report["broken"], report["repeated"], report["rolled_back_steps"]) == (None, [], 0)
    assert not [e for e in events if isinstance(e, records.Returned) and (e.counted or e.quarantined)]
    assert not [e for e in events if isinstance(e, records.Lost)], "everybody left"


def taken_over(run: JobProcesses, before: Warm, environ: dict[str, str]) -> Warm:
    """The next launch, which takes over from the one before."""
    committed, generation = run.now().line.committed, run.now().members.generation
    after = run.launch(2, *OPTIONS, launcher=("--take-over",), environ=environ)
    run.ended(before, ExitCode.NEVER_RETRY)
    run.until(lambda: run.now().members.generation > generation + 1 and run.now().members.open, "nobody goes on")
    run.until_committed(run.now().line.committed + 3)
    assert run.now().line.committed > committed
    assert after.poll() is None, run.output.read_text()
    return after


@pytest.mark.dear
def test_a_step_that_outlasts_the_grace_is_said_to_be_lost(connection: Connection, job: str, tmp_path: Path) -> None:
    slow = ("--samples", "96", "--epochs", "1", "--delay-ms", "1000")
    with job_processes(connection, job, tmp_path) as run:
        for grace_s, terminated, why in (
            (0.5, 1, "it did not leave in time (--grace-s 0.5)"),
            (60, 2, "it was to end at once"),
        ):
            launcher = run.launch(1, *slow, launcher=("--grace-s", str(grace_s)))
            run.until(lambda: in_a_step(connection, job), "no step")
            for _ in range(terminated):
                launcher.terminate()
                time.sleep(0.1)  # two signals at a time are one
            run.ended(launcher, ExitCode.KILLED)
            said = run.output.read_text()
            assert f"w0 was ended by SIGKILL: {why}" in said
            assert "what is in no checkpoint is done again" in said
        run.until(
            lambda: {i.status for i in run.now().members.incarnations.values()} == {"lost"}, "the ledger was not told"
        )


def in_a_step(connection: Connection, job: str) -> bool:
    """A member that lives says that it is at its first step, which takes 24 s."""
    return any(said["phase"] == "computing" for said in status_of(connection, job)["standings"].values())


BEHIND = """
import time
from antdt.examples import recorded
recorded.main()
print("evaluating")
time.sleep(600)
"""


def test_behind_its_loop_a_worker_ends_at_once(connection: Connection, job: str, tmp_path: Path) -> None:
    script = tmp_path / "evaluates.py"
    script.write_text(BEHIND)
    with job_processes(connection, job, tmp_path) as run:
        launcher = run.launch(2, "--samples", "96", "--epochs", "1", script=[str(script)])
        both = ("[w0] evaluating", "[w1] evaluating")
        run.until(lambda: all(line in run.output.read_text().splitlines() for line in both), "no end of the loop")
        told_s = time.monotonic()
        launcher.terminate()
        run.ended(launcher, ExitCode.DRAINED)
        assert time.monotonic() - told_s < 10, "nobody waited for the grace"
        assert run.judged()["committed"] == 96
