"""Backup workers under AllReduce with real processes: who is slow takes part with no samples, and has its share again
when it is well.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.records import Action, Decision, Verdict
from antdt_schemas.topics import DECISIONS
from antdt_streams.kafka.reader import TopicReader, decoded

from tests.helpers.job_processes import WITHIN_S, job_processes

pytestmark = [pytest.mark.kafka, pytest.mark.dear]
SCRIPT = ("-m", "tests.helpers.slow_at_first")
POLICY = """
from antdt_streams.policies import parameters
from antdt_streams.policies.find import find

SOON = parameters.changed(find("backup"), {"try_windows": "4"})
"""
STEPS, SLOW_UNTIL = 160, 80


def test_a_slow_worker_takes_no_samples_until_it_is_well_and_each_is_trained_once(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    policy = tmp_path / "soon.py"
    policy.write_text(POLICY)
    services = ("ledger", "monitor", "controller")
    with job_processes(connection, job, tmp_path, services=services, policy=f"{policy}:SOON") as run:
        assert all(one.await_ready(WITHIN_S, threading.Event()) for one in run.supervisors)
        size = ("--samples", "480", "--epochs", str(STEPS // 20), "--delay-ms", "4")
        run.ended(run.launch(3, *size, "--slow", f"w1:3:{SLOW_UNTIL}", script=SCRIPT))
        report = run.judged()
    assert report["exactly_once"] and report["steps"] == STEPS, report["verdict"]
    with TopicReader(connection, job, DECISIONS) as reader:
        told = [decision for _, decision in decoded(reader.to_end(), Decision)]
    given = [d for d in told if d.action is Action.BACKUP_WORKERS]
    assert {a.worker: a.batch_size for a in given[0].assignments} == {"w0": 12, "w1": 0, "w2": 12}
    assert (given[0].backup_workers, given[-1].backup_workers) == (1, 0)
    assert {a.batch_size for a in given[-1].assignments} == {8}, "it has its share again"
    effects = {d.effect.plan: d.effect for d in told if d.effect is not None}
    assert effects[1].verdict is Verdict.HELPED and effects[1].predicted_gain > 0.3
    steps = {worker: taken_by(run.record, worker) for worker in ("w0", "w1", "w2")}
    assert steps["w0"] == steps["w2"] == set(range(1, STEPS + 1))
    assert len(steps["w1"]) < STEPS - 20 and STEPS in steps["w1"], "spared, and back"


def taken_by(folder: Path, worker: str) -> set[int]:
    """Steps in which a worker had samples."""
    lines = [json.loads(line) for file in folder.glob(f"{worker}*.jsonl") for line in file.read_text().splitlines()]
    return {line["step"] for line in lines if "samples" in line}
