"""Workers that die, sleep, are told to go, or lose their broker, as real processes; log and own records judge."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from antdt.worker.telemetry import IN_FLIGHT_MAX
from antdt_schemas import codec, lineage, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import STEPS
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.kafka.ask import ask
from antdt_streams.kafka.reader import TopicReader

from tests.helpers.job_processes import JobProcesses, job_processes, kill_all
from tests.helpers.ledger_thread import asker

pytestmark = pytest.mark.kafka
SMALL = ("--samples", "700", "--epochs", "3", "--delay-ms", "3", "--checkpoint-every", "10")


def test_everybody_is_killed_another_number_of_workers_goes_on_and_is_rolled_back(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        first = run.launch(3, *SMALL)
        run.until_committed(25)  # between two checkpoints
        kill_all(first)
        second = run.launch(2, *SMALL, "--shard-size", "5")
        run.until(lambda: run.now().line.checkpoints[-1].step >= 30, "no checkpoint of theirs")
        back_to = run.now().line.checkpoints[-2].step
        reply = ask(connection, job, lambda author: records.Rollback(back_to, author, "a bad batch"), None)
        assert reply.status is records.Status.OK, reply.reason
        run.ended(second)
        report = run.judged()
        assert report["committed"] == 2100
        assert len(run.now().members.group) == 2
        undone = [e for e in run.events() if isinstance(e, records.RolledBack)]
        assert [e.step for e in undone if e.author] == [back_to]
        said = f"shard_size=5 is ignored: the shards of job {job} have 1 samples, as its first worker has named it"
        assert run.output.read_text().count(said) == 2, "by each worker, once"
    found = torch.load(next(tmp_path.glob(f"checkpoints/**/{report['file']}")), weights_only=True)
    assert found["progress"]["step"] == report["steps"]
    assert found["progress"]["lineage"] == report["lineage"]


@pytest.mark.dear
def test_who_sleeps_too_long_wakes_up_to_nothing_and_comes_back_as_somebody_new(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, patience_ms=1_500) as run:
        launcher = run.launch(3, "--samples", "700", "--epochs", "4", "--delay-ms", "4", "--checkpoint-every", "10")
        run.until_committed(10)
        sleeper = run.now().members.group[0]  # the one that reports
        pid = run.pid_of(launcher, sleeper)
        os.kill(pid, signal.SIGSTOP)
        run.until(lambda: run.now().members.incarnations[sleeper].status == "lost", "it was not declared lost")
        known = set(run.now().members.incarnations)
        run.until_committed(run.now().line.committed + 3)  # the others go on without it
        late_reports_are_refused(run, sleeper)
        os.kill(pid, signal.SIGCONT)

        def back() -> bool:
            return any(member not in known for member in run.now().members.group)

        run.until(back, "it did not come back as a new incarnation")
        run.ended(launcher)
        report = run.judged()
        events = run.events()
    assert report["committed"] == 2800
    lost = next(i for i, e in enumerate(events) if isinstance(e, records.Lost) and e.incarnation == sleeper)
    later = events[lost + 1 :]
    assert not any(sleeper in e.members for e in later if isinstance(e, records.Granted))
    assert not any(e.incarnation == sleeper for e in later if isinstance(e, records.Leased))
    refused = [e for e in later if isinstance(e, records.Refused) and e.incarnation == sleeper]
    assert {"Commit", "Lease", "Regroup"} <= {e.kind for e in refused}


def late_reports_are_refused(run: JobProcesses, gone: str) -> None:
    """What somebody who was given up might still send, made as good as can be: it neither contributes nor commits."""
    state = run.now()
    step, place = state.line.committed, (*state.shards.place()[:2], 1)  # the right one would come anyway
    composition = (state.members.generation, 0, *place)
    after = lineage.next_lineage(state.line.lineage, step + 1, (state.members.generation, *place))
    with asker(run.connection, run.job, gone) as zombie:
        for body in (
            records.Commit(state.members.generation, step + 1, (composition,), (0,), after, -1),
            records.Lease(state.members.generation, 8),
            records.Regroup(state.members.generation, step, state.line.lineage, "h", 1),
        ):
            reply = zombie.ask(body)
            assert reply.status is records.Status.LOST, reply
            assert "lost" in reply.reason
            assert reply.leases == ()
    run.until_committed(step + 1)
    assert run.now().line.lineage_at(step + 1) != after


def test_who_is_told_to_go_finishes_its_step_and_when_all_are_nothing_has_to_be_done_again(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    options = ("--samples", "700", "--epochs", "3", "--delay-ms", "3", "--checkpoint-every", "0")
    with job_processes(connection, job, tmp_path) as run:
        first = run.launch(3, *options)
        run.until_committed(10)
        os.kill(run.workers_of(first)[2], signal.SIGTERM)
        told = f"w2 ended with status {int(ExitCode.DRAINED)}: it was told to, and has left"
        run.until(lambda: told in run.output.read_text().splitlines(), "the launcher says nothing of it")
        run.until(lambda: statuses_of(run, "w2") == ["left"], "it did not say good-bye")
        run.until_committed(run.now().line.committed + 5)  # the others go on
        first.terminate()
        run.ended(first, ExitCode.DRAINED)
        state = run.now()
        newest, last = state.line.checkpoints[-1], state.line.committed
        assert newest.step == last == applied_steps(run.record), "the very last step is in a file"
        assert state.shards.committed_total < 2100
        assert next(tmp_path.glob(f"checkpoints/**/{newest.file}")).is_file()
        run.ended(run.launch(3, *options))
        report = run.judged()
        loaded = [e.restore_file for e in run.events() if isinstance(e, records.Granted) and e.committed == last]
        assert newest.file in loaded
    assert report["rolled_back_steps"] == 0
    assert report["committed"] == 2100


def statuses_of(run: JobProcesses, worker: str) -> list[str]:
    """What has become of each incarnation of a worker."""
    return [one.status for one in run.now().members.incarnations.values() if one.worker == worker]


def applied_steps(folder: Path) -> int:
    """Steps that the workers say are in their models."""
    lines = (line for file in folder.glob("*.jsonl") for line in lines_of(file) if "lineage" in line)
    return max((line["step"] for line in lines), default=0)


def lines_of(file: Path) -> list[dict[str, Any]]:
    """What a worker wrote down, but for a line that is being written."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.dear
