"""Workers and parameter servers as real processes: log and model itself say that each sample is in it once an epoch."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import DECISIONS
from antdt_streams.chaos.judge import judge_log
from confluent_kafka import Producer

from tests.helpers.job_processes import JobProcesses, job_processes
from tests.helpers.tallied import expected

pytestmark = pytest.mark.kafka
SCRIPT = (str(Path(__file__).parents[1] / "helpers" / "tallied.py"),)
SERVERS = ("--servers", "2")


class Run:
    """A job of two servers."""

    def __init__(self, job: JobProcesses, folder: Path) -> None:
        self.job, self.result = job, folder / "tally.json"

    def launch(self, workers: int, *options: str, restarts: int = 50) -> Any:
        said = ("--result", str(self.result), *options)
        return self.job.launch(workers, *said, script=SCRIPT, launcher=SERVERS, restarts=restarts)

    def pid_of(self, name: str) -> int:
        """The process of a worker or server, as it has written down."""
        return int((self.job.record / f"{name}.pid").read_text())

    def again(self, name: str) -> None:
        """Wait until its next incarnation is known."""
        known = set(self.job.now().members.incarnations)

        def joined() -> bool:
            return any(i not in known and i.startswith(f"{name}.") for i in self.job.now().members.incarnations)

        self.job.until(joined, f"{name} did not come back")

    def would_lose(self) -> bool:
        """Whether something is committed that no file holds."""
        line = self.job.now().line
        return bool(line.committed > line.checkpoints[-1].step + 2)

    def judged(self) -> dict[str, Any]:
        """The audit, once the model itself agrees with it."""
        report, wrong = judge_log(self.job.entries())
        assert not wrong, wrong
        state = self.job.now()
        found = json.loads(self.result.read_text())
        assert (found["steps"], found["lineage"]) == (report["steps"], report["lineage"])
        assert found["tally"] == pytest.approx(expected(self.job.events(), state.spec), abs=1e-4)
        return report


@pytest.mark.parametrize("mode", ["ssp", *(pytest.param(m, marks=pytest.mark.dear) for m in ("bsp", "asp"))])
def test_a_job_on_servers_is_done_and_each_sample_is_in_the_model(
    connection: Connection, job: str, tmp_path: Path, mode: str
) -> None:
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        processes.ended(run.launch(2, "--mode", mode))
        report = run.judged()
    assert report["committed"] == 480
    found = json.loads(run.result.read_text())
    assert found["held"] > 0, "rows come with the answer to the push before"


LONG = ("--samples", "600", "--epochs", "3", "--delay-ms", "4", "--checkpoint-every", "12")


@pytest.mark.parametrize("mode", ["bsp", pytest.param("asp", marks=pytest.mark.dear)])
def test_workers_and_servers_are_killed_and_nothing_is_lost_or_repeated(
    connection: Connection, job: str, tmp_path: Path, mode: str
) -> None:
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        launcher = run.launch(2, *LONG, "--mode", mode)
        for name in ("w1", "s1", "s0"):
            processes.until_committed(processes.now().line.committed + 15 if processes.state() else 15)
            # Steps are reported when a file waits: what is committed is often in one, and a server then loses nothing.
            processes.until(run.would_lose, "no step was committed behind a checkpoint")
            os.kill(run.pid_of(name), signal.SIGKILL)
            run.again(name)
        processes.ended(launcher)
        report = run.judged()
        events = processes.events()
    assert report["committed"] == 1800
    assert any(isinstance(e, records.RolledBack) for e in events), "no server lost anything"
    fenced = [e for e in events if isinstance(e, records.Fenced)]
    assert fenced, "the samples of the lost worker came back by the first server's word"


@pytest.mark.dear
def test_a_server_that_sleeps_is_given_up_and_wakes_up_to_nothing(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, patience_ms=1_500) as processes:
        run = Run(processes, tmp_path)
        launcher = run.launch(2, *LONG, "--mode", "bsp")
        processes.until_committed(15)
        pid = run.pid_of("s0")
        lost = processes.now().members.group[0]
        os.kill(pid, signal.SIGSTOP)
        processes.until(lambda: processes.now().members.incarnations[lost].status == "lost", "it was not given up")
        os.kill(pid, signal.SIGCONT)
        processes.ended(launcher)
        assert run.judged()["committed"] == 1800
        commits = [e for e in processes.events() if isinstance(e, records.Granted)]
    assert len(commits) >= 2 and all(len(e.members) == 2 for e in commits)


@pytest.mark.dear
def test_a_server_that_hangs_and_is_not_dead_is_found_by_what_it_says_it_is_at(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, stuck_ms=3_000) as processes:
        run = Run(processes, tmp_path)
        launcher = run.launch(2, *LONG, "--mode", "bsp")
        processes.until_committed(15)
        hung = processes.now().members.group[1]
        os.kill(run.pid_of("s1"), signal.SIGUSR1)
        processes.ended(launcher)
        assert run.judged()["committed"] == 1800
        reason = next(e.reason for e in processes.events() if isinstance(e, records.Lost) and e.incarnation == hung)
        said = processes.output.read_text()
    assert "holds up" in reason and "serving" in reason
    assert "its training thread does not move: serving" in said


@pytest.mark.dear
def test_a_worker_that_hangs_with_samples_is_given_up_when_the_others_have_none_left(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    """With asp nobody waits for it before, however long; then the job would never end."""
    with job_processes(connection, job, tmp_path, stuck_ms=3_000) as processes:
        run = Run(processes, tmp_path)
        launcher = run.launch(2, *LONG, "--mode", "asp")
        processes.until_committed(15)
        hung = next(name for name in processes.now().members.attached if name.startswith("w1."))
        os.kill(run.pid_of("w1"), signal.SIGUSR1)
        processes.ended(launcher)
        assert run.judged()["committed"] == 1800
        reason = next(e.reason for e in processes.events() if isinstance(e, records.Lost) and e.incarnation == hung)
    assert "holds up 1 others" in reason or "in a generation that it knows to be over" in reason


@pytest.mark.dear
def test_the_slowest_need_not_be_waited_for_and_what_comes_late_is_not_lost(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    slow = ("--samples", "300", "--epochs", "2", "--delay-ms", "3", "--slow", "w2:5", "--backup", "1")
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        processes.ended(run.launch(3, *slow))
        report = run.judged()
    assert report["committed"] == 600
    assert report["steps"] > 600 // 24, "versions of fewer than all workers"


@pytest.mark.dear
@pytest.mark.parametrize("sharding", ["even", "colony"])
def test_what_is_dealt_ahead_is_trained_once_and_a_colony_moves_it_to_who_has_nothing_left(
    connection: Connection, job: str, tmp_path: Path, sharding: str
) -> None:
    slow = ("--mode", "asp", "--samples", "600", "--epochs", "2", "--delay-ms", "4", "--slow", "w2:4")
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        launcher = run.launch(3, *slow, "--sharding", sharding)
        processes.until_committed(10)
        os.kill(run.pid_of("w0"), signal.SIGKILL)
        run.again("w0")
        processes.ended(launcher)
        report = run.judged()
        events = processes.events()
    assert report["committed"] == 1200
    assert any(isinstance(e, records.Dealt) for e in events)
    moved = [e for e in events if isinstance(e, records.Moved)]
    assert bool(moved) == (sharding == "colony"), "who is idle takes over by itself"
    slowest = trained_by("w2", events)
    print(sharding, slowest, len(moved), "moves of", sum(e.length for e in moved), "samples")
    assert (slowest < 330) == (sharding == "colony"), "its share is a third, and it is four times as slow"


def trained_by(worker: str, events: Sequence[records.Event]) -> int:
    """Samples that all lives of a worker have in the model, where nothing was undone."""
    leases = {e.lease for e in events if isinstance(e, records.Leased) and e.incarnation.startswith(f"{worker}.")}
    steps = [e.ranges for e in events if isinstance(e, records.Committed)]
    return sum(r[i + 3] for r in steps for i in range(0, len(r), 4) if r[i] in leases)


@pytest.mark.dear
def test_what_is_late_may_be_dropped_and_log_and_model_say_so(connection: Connection, job: str, tmp_path: Path) -> None:
    slow = ("--samples", "300", "--epochs", "2", "--delay-ms", "3", "--slow", "w2:5", "--backup", "1", "--late", "drop")
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        processes.ended(run.launch(3, *slow), ExitCode.INCOMPLETE)  # done, except what is in quarantine
        report, _ = judge_log(processes.entries())
        state, events = processes.now(), processes.events()
    lost = sum(end - start for _, start, end in report["quarantined"])
    assert lost > 0 and not report["exactly_once"]
    assert (report["committed"] + lost, report["missing"], report["repeated"]) == (600, [], [])
    assert {fault.reason for fault in state.shards.faults.values()} == {"a late contribution, dropped"}
    tally = json.loads(run.result.read_text())["tally"]
    assert tally == pytest.approx(expected(events, state.spec), abs=1e-4)


@pytest.mark.dear
def test_who_is_told_to_leave_saves_all_and_the_next_launch_goes_on(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        first = run.launch(2, *LONG[:-1], "0")
        processes.until_committed(15)
        first.terminate()
        processes.ended(first, ExitCode.DRAINED)
        state = processes.now()
        assert state.line.checkpoints[-1].step == state.line.committed, processes.output.read_text()
        processes.ended(run.launch(2, *LONG[:-1], "0"))
        report = run.judged()
    assert (report["committed"], report["rolled_back_steps"]) == (1800, 0)


@pytest.mark.dear
def test_a_server_that_is_ordered_to_start_again_leaves_behind_a_file(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as processes:
        run = Run(processes, tmp_path)
        launcher = run.launch(2, *LONG[:-1], "0")
        processes.until_committed(15)
        ordered = processes.now().members.group[1]
        order(connection, job, ordered)
        run.again("s1")
        processes.ended(launcher)
        report = run.judged()
        events, said = processes.events(), processes.output.read_text()
    assert report["committed"] == 1800
    assert "s1 ended with status 143: it has left; started again as ordered (1)" in said
    left = next(at for at, e in enumerate(events) if isinstance(e, records.Left) and e.incarnation == ordered)
    files = [e for e in events[:left] if isinstance(e, records.Checkpointed)]
    assert len(files) == 1, "all parts were saved before it went"
    back = [e.step for e in events if isinstance(e, records.RolledBack)]
    assert back == [files[0].step]


def order(connection: Connection, job: str, incarnation: str) -> None:
    """What a Controller writes that wants this incarnation to be started again."""
    cause = records.Cause(0, 0, 0)
    action = records.Action.KILL_RESTART
    decision = records.Decision(cause, 0, action, (), 1.0, 0, incarnation, "once", 1, "it is slow", 0.0, 0, 0)
    producer = Producer(connection.producer())
    producer.produce(DECISIONS.name(job), codec.encode(decision), "", 0)
    assert producer.flush(10) == 0
