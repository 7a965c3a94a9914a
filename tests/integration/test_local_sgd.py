"""Local training with averages, as real processes: killed in the midst of a period, told to go, of another period."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import STEPS
from antdt_streams.kafka.ask import ask
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.views.job import audit_of

from tests.helpers.job_processes import JobProcesses, job_processes
from tests.integration.test_elastic import applied_steps

pytestmark = pytest.mark.kafka
EVERY = 8
OPTIONS = ("--samples", "800", "--epochs", "3", "--delay-ms", "3", "--checkpoint-every", "4", "--every", str(EVERY))


def own_steps(run: JobProcesses, worker: str) -> list[dict[str, object]]:
    """What a worker wrote down since its last average: one line for each step of its optimizer."""
    file = run.record / f"{worker}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    last = max((at for at, line in enumerate(found) if "lineage" in line), default=-1)
    return found[last + 1 :]


@pytest.mark.dear
def test_who_is_killed_in_the_midst_of_a_period_takes_its_own_steps_along(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    result = tmp_path / "result.json"
    with job_processes(connection, job, tmp_path) as run:
        launcher = run.launch(3, *OPTIONS, "--result", str(result))
        for victim in ("w1", "w0"):
            run.until_committed(run.now().line.committed + 2 if run.state() else 2)
            pid = run.workers_of(launcher)[int(victim[1:])] if victim == "w1" else run.pid_of(launcher, "w0.0")
            run.until(lambda v=victim: 2 <= len(own_steps(run, v)) < EVERY, f"{victim} is never in a period")  # type: ignore[misc]
            os.kill(pid, signal.SIGKILL)
            own = own_steps(run, victim)
            assert 2 <= len(own) <= EVERY
            run.until(
                lambda v=victim: any(  # type: ignore[misc]
                    i.worker == v and i.status == "lost" for i in run.now().members.incarnations.values()
                ),
                f"{victim} was not given up",
            )
        run.ended(launcher)
        report, events, spec = run.judged(), run.events(), run.now().spec
    with TopicReader(connection, job, STEPS) as reader:
        batches = [codec.decode(raw.value, records.StepBatch) for raw in reader.to_end()]
    assert report["committed"] == 2400
    assert audit_of(connection, job)["verdict"].startswith("EXACTLY ONCE")
    assert spec.strategy == f"local-sgd/every={EVERY}"
    # Where samples do not run out, a step of the log is a period of all members: eight times the batch of 24.
    taken = [sum(e.ranges[3::4]) for e in events if isinstance(e, records.Committed)]
    assert Counter(taken).most_common(1)[0][0] == EVERY * 24, taken
    assert max(taken) == EVERY * 24
    sizes = [size for batch in batches for size in batch.batch_size]
    assert max(sizes) <= 24, "plans are about the batch of one step of the optimizer"
    assert sizes.count(8) > len(sizes) // 2
    returned = sum(e.length for e in events if isinstance(e, records.Returned))
    assert returned > 0
    # 0.1 by chance. Where the kills fall moves it, as each undoes a period: 0.80 to 0.94 in twelve runs.
    assert json.loads(result.read_text())["accuracy"] > 0.6


@pytest.mark.dear
def test_a_job_goes_on_from_its_last_average_is_rolled_back_to_it_and_refuses_another_period(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    options = ("--one-by-one", *OPTIONS)
    with job_processes(connection, job, tmp_path) as run:
        first = run.launch(3, *options)
        run.until_committed(3)
        first.terminate()
        run.ended(first, ExitCode.DRAINED)
        state = run.now()
        newest, last = state.line.checkpoints[-1], state.line.committed
        assert newest.step == last == applied_steps(run.record), "the last average is in a file"
        other = run.launch(2, *options[:-1], "4", restarts=0)
        run.until(lambda: other.poll() is not None, "it is not refused")
        said = f"strategy (the job has 'local-sgd/every={EVERY}', this worker 'local-sgd/every=4')"
        assert said in run.output.read_text()
        second = run.launch(2, *options, "--num-workers", "1")
        run.until_committed(last + 2)
        reply = ask(connection, job, lambda author: records.Rollback(last, author, "a bad batch"), None)
        assert reply.status is records.Status.OK, reply.reason
        run.ended(second)
        report, events = run.judged(), run.events()
    assert report["committed"] == 2400
    assert [e.step for e in events if isinstance(e, records.RolledBack)] == [last]