def test_training_goes_on_while_the_broker_is_away_up_to_a_bound(tmp_path: Path) -> None:
    bound = 80  # a worker hears once a second what is committed: some of them are gone already
    with EmbeddedBroker(tmp_path / "broker") as broker, job_processes(broker.connection, "away", tmp_path) as run:
        options = ("--samples", "1400", "--epochs", "4", "--delay-ms", "4", "--checkpoint-every", "0")
        launcher = run.launch(3, *options, "--pending-max", str(bound))
        run.until_committed(20)
        pids = run.workers_of(launcher)
        before = run.now().line.committed
        broker.stop()
        alone_from = applied_steps(run.record)
        run.until(lambda: applied_steps(run.record) > before + bound // 4, "nobody trains while the broker is away")
        until_quiet(run)
        most = applied_steps(run.record)
        away_until_ms = time.time() * 1000
        broker.start()
        run.until_committed(most)
        assert run.workers_of(launcher) == pids, "a worker did not live through it"
        run.ended(launcher)
        report = run.judged()
        assert report["committed"] == 5600
        at_most = max(e.step for e in run.events(away_until_ms) if isinstance(e, records.Committed)) + bound
        assert most <= at_most, "more steps awaited their commit than may"
        telemetry_is_complete(run, report["steps"], (alone_from + 1, most))


def until_quiet(run: JobProcesses) -> None:
    """Wait until no step was applied for as long as many of them take. A slow machine makes this easy, never fail."""
    seen, since = 0, time.monotonic()

    def quiet() -> bool:
        nonlocal seen, since
        at = applied_steps(run.record)
        if at != seen:
            seen, since = at, time.monotonic()
        return time.monotonic() - since > 1.0

    run.until(quiet, "training never stops")


def telemetry_is_complete(run: JobProcesses, steps: Any, away: tuple[int, int]) -> None:
    """Timings of steps that were taken without a broker arrive late, in few batches, each once; or are counted."""
    with TopicReader(run.connection, run.job, STEPS) as reader:
        batches = [codec.decode(raw.value, records.StepBatch) for raw in reader.to_end()]
    for worker in ("w0", "w1", "w2"):
        mine = [batch for batch in batches if batch.worker == worker]
        told = [step for batch in mine for step in batch.step]
        assert len(set(told)) == len(told), "a step was told twice"
        assert set(told) <= set(range(1, steps + 1))
        assert len(told) + mine[-1].dropped == steps, "what is missing was not counted"
        late = [batch for batch in mine if away[0] < batch.step[0] and batch.step[-1] <= away[1]]
        assert len(late) <= IN_FLIGHT_MAX, f"{len(late)} batches while nobody acknowledged any"
        assert [batch.number for batch in mine] == list(range(1, len(mine) + 1))
