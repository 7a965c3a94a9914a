"""Workers that die, sleep, are told to go, or lose their broker, as real processes; log and own records judge."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.broker import EmbeddedBroker

from tests.helpers.job_processes import job_processes, kill_all

pytestmark = pytest.mark.kafka
SMALL = ("--samples", "700", "--epochs", "3", "--delay-ms", "3", "--checkpoint-every", "10")


def test_everybody_is_killed_and_another_number_of_workers_goes_on(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        first = run.launch(3, *SMALL)
        run.until_committed(25)  # between two checkpoints
        kill_all(first)
        run.ended(run.launch(2, *SMALL))
        report = run.judged()
        assert report["committed"] == 2100
        state = run.state()
        assert state is not None
        assert len(state.members) == 2
    found = torch.load(next(tmp_path.glob(f"checkpoints/**/{report['file']}")), weights_only=True)
    assert found["progress"]["step"] == report["steps"]
    assert found["progress"]["lineage"] == report["lineage"]


def test_who_sleeps_too_long_wakes_up_to_nothing_and_comes_back_as_somebody_new(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, patience_ms=1_500) as run:
        launcher = run.launch(3, "--samples", "700", "--epochs", "4", "--delay-ms", "4", "--checkpoint-every", "10")
        run.until_committed(10)
        sleeper = run.workers_of(launcher)[0]  # the one that reports
        os.kill(sleeper, signal.SIGSTOP)

        def lost() -> bool:
            state = run.state()
            return state is not None and any(i.status == "lost" for i in state.incarnations.values())

        run.until(lost, "nobody was declared lost")
        before = run.state()
        assert before is not None
        run.until_committed(before.committed + 3)  # the others go on without it
        os.kill(sleeper, signal.SIGCONT)
        known = set(before.incarnations)

        def back() -> bool:
            state = run.state()
            return state is not None and any(n not in known and n in state.members for n in state.incarnations)

        run.until(back, "it did not come back as a new incarnation")
        run.ended(launcher)
        report = run.judged()
    assert report["committed"] == 2800


def test_who_is_told_to_go_finishes_its_step_and_the_others_go_on(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        launcher = run.launch(3, *SMALL)
        run.until_committed(10)
        os.kill(run.workers_of(launcher)[2], signal.SIGTERM)
        run.ended(launcher)
        report = run.judged()
        state = run.state()
        assert state is not None
        assert [i.status for i in state.incarnations.values() if i.worker == "w2"] == ["left"]
    assert report["rolled_back_steps"] == 0
    assert report["committed"] == 2100


def test_when_all_are_told_to_go_nothing_has_to_be_done_again(connection: Connection, job: str, tmp_path: Path) -> None:
    with job_processes(connection, job, tmp_path) as run:
        first = run.launch(3, "--samples", "700", "--epochs", "3", "--delay-ms", "3", "--checkpoint-every", "0")
        run.until_committed(12)
        first.terminate()
        run.ended(first, ExitCode.DRAINED)
        run.ended(run.launch(3, "--samples", "700", "--epochs", "3", "--checkpoint-every", "0"))
        report = run.judged()
    assert report["rolled_back_steps"] == 0
    assert report["committed"] == 2100


def applied_steps(folder: Path) -> int:
    """Steps that the workers say are in their models."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines() if "lineage" in line]
    return max((json.loads(line)["step"] for line in lines), default=0)


def test_training_goes_on_while_the_broker_is_away(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as broker, job_processes(broker.connection, "away", tmp_path) as run:
        launcher = run.launch(3, "--samples", "1400", "--epochs", "5", "--delay-ms", "4", "--checkpoint-every", "0")
        run.until_committed(20)
        pids = run.workers_of(launcher)
        broker.stop()
        at = applied_steps(run.record)
        run.until(lambda: applied_steps(run.record) > at + 20, "nobody trains while the broker is away")
        broker.start()
        run.until_committed(applied_steps(run.record))
        assert run.workers_of(launcher) == pids, "a worker did not live through it"
        run.ended(launcher)
        report = run.judged()
        assert report["committed"] == 7000
