"""A loop of somebody else's, watched by one line: the same losses to the bit, and a verdict on who is slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from antdt.connect.settings import Settings
from antdt.watching.order import ROOT, follow
from antdt.watching.reporter import Reporter
from antdt.worker.telemetry import StepTiming
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import MEASUREMENTS, STEPS
from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.local.services import environment_of
from antdt_streams.proof.audit import audit
from antdt_streams.views.job import newest_state, standing_of
from torch.utils.data import DistributedSampler

from tests.helpers.job_processes import JobProcesses, job_processes

pytestmark = pytest.mark.kafka

LOOP = Path(__file__).parents[1] / "helpers" / "watched_loop.py"
SAMPLES, BATCH = 1920, 16


def losses(kind: str, environ: dict[str, str], slow_s: float = 0.004) -> dict[str, list[str]]:
    """Of each rank, to the bit."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTDT_")}
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, str(LOOP), kind, str(slow_s), folder],
            env=plain | {"OMP_NUM_THREADS": "1"} | environ, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {file.name: file.read_text(encoding="utf-8").split() for file in Path(folder).iterdir()}


def told(one: JobProcesses, topic: object, kind: type) -> list:  # type: ignore[type-arg]
    with TopicReader(one.connection, one.job, topic) as reader:  # type: ignore[arg-type]
        return [record for _, record in decoded(reader.to_end(), kind)]


@pytest.mark.dear
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loop_that_is_watched_learns_the_same_and_its_slow_worker_is_found(
    kind: str, connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, services=("ledger", "monitor")) as one:
        environ = environment_of(connection, one.place) | {"ANTDT_JOB": job}
        watched = losses(kind, environ)
        assert len(watched["0"]) == SAMPLES // (2 * BATCH) * 2
        assert watched == losses(kind, {}), "nothing of it is changed"
        steps = told(one, STEPS, records.StepBatch)
        assert {step.worker for step in steps} == {"w0", "w1"}
        assert all(sum(len(s.step) for s in steps if s.worker == who) == len(watched["0"]) for who in ("w0", "w1"))
        assert {step.dropped for step in steps} == {0}
        assert [s.lineage for s in steps if s.worker == "w1"][-1] == expected_lineage(rank=1)
        one.until(lambda: bool(told(one, MEASUREMENTS, records.Measurement)), "nothing is measured")
        if kind == "ddp":  # where a model is spread, each layer waits for all, and data alone tell workers apart
            cost = {
                node.worker: node.seconds_per_sample for node in told(one, MEASUREMENTS, records.Measurement)[-1].nodes
            }
            assert cost["w1"] > 1.5 * cost["w0"]
        report = audit(one.entries())
        assert (report["watched"], report["exactly_once"], report["broken"]) == (True, False, None)
        one.until(lambda: not standing_of(newest_state(connection, job)[0])["members"], "they do not leave")
        found = standing_of(newest_state(connection, job)[0])
        # Whoever is the last to leave may have been alone for a moment, which is a generation of its own.
        assert found["watched"]
        assert found["generation"] in (1, 2)


def test_watched_workers_are_known_told_of_and_met_anew(connection: Connection, job: str, tmp_path: Path) -> None:
    with job_processes(connection, job, tmp_path) as one:
        environ = environment_of(connection, one.place) | {"ANTDT_JOB": job, "WORLD_SIZE": "2", "ANTDT_LAUNCH": "one"}
        reporters = [Reporter(Settings.of(environ | {"RANK": str(rank)})) for rank in range(2)]
        for reporter in reporters:
            reporter.start()
        one.until(lambda: all(reporter.generation == 1 for reporter in reporters), "no generation")
        for step in range(100):
            for reporter in reporters:
                reporter.add(StepTiming(0, step, 8, 0, 0.001, 0.01, 0.002, 0.0))
        again = Reporter(Settings.of(environ | {"RANK": "1", "ANTDT_RESTARTS": "1"}))
        again.start()  # its launch has started it again
        one.until(lambda: reporters[0].generation == again.generation == 2, "they do not meet anew")
        one.until(lambda: reporters[1].over, "somebody else is this worker")
        for reporter in (*reporters, again):
            reporter.close()
        steps = told(one, STEPS, records.StepBatch)
        assert {(s.worker, s.generation, s.strategy, s.dropped) for s in steps} == {
            ("w0", 1, "watched", 0),
            ("w1", 1, "watched", 0),
        }
        assert [sum(len(s.step) for s in steps if s.worker == who) for who in ("w0", "w1")] == [100, 100]
        gone = [event for event in one.events() if isinstance(event, records.Left | records.Lost)]
        assert [type(event) for event in gone] == [records.Lost, records.Left, records.Left]


def expected_lineage(rank: int) -> bytes:
    """From what the loop says of its order, computed anew."""
    sampler = DistributedSampler(range(SAMPLES), num_replicas=2, rank=rank, seed=3)  # type: ignore[arg-type]
    found = ROOT
    for epoch in range(2):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        for start in range(0, len(indices), BATCH):
            found = follow(found, indices[start : start + BATCH])
    return found
